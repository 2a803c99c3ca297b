"""What is asked for: names become classes and protocols here, once, and what does not fit is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, build, to_mapping
from promptbench.protocol import Plan, Protocol
from promptbench.suite import DatasetEntry, Suite


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for.

    Attributes:
        suite: With datasets, shots and backbone already replaced where the command line names others.
        methods: Labels, in the order that tables show them.
        protocols: Names.
        seeds: (data seed, training seed) pairs.
        assignments: Method or label -> field -> value.
        grid: Method or label -> the settings of each of its variants; each runs.
        sampler: The few-shot sampler, or `file:PATH`, which may hold {dataset}, {shots} and {seed}; "" for a preset's
            own or `coop`.
        precision: One of `numerics.PRECISIONS`.
        device: `cpu`, `cuda` or `cuda:N`.
        deterministic: Whether torch is held to algorithms that always give the same bits.
        flags: What the command line chose itself, such as `shots`, for whoever asks where a value came from.
    """

    suite: Suite
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]
    assignments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    sampler: str = ""
    precision: str = "32"
    device: str = "cpu"
    deterministic: bool = False
    flags: frozenset[str] = frozenset()


def load_protocol(name: str) -> Protocol:
    """An instance of the protocol of that name."""
    protocol: Protocol = registry.load("protocols", name)()
    return protocol


def labels(suite: Suite, asked: Sequence[str]) -> tuple[str, ...]:
    """The methods to run: the suite's companions first, then those asked for, or else the suite's line-up.

    `all` is every registered method.

    Raises:
        UsageError: None is asked for, and the suite has no line-up.
    """
    asked = asked or suite.lineup
    if not asked:
        raise UsageError(f"Name methods with --method; the suite {suite.name} has no line-up of its own.")
    chosen = [label for word in asked for label in (registry.names("methods") if word == "all" else (word,))]
    return tuple(dict.fromkeys([*suite.companions, *chosen]))


def other_data(suite: Suite, plan: Plan) -> dict[str, Any]:
    """The datasets that a plan evaluates besides its own: name to plugin and its fields, resolved."""
    names = dict.fromkeys(evaluation.selection.dataset for evaluation in plan.evaluations)
    entries = [suite.entry(name) for name in names if name != plan.dataset]
    return {entry.name: {"dataset": entry.dataset, **options_of(entry)} for entry in entries}


def options_of(entry: DatasetEntry) -> dict[str, Any]:
    """The fields of a dataset's Config, resolved."""
    cls = registry.load("datasets", entry.dataset)
    return to_mapping(build(cls.Config, dict(entry.options), f"dataset '{entry.name}'"))
