"""Tables as text, the same bytes every time: what of them a protocol decides, what the suites, and what the reader."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, unknown
from promptbench.protocol import Protocol
from promptbench.results import papers
from promptbench.results.knowledge import SELECTIONS, selection_named, selection_of
from promptbench.results.result import Result, read_results
from promptbench.show.tables.beside_papers import with_published
from promptbench.show.tables.cost import with_cost
from promptbench.show.tables.formats import latex
from promptbench.show.tables.formats.records import render_csv, render_csv_long, render_json
from promptbench.show.tables.formats.texts import Style, html_sections, render_html, render_markdown
from promptbench.show.tables.rows import build_tables, setting_named
from promptbench.show.tables.significance import with_seeds_that_do_not_tell, with_tests
from promptbench.show.tables.table import Table, TableLayout
from promptbench.show.tables.views import averages_of, per_seed, sort_by, with_differences, without_means
from promptbench.suite import Suite, load_suite, suite_names

ALL = "all"  # protocols
PAGE_COLUMNS = ("one", "two")

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
        test: The row that all others are tested against; "" for none.
        column: The column that is tested; "" for the one that sums a table up.
        published: Whether papers' figures stand beside ours.
        selection: Only rows whose settings were chosen so, one of `SELECTIONS`; "" for all.
        cost: Whether what runs cost stands beside their figures.
        plain: Whether LaTeX is one tabular per table.
        cite: Whether methods are cited in LaTeX.
        columns: Of the page that LaTeX is for, one of `PAGE_COLUMNS`.
        companions: Whether the suite's companions are there where nobody asked for them.
        means: Whether the mean of what each dataset derives, such as H, stands beside that of averages.
        averages: Whether only lines that sum a table up are there.
        appendix: Whether the recipe of every row is told.
        anonymous: Whether nothing says who made the results where.
    """

    format: str = "md"
    metric: str = ""
    group_by: str = ""
    per_seed: bool = False
    sort: str = ""
    delta: str = ""
    test: str = ""
    column: str = ""
    published: bool = False
    selection: str = ""
    cost: bool = False
    plain: bool = False
    cite: bool = False
    columns: str = PAGE_COLUMNS[0]
    companions: bool = True
    means: bool = True
    averages: bool = False
    appendix: bool = False
    anonymous: bool = False


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which stored results are to be shown, and how.

    Attributes:
        places: Folders that `run` wrote to, or result files.
        protocols: Names, or `all`.
        methods: Only these, in this order, and the suite's companions; all where there are none.
        datasets: Only these, in this order; all where there are none.
        view: What the reader asks of the tables.

    Raises:
        UsageError: A name is not known, before anything is read.
    """

    places: Sequence[str | Path]
    protocols: Sequence[str]
    methods: Sequence[str] = ()
    datasets: Sequence[str] = ()
    view: View = View()

    def __post_init__(self) -> None:
        for protocol in self.protocols:
            if protocol not in (*registry.names("protocols"), ALL):
                raise unknown("protocol", protocol, registry.names("protocols"))
        if self.view.format not in FORMATS:
            raise unknown("format", self.view.format, FORMATS)
        if self.view.cite and self.view.format != "latex":
            raise UsageError(f"--cite is for --format latex, not {self.view.format}; --bib goes with every format.")
        if self.view.columns not in PAGE_COLUMNS:
            raise unknown("number of columns", self.view.columns, PAGE_COLUMNS)
        if self.view.column and not (self.view.test or self.view.delta):
            raise UsageError(
                "--column says what --test compares, or what the seeds of --delta tell; name a row for one."
            )
        if self.view.selection:
            selection_named(self.view.selection)


def stored_tables(question: Question) -> list[Table]:
    """The tables of stored results.

    Raises:
        UsageError: What is asked for is not among them.
    """
    suites = [load_suite(name) for name in suite_names()]
    results = chosen_results(question, suites)
    return tables_of(results, suites, question.methods, question.datasets, question.view)


def chosen_results(question: Question, suites: Sequence[Suite]) -> list[Result]:
    """The stored results of these protocols, methods and datasets, protocol by protocol.

    Raises:
        UsageError: There are none of one of them.
    """
    asked = list(dict.fromkeys(question.protocols))
    protocols = list(registry.names("protocols")) if ALL in asked else asked
    said = "stored" if ALL in asked else " or ".join(asked)
    places = ", ".join(map(str, question.places))
    with uncollected():
        stored = read_results(*question.places)
    results: list[Result] = []
    for name in protocols:
        results += [result for result in stored if result.spec.protocol == name]
    companions = {(suite.name, label) for suite in suites for label in suite.companions}
    for wanted, kind in ((question.methods, "label"), (question.datasets, "dataset")):
        present = {getattr(result.spec, kind) for result in results}
        for name in wanted:
            if name not in present:
                raise UsageError(f"There is no {said} result of '{name}' in {places}.")
        beside = companions if kind == "label" else set()
        results = [
            result
            for result in results
            if not wanted or getattr(result.spec, kind) in wanted or (result.spec.suite, result.spec.label) in beside
        ]
    there = {result.spec.protocol for result in results}
    if not results or (ALL not in asked and set(asked) - there):
        none = said if ALL in asked else " or ".join(name for name in asked if name not in there)
        others = sorted({result.spec.protocol for result in stored} - set(asked))
        instead = f"ask for others that are there, --protocol {' '.join(others)}, " if others else ""
        raise UsageError(
            f"There are no {none} results in {places}; {instead}make some with "
            "`promptbench run`, or name another folder with --results."
        )
    return results


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, which would walk over thousands of records again and again and find no garbage."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Tables:
    """The tables of some results; `str` gives Markdown, and a notebook shows them.

    Args:
        tables: One per protocol, suite and backbone.
        view: What was asked of them.
    """

    def __init__(self, tables: Sequence[Table], view: View) -> None:
        self.tables, self.view = tables, view

    def __str__(self) -> str:
        return self.text("md").removesuffix("\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_sections(self.tables)

    def text(self, format: str) -> str:
        """The tables in one of `FORMATS`."""
        return show(self.tables, replace(self.view, format=format))

    def latex(self, *, plain: bool = False, cite: bool = False, columns: str = PAGE_COLUMNS[0]) -> str:
        """LaTeX.

        Args:
            plain: Whether each table is one tabular, however wide.
            cite: Whether methods' papers are cited.
            columns: Of the page, `one` or `two`.
        """
        return show(self.tables, replace(self.view, format="latex", plain=plain, cite=cite, columns=columns))

    def html(self) -> str:
        """A page that needs nothing else."""
        return self.text("html")

    def csv(self, *, long: bool = False) -> str:
        """CSV with all decimals: a line of the table each, or with `long` one figure a line."""
        return self.text("csv-long" if long else "csv")

    def json(self) -> str:
        """JSON with all decimals, and the runs behind every figure."""
        return self.text("json")


def table(
    results: Iterable[Result],
    *,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    metric: str = "",
    group_by: str = "",
    per_seed: bool = False,
    sort: str = "",
    delta: str = "",
    test: str = "",
    column: str = "",
    published: bool = False,
    selection: str = "",
    cost: bool = False,
    companions: bool = True,
    means: bool = True,
    averages: bool = False,
    appendix: bool = False,
    anonymous: bool = False,
) -> Tables:
    """The comparison tables of results, one per protocol, suite and backbone, as `promptbench table` prints them.

    Args:
        results: Of `run` or `read_results`.
        methods: Their order; the suite's if none.
        datasets: Their order; the suite's if none.
        metric: One of the protocol's `metrics`; "" for its first.
        group_by: A setting whose values set rows apart, such as `maple.depth`.
        per_seed: Whether a line is a seed instead of the mean.
        sort: The column that methods are sorted by, best first.
        delta: The row that differences are taken to.
        test: The row that all others are tested against, over datasets.
        column: The column that is tested; "" for the one that sums a table up, such as H.
        published: Whether papers' figures stand beside ours.
        selection: Only rows whose settings were chosen so, such as `none` or `pseudo-new classes`.
        cost: Whether what runs cost stands beside their figures.
        companions: Whether the suite's companions are there where `methods` does not name them.
        means: Whether the mean of the datasets' H stands beside the H of averages.
        averages: Whether only the lines that sum a table up are there.
        appendix: Whether the recipe of every row is told.
        anonymous: Whether nothing says who made the results where.

    Raises:
        UsageError: A name is not among the results, or they cannot be told apart.
    """
    view = View(
        metric=metric,
        group_by=group_by,
        per_seed=per_seed,
        sort=sort,
        delta=delta,
        test=test,
        column=column,
        published=published,
        selection=selection,
        cost=cost,
        companions=companions,
        means=means,
        averages=averages,
        appendix=appendix,
        anonymous=anonymous,
    )
    suites = [load_suite(name) for name in suite_names()]
    return Tables(tables_of(list(results), suites, methods, datasets, view), view)


def print_tables(
    results: Sequence[Result],
    suites: Sequence[Suite],
    methods: Sequence[str],
    datasets: Sequence[str],
    view: View | None = None,
) -> list[Table]:
    """Print one table per protocol, suite and backbone; returns them."""
    view = view or View()
    tables = tables_of(results, suites, methods, datasets, view)
    print(show(tables, view), end="")
    return tables


def tables_of(
    results: Sequence[Result], suites: Sequence[Suite], methods: Sequence[str], datasets: Sequence[str], view: View
) -> list[Table]:
    """The tables that a reader asks for.

    Raises:
        UsageError: The reader names what is not there, or the results cannot be told apart.
    """
    by_protocol: dict[str, list[Result]] = {}
    if view.anonymous:
        from promptbench.results.anonymous import anonymous

        results = [anonymous(result) for result in results]
    if not view.companions:
        results = without_companions(results, suites, methods)
    for result in selected(results, view.selection) if view.selection else results:
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
        if view.selection:
            published = [row for row in published if row.selection.kind == selection_named(view.selection)]
        tables = [with_published(table, published) for table in tables]
    tables = [with_cost(table) for table in tables] if view.cost else tables
    tables = sort_by(tables, view.sort) if view.sort else tables
    tables = with_tests(tables, view.test, view.column) if view.test else tables
    tables = with_differences(tables, view.delta) if view.delta else tables
    for reference in dict.fromkeys(filter(None, (view.test, view.delta))):
        tables = with_seeds_that_do_not_tell(tables, reference, view.column)
    tables = tables if view.means else [without_means(table) for table in tables]
    tables = [averages_of(table) for table in tables] if view.averages else tables
    return [per_seed(table) for table in tables] if view.per_seed else tables


def without_companions(results: Sequence[Result], suites: Sequence[Suite], methods: Sequence[str]) -> list[Result]:
    """The results but those of methods that a suite adds to every comparison and nobody named.

    Raises:
        UsageError: There are no others.
    """
    companions: set[tuple[str, str]] = set()
    for suite in suites:
        companions.update((suite.name, label) for label in suite.companions if label not in methods)
    found = [result for result in results if (result.spec.suite, result.spec.label) not in companions]
    if results and not found:
        raise UsageError(
            "There are results of companions alone; leave out --no-companions, or name them with --method."
        )
    return found


def selected(results: Sequence[Result], selection: str) -> list[Result]:
    """The results whose settings were chosen in one way.

    Raises:
        UsageError: There is no such way, or none of the results.
    """
    kind = selection_named(selection)
    kinds = {result.name: selection_of(result).kind for result in results}
    found = [result for result in results if kinds[result.name] == kind]
    if results and not found:
        known = [known for known in SELECTIONS if known in kinds.values()]
        raise UsageError(f"No result has settings chosen so: {kind}; these are here: {', '.join(known)}.")
    return found


def show(tables: Sequence[Table], view: View) -> str:
    """The tables in the format asked for, figures in percent, with one decimal but in CSV and JSON.

    Raises:
        UsageError: The format is unknown.
    """
    if view.format not in FORMATS:
        raise unknown("format", view.format, FORMATS)
    cite = citations(tables) if view.cite else {}
    style = Style(view.plain, cite, columns=view.columns, appendix=view.appendix)
    return FORMATS[view.format](tables, style)


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
