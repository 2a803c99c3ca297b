"""Tables on the terminal: what of them a protocol decides, and what the suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptbench import registry
from promptbench.averages import TableLayout
from promptbench.config import unknown
from promptbench.protocol import Column, Protocol
from promptbench.results import Result
from promptbench.suite import Suite
from promptbench.tables import render


def print_tables(
    results: Sequence[Result],
    suites: Sequence[Suite],
    methods: Sequence[str],
    datasets: Sequence[str],
    fmt: str = "md",
    metric: str = "",
) -> None:
    """One table per protocol."""
    protocols = dict.fromkeys(result.spec.protocol for result in results)
    for number, protocol in enumerate(protocols):
        chosen = [result for result in results if result.spec.protocol == protocol]
        shown = presentation(chosen, suites, methods, datasets)
        layout = layout_of(protocol, metric, shown["datasets"])
        print("\n" * (number > 0) + render(chosen, layout, fmt, **shown), end="")


def layout_of(protocol: str, metric: str = "", order: Sequence[str] = ()) -> TableLayout:
    """What a protocol's table shows.

    Args:
        protocol: Its name.
        metric: One of its `metrics`; "" for the first.
        order: Names of datasets, in the order that evaluations on them come.

    Raises:
        UsageError: The protocol has no such metric.
    """
    own: Protocol = registry.load("protocols", protocol)()
    if metric and metric not in own.metrics:
        raise unknown(f"metric of {protocol}", metric, own.metrics)
    metric = metric or own.metrics[0]
    places = {name: place for place, name in reversed(list(enumerate(order)))}

    def columns(results: Sequence[Result]) -> Sequence[Column]:
        found = {name for result in results for name in result.conditions.get("images", {})}
        evaluations = sorted(found, key=lambda name: (places.get(name, len(places)), name))
        values: set[Any] = {getattr(result.spec, own.along, None) for result in results}
        return own.columns(metric, evaluations, sorted(values, key=lambda value: (value is None, value or 0)))

    def blocks(result: Result, of: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        along = getattr(result.spec, own.along, None)
        return own.blocks(metric, result.spec.dataset, along, result.metrics if of is None else of)

    return TableLayout(
        columns=columns,
        derived=own.summarize,
        blocks=blocks,
        notes=lambda result: blocks(result, result.notes),
        along=own.along,
        averaged=own.averaged,
        blocks_are=own.blocks_are,
        subject="" if metric == own.metrics[0] else metric,
    )


def presentation(
    results: Sequence[Result], suites: Sequence[Suite], methods: Sequence[str], datasets: Sequence[str]
) -> dict[str, Any]:
    """How a table of these results is laid out, as arguments of `render`.

    A suite speaks for its own datasets: its note stays away from a table of others alone.
    """
    seen: dict[str, set[str]] = {}
    for result in results:
        seen.setdefault(result.spec.suite, set()).add(result.spec.dataset)
    known = [suite for suite in suites if suite.name in seen]
    of_own = [suite for suite in known if seen[suite.name] & {entry.name for entry in suite.entries()}]
    return {
        "notes": {suite.name: suite.note for suite in of_own},
        "ranked": bool(known) and all(suite.ranked for suite in known),
        "methods": methods or [label for suite in known for label in (*suite.companions, *suite.lineup)],
        "datasets": datasets or [entry.name for suite in known for entry in suite.entries()],
    }
