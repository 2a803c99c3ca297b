"""What was trained before, evaluated under other protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, build
from promptbench.data.corruptions import Corruption
from promptbench.data.selection import FILE
from promptbench.metrics.ood import open_scores
from promptbench.protocol import Plan, Protocol
from promptbench.recipe import Recipe, Settings
from promptbench.results.result import Result
from promptbench.results.spec import Spec
from promptbench.runs.plan import Run
from promptbench.runs.request import other_data, plans_of
from promptbench.suite import DatasetEntry, Suite


def evaluations_of(
    result: Result,
    protocols: Mapping[str, Protocol],
    suite: Suite,
    *,
    corruption: Corruption | None = None,
    temperature: bool = False,
    limit: int | None = None,
) -> list[Run]:
    """The evaluations of other protocols, or under a corruption, for what a run trained: its images, settings, seeds.

    An author's recipe of the run's own protocol is only transferred to another.

    Args:
        result: The run's.
        protocols: By name; its own may be among them.
        suite: From `suite_of`.
        temperature: Whether a temperature is fitted; it is, too, where the run has one.
        limit: The most images of each split that is evaluated; None for all.

    Raises:
        UsageError: The suite lacks the dataset, or the protocol never trains with that number of shots.
    """
    spec = result.spec
    if spec.sampler.startswith(FILE):
        raise UsageError(f"{result.name} was trained on a stored sample; name it again with `run --sampler`.")
    origin = spec.trained_by or spec.protocol
    method = registry.load("methods", spec.method)
    recipe = build(Recipe, spec.recipe, result.name) if spec.recipe else None
    chosen = result.conditions.get("selection")
    if recipe is not None and chosen:  # which no spec says
        recipe = replace(recipe, selection=chosen["kind"], trials=chosen["trials"])
    provenance = dict(result.conditions.get("provenance", {}))
    settings = Settings(build(method.Config, spec.config, result.name), recipe, provenance, frozenset())
    trained: Protocol = protocols[origin] if origin in protocols else registry.load("protocols", origin)()
    train = replace(plan_for(suite, trained, spec).train, sampler=spec.sampler)
    runs = []
    for protocol, evaluated in protocols.items():
        plan = plan_for(suite, evaluated, spec, corruption).limited(limit)
        other = replace(
            spec,
            suite=suite.name,
            protocol=protocol,
            recipe=transferred(spec.recipe) if protocol != spec.protocol else spec.recipe,
            evaluated=other_data(suite, plan),
            scores={},
            corruption=plan.corruption,
            temperature=temperature or spec.temperature,
            limit=limit or 0,
            trained_by=origin if method.sees_images() and train != replace(plan.train, sampler=spec.sampler) else "",
        )
        scores = open_scores(evaluated.scores)
        runs.append(Run(other, replace(plan, train=train), method, settings, evaluated, scores))
    return runs


def suite_of(suite: Suite, spec: Spec) -> Suite:
    """The suite with the backbone, the dataset, the number of shots and the halves of the classes of a run."""
    entry = DatasetEntry(
        name=spec.dataset, dataset=spec.dataset_plugin or spec.dataset, options=dict(spec.dataset_options)
    )
    shots = spec.shots or suite.shots
    suite = replace(suite.with_entry(entry), backbone=spec.backbone, shots=shots, few_shots=(shots,))
    return replace(suite, split=(spec.split,))


def plan_for(suite: Suite, protocol: Protocol, spec: Spec, corruption: Corruption | None = None) -> Plan:
    """What a protocol trains on and evaluates, corrupted or not, with the dataset of a run."""
    own = suite.with_datasets(protocol.role, [spec.dataset])
    (plan,) = plans_of(protocol, own, spec.data_seed, corruption)
    return plan


def transferred(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe as another protocol sees it."""
    return {**recipe, "origin": "transferred"} if recipe.get("origin") in ("paper", "authors") else recipe
