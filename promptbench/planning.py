"""From what was asked for to the list of runs, each with its settings resolved. Nothing is read or computed here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, build, to_mapping, unknown
from promptbench.method import Method, fit_to_backbone
from promptbench.protocol import Plan, Protocol
from promptbench.recipe import Recipe, Settings, parse_label, resolve
from promptbench.spec import Spec
from promptbench.suite import Suite
from promptbench.weights import shape_of


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for.

    Attributes:
        suite: With datasets, shots and backbone already replaced where the command line names others.
        methods: Labels, in the order that tables show them.
        protocols: Names.
        seeds: (data seed, training seed) pairs.
        assignments: Method or label -> field -> value.
        precision: As Lightning names it.
        device: `cpu` or `cuda`.
        flags: What the command line chose itself, such as `shots`, for whoever asks where a value came from.
    """

    suite: Suite
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]
    assignments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    precision: str = "32"
    device: str = "cpu"
    flags: frozenset[str] = frozenset()


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


def load_protocol(name: str) -> Protocol:
    """An instance of the protocol of that name."""
    protocol: Protocol = registry.load("protocols", name)()
    return protocol


def labels(suite: Suite, asked: Sequence[str]) -> tuple[str, ...]:
    """The methods to run: the suite's companions first, then those asked for; `all` is every registered method."""
    chosen = [label for word in asked for label in (registry.names("methods") if word == "all" else (word,))]
    return tuple(dict.fromkeys([*suite.companions, *chosen]))


def plan_runs(request: Request) -> list[Run]:
    """All runs, method by method within a dataset, so that a table fills from the top.

    Raises:
        UsageError: On an unknown name, a value that does not fit, or a setting for a method that is not asked for.
    """
    methods = {label: registry.load("methods", parse_label(label)[0]) for label in request.methods}
    check_assignments(request)
    runs = []
    for protocol in request.protocols:
        for data_seed, train_seed in request.seeds:
            for plan in load_protocol(protocol).plan(request.suite, data_seed):
                for label, cls in methods.items():
                    runs.append(plan_run(request, protocol, plan, label, cls, (data_seed, train_seed)))
    return runs


def plan_run(request: Request, protocol: str, plan: Plan, label: str, cls: type[Method], seeds: tuple[int, int]) -> Run:
    """One run, its settings resolved and fitted to the backbone."""
    suite, (name, preset) = request.suite, parse_label(label)
    entry = suite.entry(plan.dataset)
    settings = resolve(
        cls,
        label,
        protocol=protocol,
        dataset=entry.dataset,
        suite=suite,
        assignments={**request.assignments.get(name, {}), **request.assignments.get(label, {})},
    )
    settings = fit_settings(settings, suite.backbone)
    dataset_cls = registry.load("datasets", entry.dataset)
    spec = Spec(
        suite=suite.name,
        protocol=protocol,
        dataset=plan.dataset,
        method=name,
        preset=preset,
        plugin=registry.source_digest("methods", name),
        config=to_mapping(settings.config),
        recipe=decisive(settings.recipe),
        shots=plan.train.shots,
        data_seed=seeds[0],
        train_seed=seeds[1],
        backbone=suite.backbone,
        precision=request.precision,
        threads=suite.threads or available_cores(),
        device=request.device,
        dataset_options=to_mapping(build(dataset_cls.Config, dict(entry.options), f"dataset '{entry.name}'")),
    )
    return Run(spec, plan, cls, settings)


def fit_settings(settings: Settings, backbone: str) -> Settings:
    """Settings whose config respects the depths of the backbone; a capped default says so in its origin."""
    fitted = fit_to_backbone(settings.config, shape_of(backbone), settings.explicit)
    before, after, provenance = to_mapping(settings.config), to_mapping(fitted), dict(settings.provenance)
    for name in after:
        if after[name] != before[name]:
            provenance[f"config.{name}"] += f", capped from {before[name]} by the backbone"
    return settings._replace(config=fitted, provenance=provenance)


def decisive(recipe: Recipe | None) -> dict[str, Any]:
    """A recipe without its prose, so that a corrected citation does not make another run of the same."""
    values = {} if recipe is None else to_mapping(recipe)
    return {name: value for name, value in values.items() if name not in ("source", "overrides")}


def check_assignments(request: Request) -> None:
    """Raise a UsageError where a setting names a method that does not run."""
    running = {*request.methods, *(parse_label(label)[0] for label in request.methods)}
    known = running | {entry.name for entry in request.suite.entries()}
    for name in request.assignments:
        if name not in running:
            raise UsageError(f"--set {name}.…: {unknown('method or dataset of this call', name, known)}")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
