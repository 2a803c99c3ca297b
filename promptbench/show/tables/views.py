"""Other views of a table: one line per seed, methods sorted by a column, differences to a reference method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from promptbench.config import UsageError, unknown
from promptbench.protocol import Column
from promptbench.show.tables.formats.texts import seeds_text
from promptbench.show.tables.rows import MEANS_APART, SPREAD
from promptbench.show.tables.table import Cell, Line, Table, population_std


def per_seed(table: Table) -> Table:
    """A line for every seed instead of the mean over them; nothing is ranked."""
    lines = tuple(chain.from_iterable(map(_seeds_of, table.lines)))
    remarks = tuple(remark for remark in table.remarks if remark != SPREAD)
    return replace(table, lines=lines, remarks=remarks, ranked=False, per_seed=True)


def without_means(table: Table) -> Table:
    """The table without the mean of what each dataset derives, such as H, and without what is said of it."""
    lines = tuple(line for line in table.lines if line.kind != "mean")
    return replace(table, lines=lines, remarks=tuple(map(without_apart, table.remarks)))


def averages_of(table: Table) -> Table:
    """The lines that sum a table up alone; of a table without an average, all."""
    lines = tuple(line for line in table.lines if line.kind != "block")
    return replace(table, lines=lines) if lines else table


def without_apart(remark: str) -> str:
    """What is said of an average, without the mean that is not there."""
    start, apart, _ = remark.partition(MEANS_APART)
    return f"{start}." if apart else remark


def sort_by(tables: Sequence[Table], title: str) -> list[Table]:
    """Methods by a column, best first, those without a figure last.

    What decides is the average over the blocks where the table has one, and else each block's own figure.

    Args:
        tables: Those without the column stay as they are.
        title: A column's title or key, such as `H` or `new/accuracy`.

    Raises:
        UsageError: No table has such a column.
    """
    if not any(table.column(title) for table in tables):
        columns = chain.from_iterable(table.columns for table in tables)
        raise unknown("column", title, dict.fromkeys(column.title for column in columns))
    return [_sorted(table, column) if (column := table.column(title)) else table for table in tables]


def with_differences(tables: Sequence[Table], reference: str) -> list[Table]:
    """The tables with a line Δ for every other method at the end of each group: its figures minus the reference's.

    ± is the population standard deviation of the difference, seed by seed, where both have the same seeds.

    Args:
        tables: Those without the row stay as they are.
        reference: A row's label, or a method that has one row.

    Raises:
        UsageError: No table has such a row, or the method has several.
    """
    labels = references(tables, reference, "take differences to")
    return [_with_differences(table, label) if label else table for table, label in zip(tables, labels, strict=True)]


def references(tables: Sequence[Table], name: str, wanted: str) -> list[str]:
    """The label of the row of each table that is meant, or "".

    Args:
        tables: Any.
        name: A row's label, with the method's title or name, or a method that has one row.
        wanted: What for, such as `take differences to`.

    Raises:
        UsageError: No table has such a row, or the method has several.
    """
    labels = [_reference(table, name, wanted) for table in tables]
    if not any(labels):
        rows = chain.from_iterable(table.rows for table in tables)
        known = set(chain.from_iterable((row.label, row.typed, row.method) for row in rows))
        raise unknown(f"row to {wanted}", name, known)
    return labels


def _seeds_of(line: Line) -> list[Line]:
    seeds = sorted(set(chain.from_iterable(cell.values for cell in line.cells.values())))
    lines = []
    for seed in seeds:
        results = tuple(result for result in line.results if result.spec.seeds == seed)
        names = {result.name for result in results}
        cells = {}
        for key, cell in line.cells.items():
            if seed in cell.values:
                runs = tuple(name for name in cell.runs if name in names)
                far = (seed,) if seed in cell.outliers else ()
                cells[key] = Cell(mean=cell.values[seed], values={seed: cell.values[seed]}, outliers=far, runs=runs)
            else:
                cells[key] = Cell(gap="–", reason=cell.reason)
        lines.append(replace(line, results=results, n=seeds_text([seed], ""), cells=cells))
    return lines or [line]


def _sorted(table: Table, column: Column) -> Table:
    own = [line for line in table.lines if line.kind == "average" and not line.published]
    averages = {id(line.row): line.cells[column.key].mean for line in own}

    def rank(line: Line) -> tuple[bool, float]:
        cell = line.cells.get(column.key)
        figure = cell.mean if cell else None
        if averages:
            figure = averages.get(id(line.row))
        if figure is None:
            return bool(line.published), math.inf
        return bool(line.published), figure if column.lower else -figure

    return replace(table, lines=tuple(chain.from_iterable(sorted(part, key=rank) for part in table.parts)))


def _reference(table: Table, name: str, wanted: str) -> str:
    """The label of the row that is meant, or ""."""
    found = [row.label for row in table.rows if name in (row.label, row.typed)] or [
        row.label for row in table.rows if name == row.method
    ]
    if len(found) > 1:
        raise UsageError(f"The method {name!r} has several rows; {wanted} one of {', '.join(found)}.")
    return found[0] if found else ""


def _with_differences(table: Table, label: str) -> Table:
    lines: list[Line] = []
    for group in table.groups:
        lines += group
        for reference in (line for line in group if line.row.label == label):
            others = [line for line in group if line.row.label != label and not line.published]
            lines += [_difference(line, reference) for line in others]
    return replace(table, lines=tuple(lines))


def _difference(line: Line, reference: Line) -> Line:
    cells = {key: _minus(cell, reference.cells.get(key, Cell(gap="–"))) for key, cell in line.cells.items()}
    results = (*line.results, *reference.results)
    return replace(line, cells=cells, results=results, versus=reference.row.label)


def _minus(cell: Cell, other: Cell) -> Cell:
    if cell.mean is None or other.mean is None:
        return Cell(gap="–", reason=cell.reason or other.reason)
    both = {seed: value - other.values[seed] for seed, value in cell.values.items() if seed in other.values}
    paired = len(both) > 1 and both.keys() == cell.values.keys() == other.values.keys()
    spread = population_std(both.values()) if paired else None
    return Cell(mean=cell.mean - other.mean, std=spread, values=both, runs=(*cell.runs, *other.runs))
