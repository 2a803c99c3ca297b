"""Tables on the terminal: what of them a protocol decides, and what the suites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptbench import registry
from promptbench.averages import Column, TableLayout
from promptbench.results import Result
from promptbench.suite import Suite
from promptbench.tables import render


def print_tables(
    results: Sequence[Result], suites: Sequence[Suite], methods: Sequence[str], datasets: Sequence[str], fmt: str = "md"
) -> None:
    """One table per protocol."""
    for protocol in dict.fromkeys(result.spec.protocol for result in results):
        chosen = [result for result in results if result.spec.protocol == protocol]
        print(render(chosen, layout_of(protocol), fmt, **presentation(chosen, suites, methods, datasets)), end="")


def layout_of(protocol: str) -> TableLayout:
    """The columns of a protocol's table."""
    cls = registry.load("protocols", protocol)
    return TableLayout(tuple(Column(*column) for column in cls.columns), cls().summarize)


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
        "methods": methods or [label for suite in known for label in suite.companions],
        "datasets": datasets or [entry.name for suite in known for entry in suite.entries()],
    }
