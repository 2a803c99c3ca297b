"""From what was asked for to the list of runs, each with its settings resolved. Nothing is read or computed here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from promptbench import registry
from promptbench.clip.load import shape_of
from promptbench.config import UsageError, path_of, to_mapping
from promptbench.data.selection import FILE, sampler_of
from promptbench.method import Method, fit_to_backbone
from promptbench.metrics.ood import Score
from promptbench.protocol import Plan, Protocol
from promptbench.recipe import CHOICE, Preset, Recipe, Settings, find_preset, resolve
from promptbench.results.spec import Spec
from promptbench.runs.request import ChosenMethod, Request, options_of, other_data, plans_of
from promptbench.training.numerics import check_method


@dataclass(frozen=True)
class Run:
    """One run: its spec, what to train and evaluate, the settings with their origins, who derives metrics, and the
    scores of images by name."""

    spec: Spec
    plan: Plan
    method: type[Method]
    settings: Settings
    protocol: Protocol
    scores: Mapping[str, Score]

    @property
    def reads_dense(self) -> bool:
        """Whether a score is made of patches."""
        return any("local" in score.needs for score in self.scores.values())


def plan_runs(request: Request) -> list[Run]:
    """All runs, method by method within a dataset, so that a table fills from the top.

    A run that several plans ask for, such as that of a method without training under several numbers of shots, is there
    once.

    Raises:
        UsageError: On a value that does not fit.
    """
    resolved: dict[tuple[object, ...], tuple[Settings, dict[str, Any]]] = {}  # the same for every seed
    runs: dict[str, Run] = {}
    for protocol in request.protocols:
        for seeds in request.seeds:
            for plan in plans_of(
                request.protocols[protocol], request.suite, seeds[0], request.corruption, request.limit
            ):
                for run in runs_of(request, protocol, plan, seeds, resolved):
                    runs.setdefault(run.spec.name, run)
    return list(runs.values())


def runs_of(
    request: Request,
    protocol: str,
    plan: Plan,
    seeds: tuple[int, int],
    resolved: dict[tuple[object, ...], tuple[Settings, dict[str, Any]]],
) -> Iterator[Run]:
    """The runs of a plan, one for each variant of each method.

    Args:
        resolved: What was resolved for other seeds, and is noted here.
    """
    others = tuple(evaluation.selection.dataset for evaluation in plan.evaluations)
    for chosen in request.methods:
        for index, values in enumerate(chosen.variants):
            key = (protocol, chosen.label, index, plan.dataset, plan.train.shots, others)
            if key not in resolved:
                settings = settings_of(request, protocol, plan, chosen, values)
                resolved[key] = settings, facts_of(request, protocol, plan, chosen, settings)
            yield plan_run(plan, chosen, request.protocols[protocol], request.scores[protocol], *resolved[key], seeds)


def settings_of(
    request: Request, protocol: str, plan: Plan, chosen: ChosenMethod, values: Mapping[str, Any]
) -> Settings:
    """The settings of a run, resolved and fitted to the backbone.

    Args:
        values: What the call sets.

    Raises:
        UsageError: A value does not fit, or the method does not go with the precision.
    """
    suite = request.suite
    settings = resolve(
        chosen.method,
        chosen.label,
        protocol=request.protocols[protocol].recipes_of or protocol,
        dataset=suite.entry(plan.dataset).dataset,
        shots=plan.train.shots,
        suite=suite,
        assignments=values,
    )
    settings = fit_settings(settings, suite.backbone)
    check_method(request.precision, chosen.label, chosen.method)
    return settings


def facts_of(request: Request, protocol: str, plan: Plan, chosen: ChosenMethod, settings: Settings) -> dict[str, Any]:
    """The fields of a spec that are the same for every seed."""
    suite = request.suite
    entry = suite.entry(plan.dataset)
    return {
        "suite": suite.name,
        "protocol": protocol,
        "dataset": plan.dataset,
        "method": chosen.name,
        "preset": chosen.preset,
        "plugin": registry.source_digest("methods", chosen.name),
        "config": to_mapping(settings.config),
        "recipe": decisive(settings.recipe),
        "shots": plan.train.shots if chosen.method.sees_images() else 0,
        "backbone": suite.backbone,
        "precision": request.precision,
        "threads": suite.threads or available_cores(),
        "device": request.device.partition(":")[0],
        "dataset_options": options_of(entry),
        "dataset_plugin": "" if entry.dataset == entry.name else entry.dataset,
        "evaluated": other_data(suite, plan),
        "scores": {name: score.asked for name, score in more_scores(request, protocol).items()},
        "corruption": plan.corruption,
        "deterministic": request.deterministic,
        "temperature": request.temperature,
        "limit": request.limit or 0,
        **control_of(chosen),
    }


def more_scores(request: Request, protocol: str) -> dict[str, Score]:
    """The scores of a protocol's runs that it does not ask for itself."""
    own = request.protocols[protocol].scores
    return {name: score for name, score in request.scores[protocol].items() if name not in own}


def control_of(chosen: ChosenMethod) -> dict[str, str]:
    """What stands in the place of images and of learned prompts, where the preset is a control."""
    preset = find_preset(chosen.method, chosen.name, chosen.preset) if chosen.preset else Preset()
    return {"condition": preset.condition, "prompts": preset.prompts}


def plan_run(
    plan: Plan,
    chosen: ChosenMethod,
    protocol: Protocol,
    scores: Mapping[str, Score],
    settings: Settings,
    facts: Mapping[str, Any],
    seeds: tuple[int, int],
) -> Run:
    """One run with the settings of `settings_of` and what `facts_of` made of them."""
    plan = with_sampler(plan, chosen.sampler if chosen.method.sees_images() else "coop", seeds[0])
    sampler = named_sampler(plan.train.sampler)
    spec = Spec(**facts, sampler=sampler, split=plan.train.halves, data_seed=seeds[0], train_seed=seeds[1])
    return Run(spec, plan, chosen.method, settings, protocol, scores)


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
    else:
        sampler_of(sampler)
    return replace(plan, train=replace(plan.train, sampler=sampler))


def named_sampler(sampler: str) -> str:
    """A sampler as a spec names it: a stored sample by its content, wherever it lies."""
    if not sampler.startswith(FILE):
        return sampler
    path = path_of(sampler.removeprefix(FILE))
    if path.exists() and not path.is_file():
        raise UsageError(f"--sampler {sampler}: {path} is no file.")
    try:
        return f"{FILE}{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    except OSError as error:
        raise UsageError(f"--sampler {sampler}: {path} cannot be read ({error.strerror}).") from error


def fit_settings(settings: Settings, backbone: str) -> Settings:
    """Settings whose config respects the depths of the backbone; a default that gives way says so in its origin."""
    fitted = fit_to_backbone(settings.config, shape_of(backbone), settings.explicit)
    before, after, provenance = to_mapping(settings.config), to_mapping(fitted), dict(settings.provenance)
    for name in after:
        if after[name] != before[name]:
            scaled = name in {item.name for item in fields(fitted) if item.metadata.get("of_depth")}
            because = f"{'scaled' if scaled else 'capped'} from {before[name]} by the backbone"
            provenance[f"config.{name}"] += ", the words decide" if after[name] is None else f", {because}"
    return settings._replace(config=fitted, provenance=provenance)


def decisive(recipe: Recipe | None) -> dict[str, Any]:
    """A recipe without its prose, so that a corrected citation does not make another run of the same; younger fields
    are there where they say something, so that older runs keep their names."""
    values = {} if recipe is None else to_mapping(recipe)
    for item in fields(Recipe):
        if item.metadata.get("later") and recipe is not None and getattr(recipe, item.name) == item.default:
            del values[item.name]
    prose = ("source", *CHOICE, "overrides", "epochs_at", "overrides_at")  # what the last three say is in the settings
    return {name: value for name, value in values.items() if name not in prose}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
