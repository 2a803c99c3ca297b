"""What a plot is made of: stored results of one protocol, suite and backbone, and the table that they make."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, unknown
from promptbench.protocol import Column
from promptbench.results.result import Result, folder_of, read_results
from promptbench.show.plots.looks import looks_of
from promptbench.show.plots.picture import RECONSTRUCTED
from promptbench.show.tables.formats.texts import seeds_text
from promptbench.show.tables.rows import build_tables
from promptbench.show.tables.show import layout_of
from promptbench.show.tables.table import Cell, Line, Table, TableLayout
from promptbench.suite import Suite, load_suite, suite_names


class NothingToShow(UsageError):
    """What a plot shows is not among the stored files."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a plot is asked to show.

    Attributes:
        places: Folders that `run` wrote to, or result files; for a heat map the one run.
        protocol: The results' one.
        results: Of one suite and backbone; none for a heat map.
        methods: Their order.
        datasets: Their order.
        suite: That of the results, where the package knows it.
        column: Title or key of a column of the protocol's table; "" for the one that sums it up.
        baseline: The method that gains are over; "" for the suite's first companion.
        fields: Fields whose values an ablation runs along, `method.field`.
        score: A name of `promptbench list scores`.
        image: File for a heat map; "" for the first test image of the run's dataset.
        class_name: The class of a heat map; "" for the one that the trained method sees.
        by_dataset: Whether curves are drawn for each dataset, too.
    """

    places: tuple[Path, ...]
    protocol: str = ""
    results: tuple[Result, ...] = ()
    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    suite: Suite | None = None
    column: str = ""
    baseline: str = ""
    fields: tuple[str, ...] = ()
    score: str = ""
    image: str = ""
    class_name: str = ""
    by_dataset: bool = False

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that `run` wrote to; of a result file, the one that it lies in."""
        return tuple(folder_of(place) if place.is_file() else place for place in self.places)

    @property
    def layout(self) -> TableLayout:
        """What the protocol's table shows."""
        return layout_of(self.protocol, order=self.datasets)

    def table(self, results: Iterable[Result] | None = None) -> Table:
        """The table that `promptbench table` makes of these results, or of all that the source has."""
        if results is None:
            return self._table
        (table,) = build_tables(results, self.layout, methods=self.methods, datasets=self.datasets)
        return table

    @cached_property
    def _table(self) -> Table:
        """The table of all results, which several plots of a source start from."""
        return self.table(self.results)

    def per_seed(self, line: Line, column: Column) -> dict[str, float]:
        """The figure of a line seed by seed, where a seed has every block of the line."""
        cell = line.cells.get(column.key, Cell())
        return {seeds_text([seeds], ""): cell.values[seeds] for seeds in line.seeds if seeds in cell.values}


def read_source(
    places: Sequence[str | Path], protocol: str, methods: Sequence[str] = (), datasets: Sequence[str] = (), **more: Any
) -> Source:
    """The stored results of a protocol, and the suite's order of methods and datasets.

    Args:
        places: Folders that `run` wrote to, or result files.
        protocol: Its name.
        methods: Only these, in this order, and the suite's companions; empty for all.
        datasets: Only these, in this order; empty for all.
        more: Further attributes of `Source`.

    Raises:
        NothingToShow: There are no such results.
        UsageError: A place cannot be read, or there are results of several suites or backbones.
    """
    named = ", ".join(map(str, places))
    results = [result for result in read_results(*places) if result.spec.protocol == protocol]
    suite = _suite_of(results, named)
    companions = suite.companions if suite else ()
    for wanted, kind, kept in ((methods, "label", companions), (datasets, "dataset", ())):
        present = {getattr(result.spec, kind) for result in results}
        for name in wanted:
            if results and name not in present:
                raise NothingToShow(f"There is no {protocol} result of '{name}' in {named}.")
        results = [r for r in results if not wanted or getattr(r.spec, kind) in (*wanted, *kept)]
    if not results:
        raise NothingToShow(
            f"There are no {protocol} results in {named}; make some with `promptbench run`, or name another folder "
            "with --results."
        )
    return Source(
        places=tuple(map(Path, places)),
        protocol=protocol,
        results=tuple(results),
        methods=tuple(dict.fromkeys([*methods, *companions, *(suite.lineup if suite else ())])),
        datasets=tuple(datasets or ([entry.name for entry in suite.entries()] if suite else ())),
        suite=suite,
        **more,
    )


def _suite_of(results: Sequence[Result], places: str) -> Suite | None:
    """The one suite of the results, if the package has it."""
    for name in ("suite", "backbone"):
        found = sorted({getattr(result.spec, name) for result in results})
        if len(found) > 1:
            raise UsageError(
                f"A plot shows one {name}, and {places} has {' and '.join(found)}; name files of one with --results."
            )
    names = {result.spec.suite for result in results} & set(suite_names())
    return load_suite(names.pop()) if names else None


def about(
    kind: str, source: Source, table: Table, lines: Iterable[Line], left_out: Collection[str] = ()
) -> dict[str, Any]:
    """What every plot says of its figures.

    Raises:
        NothingToShow: All methods are left out, for want of the figure.
    """
    lines = list(lines)
    if left_out and {name(line) for line in lines} <= set(left_out):
        raise NothingToShow(f"None of {', '.join(left_out)} has the figure that the plot {kind} shows.")
    return {
        "kind": kind,
        "protocol": table.protocol,
        "suite": table.suite,
        "backbone": table.backbone,
        "shots": ["all" if shots is None else shots for shots in table.shots],
        "seeds": [seeds_text([seeds], "") for seeds in table.seeds],
        "methods": list(dict.fromkeys(map(name, lines))),
        "looks": looks_of([(name(line), line.row.method) for line in lines]),
        "n": {name(line): line.n for line in lines},
        "reconstructed": any(line.row.reconstructed for line in lines),
        "note": source.suite.note if source.suite else "",
    }


def overall(table: Table) -> list[Line]:
    """The lines that sum the table up: averages, or the only block, or the first."""
    averages = [line for line in table.lines if line.kind == "average"]
    return averages or [line for line in table.lines if line.group == table.lines[0].group]


def with_figures(lines: Iterable[Line], *columns: Column) -> tuple[list[tuple[Line, list[Cell]]], list[str]]:
    """The lines that have a figure in each of these columns, with their cells; and the names of the others."""
    shown, missing = [], []
    for line in lines:
        cells = [line.cells.get(column.key, Cell()) for column in columns]
        if any(cell.mean is None for cell in cells):
            missing.append(name(line))
        else:
            shown.append((line, cells))
    return shown, missing


def column_of(table: Table, wanted: str = "") -> Column:
    """The column of that title or key; without one the table's summary: H, an average, or what stands last.

    Raises:
        UsageError: The table has no such column.
    """
    if wanted:
        found = table.column(wanted)
        if not found:
            raise unknown(f"column of {table.protocol}", wanted, [column.title for column in table.columns])
        return found
    return table.main_column


def axis(table: Table, line: Line, column: Column) -> str:
    """The label of an axis that shows a column, with its unit."""
    says_what = column.derived or metric_of(column).lower() in column.title.lower()
    return f"{column.title}{'' if says_what else f' {metric_of(column)}'}, {over(table, line)} (%)"


def over(table: Table, line: Line) -> str:
    """What the figures of a line are averaged over, or belong to."""
    if line.kind != "average":
        return f"{table.blocks_are} {table.title(line.group)}"
    return f"mean of {len({result.spec.dataset for result in line.results})} {table.blocks_are}s"


def metric_of(column: Column) -> str:
    """What the figures of a column are: `accuracy`, `AUROC`."""
    metric = column.key.rpartition("/")[2]
    return metric if metric == "accuracy" else metric.upper()


def titled(label: str) -> str:
    """What papers call a method that is typed like this, with its preset if any."""
    method, _, preset = label.partition("@")
    title = registry.titles("methods", [method])[method]
    return f"{title} ({preset})" if preset else title


def name(line: Line) -> str:
    """The name of a method in a plot, with the mark of a reconstruction."""
    return line.row.label + RECONSTRUCTED * line.row.reconstructed
