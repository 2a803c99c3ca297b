"""From what was asked for to the list of runs, each with its settings resolved. Nothing is read or computed here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.clip.load import shape_of
from promptbench.config import UsageError, to_mapping, unknown
from promptbench.data.selection import FILE, SAMPLERS
from promptbench.method import Method, fit_to_backbone
from promptbench.protocol import Plan, Protocol
from promptbench.recipe import Recipe, Settings, find_preset, parse_label, resolve
from promptbench.results.spec import Spec
from promptbench.runs.request import Request, load_protocol, options_of, other_data
from promptbench.training.numerics import check_method


@dataclass(frozen=True)
class Run:
    """One run: its spec, what to train and evaluate, and the settings with their origins."""

    spec: Spec
    plan: Plan
    method: type[Method]
    settings: Settings

    @property
    def protocol(self) -> Protocol:
        """The protocol that derives metrics."""
        return load_protocol(self.spec.protocol)


def plan_runs(request: Request) -> list[Run]:
    """All runs, method by method within a dataset, so that a table fills from the top.

    A run that several plans ask for, such as that of a method without training under several numbers of shots, is there
    once.

    Raises:
        UsageError: On an unknown name, a value that does not fit, or a setting for a method that is not asked for.
    """
    methods = {label: registry.load("methods", parse_label(label)[0]) for label in request.methods}
    check_assignments(request)
    check_sampler(request)
    asked = {label: variants(request, label) for label in methods}
    resolved: dict[tuple[object, ...], tuple[Settings, dict[str, Any]]] = {}  # the same for every seed
    runs: dict[str, Run] = {}
    for protocol in request.protocols:
        for data_seed, train_seed in request.seeds:
            for plan in load_protocol(protocol).plan(request.suite, data_seed):
                for label, cls in methods.items():
                    for index, variant in enumerate(asked[label]):
                        others = tuple(evaluation.selection.dataset for evaluation in plan.evaluations)
                        key = (protocol, label, index, plan.dataset, plan.train.shots, others)
                        if key not in resolved:
                            settings = settings_of(variant, protocol, plan, label, cls)
                            resolved[key] = settings, facts_of(variant, protocol, plan, label, cls, settings)
                        run = plan_run(variant, plan, label, cls, *resolved[key], (data_seed, train_seed))
                        runs.setdefault(run.spec.name, run)
    return list(runs.values())


def variants(request: Request, label: str) -> list[Request]:
    """The request with the settings of each variant of a method; itself where there is no grid."""
    points = request.grid.get(label) or request.grid.get(parse_label(label)[0]) or [{}]
    own = request.assignments.get(label, {})
    return [replace(request, assignments={**request.assignments, label: {**own, **point}}) for point in points]


def settings_of(request: Request, protocol: str, plan: Plan, label: str, cls: type[Method]) -> Settings:
    """The settings of a run, resolved and fitted to the backbone.

    Raises:
        UsageError: A value does not fit, or the method does not go with the precision.
    """
    suite, (name, _) = request.suite, parse_label(label)
    entry = suite.entry(plan.dataset)
    settings = resolve(
        cls,
        label,
        protocol=load_protocol(protocol).recipes_of or protocol,
        dataset=entry.dataset,
        shots=plan.train.shots,
        suite=suite,
        assignments={**request.assignments.get(name, {}), **request.assignments.get(label, {})},
    )
    settings = fit_settings(settings, suite.backbone)
    check_method(request.precision, label, cls)
    return settings


def facts_of(
    request: Request, protocol: str, plan: Plan, label: str, cls: type[Method], settings: Settings
) -> dict[str, Any]:
    """The fields of a spec that are the same for every seed."""
    suite, (name, preset) = request.suite, parse_label(label)
    entry = suite.entry(plan.dataset)
    return {
        "suite": suite.name,
        "protocol": protocol,
        "dataset": plan.dataset,
        "method": name,
        "preset": preset,
        "plugin": registry.source_digest("methods", name),
        "config": to_mapping(settings.config),
        "recipe": decisive(settings.recipe),
        "shots": plan.train.shots if cls.sees_images() else 0,
        "backbone": suite.backbone,
        "precision": request.precision,
        "threads": suite.threads or available_cores(),
        "device": request.device.partition(":")[0],
        "dataset_options": options_of(entry),
        "dataset_plugin": "" if entry.dataset == entry.name else entry.dataset,
        "evaluated": other_data(suite, plan),
        "deterministic": request.deterministic,
    }


def plan_run(
    request: Request,
    plan: Plan,
    label: str,
    cls: type[Method],
    settings: Settings,
    facts: Mapping[str, Any],
    seeds: tuple[int, int],
) -> Run:
    """One run with the settings of `settings_of` and what `facts_of` made of them."""
    name, preset = parse_label(label)
    sampler = request.sampler or (find_preset(cls, name, preset).sampler if preset else "") or "coop"
    plan = with_sampler(plan, sampler, seeds[0])
    sampler = named_sampler(plan.train.sampler) if cls.sees_images() else "coop"
    return Run(Spec(**facts, sampler=sampler, data_seed=seeds[0], train_seed=seeds[1]), plan, cls, settings)


def with_sampler(plan: Plan, sampler: str, seed: int) -> Plan:
    """The plan with a sampler for its training images, the placeholders of a path filled.

    Raises:
        UsageError: There is no such sampler.
    """
    if sampler.startswith(FILE):
        places = {"dataset": plan.dataset, "shots": plan.train.shots, "seed": seed}
        try:
            sampler = sampler.format(**places)
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"--sampler {sampler}: a path may hold {{dataset}}, {{shots}} and {{seed}}, and no other braces."
            ) from error
    elif sampler not in SAMPLERS:
        raise UsageError(f"{unknown('sampler', sampler, SAMPLERS)} A stored sample is file:PATH.")
    return replace(plan, train=replace(plan.train, sampler=sampler))


def check_sampler(request: Request) -> None:
    """Raise a UsageError where one stored sample would stand for several seeds."""
    seeds = {data_seed for data_seed, _ in request.seeds}
    if request.sampler.startswith(FILE) and len(seeds) > 1 and "{seed}" not in request.sampler:
        raise UsageError(f"--sampler {request.sampler}: write {{seed}} in the path, or give one seed or --data-seed.")


def named_sampler(sampler: str) -> str:
    """A sampler as a spec names it: a stored sample by its content, wherever it lies."""
    if not sampler.startswith(FILE):
        return sampler
    path = Path(sampler.removeprefix(FILE))
    try:
        return f"{FILE}{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    except OSError as error:
        raise UsageError(f"--sampler {sampler}: {path} cannot be read ({error.strerror}).") from error


def fit_settings(settings: Settings, backbone: str) -> Settings:
    """Settings whose config respects the depths of the backbone; a capped default says so in its origin."""
    fitted = fit_to_backbone(settings.config, shape_of(backbone), settings.explicit)
    before, after, provenance = to_mapping(settings.config), to_mapping(fitted), dict(settings.provenance)
    for name in after:
        if after[name] != before[name]:
            provenance[f"config.{name}"] += f", capped from {before[name]} by the backbone"
    return settings._replace(config=fitted, provenance=provenance)


def decisive(recipe: Recipe | None) -> dict[str, Any]:
    """A recipe without its prose, so that a corrected citation does not make another run of the same; younger fields
    are there where they say something, so that older runs keep their names."""
    values = {} if recipe is None else to_mapping(recipe)
    prose = ("source", "overrides", "epochs_at") + (() if values.get("train_views") else ("train_views",))
    return {name: value for name, value in values.items() if name not in prose}


def check_assignments(request: Request) -> None:
    """Raise a UsageError where a setting names a method that does not run."""
    running = {*request.methods, *(parse_label(label)[0] for label in request.methods)}
    known = running | {entry.name for entry in request.suite.entries()}
    for flag, named in (("--set", request.assignments), ("--grid", request.grid)):
        for name in named:
            if name not in running:
                raise UsageError(f"{flag} {name}.…: {unknown('method or dataset of this call', name, known)}")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
