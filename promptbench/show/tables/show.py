"""Tables as text, the same bytes every time: what of them a protocol decides, what the suites, and what the reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from promptbench import registry
from promptbench.config import unknown
from promptbench.protocol import Protocol
from promptbench.results import papers
from promptbench.results.result import Result
from promptbench.show.tables.beside_papers import with_published
from promptbench.show.tables.formats import latex
from promptbench.show.tables.formats.markup import render_html, render_markdown
from promptbench.show.tables.formats.records import render_csv, render_csv_long, render_json
from promptbench.show.tables.formats.texts import Style
from promptbench.show.tables.rows import build_tables, setting_named
from promptbench.show.tables.table import Table, TableLayout
from promptbench.show.tables.views import per_seed, sort_by, with_differences
from promptbench.suite import Suite, load_suite, suite_names

FORMATS: Mapping[str, Callable[[Sequence[Table], Style], str]] = {
    "md": render_markdown,
    "csv": render_csv,
    "csv-long": render_csv_long,
    "latex": latex.render,
    "html": render_html,
    "json": render_json,
}


@dataclass(frozen=True, kw_only=True)
class View:
    """What a reader may ask of tables.

    Attributes:
        format: One of `FORMATS`.
        metric: One of the protocol's `metrics`; "" for its first.
        group_by: A setting whose values set rows apart; "" for none.
        per_seed: Whether a line is a seed instead of the mean.
        sort: The column that methods are sorted by; "" keeps their order.
        delta: The row that differences are taken to; "" for none.
        published: Whether papers' figures stand beside ours.
        plain: Whether LaTeX is one tabular per table.
        cite: Whether methods are cited in LaTeX.
    """

    format: str = "md"
    metric: str = ""
    group_by: str = ""
    per_seed: bool = False
    sort: str = ""
    delta: str = ""
    published: bool = False
    plain: bool = False
    cite: bool = False


def print_tables(
    results: Sequence[Result],
    suites: Sequence[Suite],
    methods: Sequence[str],
    datasets: Sequence[str],
    view: View | None = None,
) -> None:
    """Print one table per protocol, suite and backbone."""
    view = view or View()
    print(show(tables_of(results, suites, methods, datasets, view), view), end="")


def tables_of(
    results: Sequence[Result], suites: Sequence[Suite], methods: Sequence[str], datasets: Sequence[str], view: View
) -> list[Table]:
    """The tables that a reader asks for.

    Raises:
        UsageError: The reader names what is not there, or the results cannot be told apart.
    """
    by_protocol: dict[str, list[Result]] = {}
    for result in results:
        by_protocol.setdefault(result.spec.protocol, []).append(result)
    asked = view.group_by
    grouped = [name for name, of in by_protocol.items() if asked and any(setting_named(one, asked) for one in of)]
    tables = []
    for protocol, chosen in by_protocol.items():
        shown = presentation(chosen, suites, methods, datasets)
        layout = layout_of(protocol, view.metric, shown["datasets"])
        group_by = view.group_by if protocol in grouped or not grouped else ""
        tables += build_tables(chosen, layout, group_by=group_by, **shown)
    if view.published:
        published = papers.load()
        tables = [with_published(table, published) for table in tables]
    tables = sort_by(tables, view.sort) if view.sort else tables
    tables = with_differences(tables, view.delta) if view.delta else tables
    return [per_seed(table) for table in tables] if view.per_seed else tables


def show(tables: Sequence[Table], view: View) -> str:
    """The tables in the format asked for, figures in percent, with one decimal but in CSV and JSON.

    Raises:
        UsageError: The format is unknown.
    """
    if view.format not in FORMATS:
        raise unknown("format", view.format, FORMATS)
    return FORMATS[view.format](tables, Style(plain=view.plain, cite=citations(tables) if view.cite else {}))


def citations(tables: Sequence[Table]) -> dict[str, str]:
    """BibTeX keys of the papers behind the methods of tables, by method."""
    lines = chain.from_iterable(table.lines for table in tables)
    methods = dict.fromkeys(line.row.method for line in lines)
    return {method: key for method in methods if (key := papers.bib_key(method))}


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
    return TableLayout(own, metric or own.metrics[0], order)


def presentation(
    results: Sequence[Result], suites: Sequence[Suite], methods: Sequence[str], datasets: Sequence[str]
) -> dict[str, Any]:
    """What the suites and the reader say of a table of these results, as arguments of `build_tables`.

    A suite speaks for its own datasets: its note stays away from a table of others alone, also where the command line
    has put those in its place.
    """
    seen: dict[str, set[str]] = {}
    for result in results:
        seen.setdefault(result.spec.suite, set()).add(result.spec.dataset)
    known = [suite for suite in suites if suite.name in seen]
    shipped = {suite.name: load_suite(suite.name) if suite.name in suite_names() else suite for suite in known}
    of_own = [suite for suite in known if seen[suite.name] & {entry.name for entry in shipped[suite.name].entries()}]
    return {
        "notes": {suite.name: suite.note for suite in of_own},
        "ranked": {suite.name for suite in known if suite.ranked},
        "methods": methods or list(chain.from_iterable((*suite.companions, *suite.lineup) for suite in known)),
        "datasets": datasets or [entry.name for entry in chain.from_iterable(suite.entries() for suite in known)],
    }
