"""What was trained before, evaluated under other protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, build
from promptbench.data.selection import FILE
from promptbench.protocol import Plan, Protocol
from promptbench.recipe import Recipe, Settings
from promptbench.results.result import Result
from promptbench.results.spec import Spec
from promptbench.runs.plan import Run
from promptbench.runs.request import other_data
from promptbench.suite import DatasetEntry, Suite


def evaluations_of(result: Result, protocols: Mapping[str, Protocol], suite: Suite) -> list[Run]:
    """The evaluations of other protocols for what a run trained: its images, its settings, its seeds.

    `suite` comes from `suite_of`. An author's recipe of the run's own protocol is only transferred to another.

    Raises:
        UsageError: The suite lacks the dataset, or the protocol never trains with that number of shots.
    """
    spec = result.spec
    if spec.sampler.startswith(FILE):
        raise UsageError(f"{result.name} was trained on a stored sample; name it again with `run --sampler`.")
    origin = spec.trained_by or spec.protocol
    method = registry.load("methods", spec.method)
    recipe = build(Recipe, spec.recipe, result.name) if spec.recipe else None
    provenance = dict(result.conditions.get("provenance", {}))
    settings = Settings(build(method.Config, spec.config, result.name), recipe, provenance, frozenset())
    trained: Protocol = protocols[origin] if origin in protocols else registry.load("protocols", origin)()
    train = replace(plan_for(suite, trained, spec).train, sampler=spec.sampler)
    runs = []
    for protocol, evaluated in protocols.items():
        plan = plan_for(suite, evaluated, spec)
        other = replace(
            spec,
            suite=suite.name,
            protocol=protocol,
            recipe=transferred(spec.recipe) if protocol != spec.protocol else spec.recipe,
            evaluated=other_data(suite, plan),
            trained_by=origin if method.sees_images() and train != replace(plan.train, sampler=spec.sampler) else "",
        )
        runs.append(Run(other, replace(plan, train=train), method, settings, evaluated))
    return runs


def suite_of(suite: Suite, spec: Spec) -> Suite:
    """The suite with the backbone, the dataset, the number of shots and the halves of the classes of a run."""
    entry = DatasetEntry(
        name=spec.dataset, dataset=spec.dataset_plugin or spec.dataset, options=dict(spec.dataset_options)
    )
    shots = spec.shots or suite.shots
    suite = replace(suite.with_entry(entry), backbone=spec.backbone, shots=shots, few_shots=(shots,))
    return replace(suite, split=(spec.split,))


def plan_for(suite: Suite, protocol: Protocol, spec: Spec) -> Plan:
    """What a protocol trains on and evaluates with the dataset of a run."""
    (plan,) = protocol.plan(suite.with_datasets(protocol.role, [spec.dataset]), spec.data_seed)
    return plan


def transferred(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe as another protocol sees it."""
    return {**recipe, "origin": "transferred"} if recipe.get("origin") in ("paper", "authors") else recipe
