"""What was trained before, used again: other evaluations of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, build
from promptbench.planning import Run, load_protocol, other_data
from promptbench.protocol import Plan
from promptbench.recipe import Recipe, Settings
from promptbench.results import Result
from promptbench.selection import FILE
from promptbench.spec import Spec
from promptbench.suite import Suite


def folder_of(result: Path | str) -> Path:
    """The folder that `run` wrote to, of a result file in it.

    Raises:
        UsageError: The file lies elsewhere.
    """
    path = Path(result).absolute()
    if len(path.parents) < 4 or path.parents[2].name != "results":
        raise UsageError(f"{result} does not lie where `run` put it; name its folder with --output.")
    return path.parents[3]


def evaluations_of(result: Result, protocols: Sequence[str], suite: Suite) -> list[Run]:
    """The evaluations of other protocols for what a run trained: its images, its settings, its seeds.

    An author's recipe of the run's own protocol is only transferred to another.

    Raises:
        UsageError: The suite lacks the dataset, or the protocol never trains with that number of shots.
    """
    spec = result.spec
    if spec.sampler.startswith(FILE):
        raise UsageError(f"{result.name} was trained on a stored sample; name it again with `run --sampler`.")
    suite = with_shots(suite, spec)
    method = registry.load("methods", spec.method)
    recipe = build(Recipe, spec.recipe, result.name) if spec.recipe else None
    provenance = dict(result.conditions.get("provenance", {}))
    settings = Settings(build(method.Config, spec.config, result.name), recipe, provenance, frozenset())
    train = replace(plan_for(suite, spec.protocol, spec).train, sampler=spec.sampler)
    runs = []
    for protocol in protocols:
        plan = plan_for(suite, protocol, spec)
        other = replace(
            spec,
            suite=suite.name,
            protocol=protocol,
            recipe=transferred(spec.recipe) if protocol != spec.protocol else spec.recipe,
            evaluated=other_data(suite, plan),
            trained_by="" if train == replace(plan.train, sampler=spec.sampler) else spec.protocol,
        )
        runs.append(Run(other, replace(plan, train=train), method, settings))
    return runs


def with_shots(suite: Suite, spec: Spec) -> Suite:
    """The suite with the number of shots that a run trained with."""
    return replace(suite, shots=spec.shots, few_shots=(spec.shots,)) if spec.shots else suite


def plan_for(suite: Suite, protocol: str, spec: Spec) -> Plan:
    """What a protocol trains on and evaluates with the dataset of a run."""
    one = load_protocol(protocol)
    (plan,) = one.plan(suite.with_datasets(one.role, [spec.dataset]), spec.data_seed)
    return plan


def transferred(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe as another protocol sees it."""
    return {**recipe, "origin": "transferred"} if recipe.get("origin") in ("paper", "authors") else recipe
