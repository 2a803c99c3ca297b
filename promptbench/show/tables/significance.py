"""One row against all others: an exact test over datasets, intervals over seeds, and how many seeds would tell.

Seeds are averaged first; then the pairs of the test are the datasets that the named row has a figure of. A row without
one of them is not tested: on fewer datasets its p would stand for another question than those beside it, and datasets
are seldom missing by chance. To compare on the datasets that all rows have, choose them.

Where a table's lines are datasets, the figures of a column are those of its lines, such as H of each dataset. Where its
columns are, as on the targets of one source, they are those of the columns that the average is over.

The interval is of the differences of what sums the column up, the average of the table or its only dataset, seed by
seed. Average H is H of averages, so that its difference is near the mean difference over datasets and not the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from promptbench.config import UsageError, unknown
from promptbench.metrics.statistics import DECIMALS, holm, paired_interval, seeds_needed, wilcoxon
from promptbench.protocol import Column
from promptbench.show.tables.beside_papers import OF_SOURCE
from promptbench.show.tables.formats.texts import interval
from promptbench.show.tables.table import Cell, Line, Table, Test, Tested
from promptbench.show.tables.views import references

COULD = (
    "Behind each: the mean of the paired differences and its 95 % interval, in points; how many seeds there are, and "
    "how many could show a difference of 1 point in 4 of 5 cases, ceil((2.8 s / 1 point)^2), with s the standard "
    "deviation of those differences (ddof 1)."
)


class Figures(NamedTuple):
    """The figures of a row in one column: of each dataset that has one, and what sums them up.

    Attributes:
        line: The line that sums the row up: its average, or its only block.
        by_dataset: Means over seeds.
        whole: The figure of that line.
    """

    line: Line
    by_dataset: Mapping[str, float]
    whole: Cell


def figures_of(table: Table, column: Column) -> dict[str, list[Figures]]:
    """The figures of all rows that are measured here: by block where each is an experiment of its own, such as a score.

    A table whose lines are datasets has one such block, "".
    """
    lines = [line for line in table.lines if not (line.published or line.versus)]
    if table.averaged:
        return {"": list(_along_lines(lines, column))}
    found: dict[str, list[Figures]] = {}
    for line in lines:
        means = {one.key.rpartition("/")[0]: _cell(line, one).mean for one in _averaged_over(table, column)}
        found.setdefault(line.group, []).append(Figures(line, _known(means), _cell(line, column)))
    return found


def _along_lines(lines: Sequence[Line], column: Column) -> Iterator[Figures]:
    means: dict[str, dict[str, float | None]] = {}
    sums: dict[str, Line] = {}
    for line in lines:
        if line.kind == "block":
            means.setdefault(line.row.label, {})[line.group] = _cell(line, column).mean
        if line.kind in ("block", "average"):
            sums[line.row.label] = line  # averages stand behind all blocks
    for label, line in sums.items():
        yield Figures(line, _known(means[label]), _cell(line, column))


def _averaged_over(table: Table, column: Column) -> list[Column]:
    """The columns that an average is over; of another column, itself."""
    what, _, metric = column.key.rpartition("/")
    if what != "average":
        return [column]
    keys = {f"{apart}/{metric}" for apart in (*OF_SOURCE, "average")}
    return [one for one in table.columns if one.key.endswith(f"/{metric}") and one.key not in keys]


def _cell(line: Line, column: Column) -> Cell:
    """The cell of a column; what sees no training image has one figure for any number of shots."""
    cell = line.cells.get(column.key, Cell())
    if cell.mean is None and line.shots == (0,):
        return line.cells.get(f"0/{column.key.rpartition('/')[2]}", cell)
    return cell


def _known(means: Mapping[str, float | None]) -> dict[str, float]:
    return {name: mean for name, mean in means.items() if mean is not None}


def with_tests(tables: Sequence[Table], reference: str, column: str = "") -> list[Table]:
    """The tables with the tests of every other row against one.

    Args:
        tables: Those without the row or the column stay as they are.
        reference: A row's label, or a method that has one row.
        column: Title or key of the column tested; "" for the one that sums each table up.

    Raises:
        UsageError: No table has such a row or column, the method has several rows, or it has no figure in any of them.
    """
    labels = references(tables, reference, "test against")
    columns = columns_of(tables, column)
    tested = []
    for table, label, chosen in zip(tables, labels, columns, strict=True):
        tests = list(_tests(table, label, chosen)) if label and chosen else []
        tested.append(replace(table, tests=tuple(tests)))
    if not any(table.tests for table in tested):
        titles = " or ".join(dict.fromkeys(one.title for one in columns if one))
        raise UsageError(f"Nothing can be tested against {reference}, which has no {titles}; name another --column.")
    return tested


def columns_of(tables: Sequence[Table], title: str = "") -> list[Column | None]:
    """The column that is compared in each table; None where it has none of this title or key.

    Raises:
        UsageError: No table has such a column.
    """
    if not title:
        return [table.main_column for table in tables]
    found = [table.column(title) for table in tables]
    if not any(found):
        known = dict.fromkeys(column.title for column in chain.from_iterable(table.columns for table in tables))
        raise unknown("column", title, known)
    return found


def _tests(table: Table, label: str, column: Column) -> Iterator[Test]:
    for group, rows in figures_of(table, column).items():
        for reference in (one for one in rows if one.line.row.label == label and one.by_dataset):
            tested = [_tested(table, one, reference, column) for one in rows if one is not reference]
            yield Test(label, column, group, tuple(reference.by_dataset), _corrected(tested))


def _tested(table: Table, row: Figures, reference: Figures, column: Column) -> Tested:
    by_seed = seed_differences(row, reference)
    over_seeds = Tested(
        line=row.line,
        seeds=len(by_seed),
        interval=paired_interval(by_seed) if by_seed else None,
        needed=seeds_needed(by_seed) if len(by_seed) > 1 else None,
    )
    missing = [table.title(name) for name in reference.by_dataset if name not in row.by_dataset]
    if missing:
        return replace(over_seeds, why=_why_not(row, missing, column))
    pairs = [round(row.by_dataset[name] - figure, DECIMALS) for name, figure in reference.by_dataset.items()]
    better = [-value if column.lower else value for value in pairs]
    return replace(
        over_seeds,
        difference=math.fsum(pairs) / len(pairs),
        won=sum(value > 0 for value in better),
        tied=pairs.count(0),
        lost=sum(value < 0 for value in better),
        p=wilcoxon(pairs),
    )


def _why_not(row: Figures, missing: Sequence[str], column: Column) -> str:
    """Why a row is not tested: in the table's own words where it has no figure at all."""
    if not row.by_dataset and row.whole.reason:
        return row.whole.reason
    return f"not tested: no {column.title} on {', '.join(missing)}"


def _corrected(tested: Sequence[Tested]) -> tuple[Tested, ...]:
    corrected = iter(holm([one.p for one in tested if one.p is not None]))
    return tuple(one if one.p is None else replace(one, holm=next(corrected)) for one in tested)


def seed_differences(row: Figures, reference: Figures) -> list[float]:
    """The differences of what sums two rows up, of each seed that both have."""
    theirs = reference.whole.values
    return [value - theirs[seed] for seed, value in row.whole.values.items() if seed in theirs]


def with_seeds_that_do_not_tell(tables: Sequence[Table], reference: str, column: str = "") -> list[Table]:
    """The tables with a remark on the rows that their seeds do not separate from one: the interval holds 0.

    Args:
        tables: Those without the row or the column stay as they are.
        reference: A row's label, or a method that has one row.
        column: Title or key of the column compared; "" for the one that sums each table up.

    Raises:
        UsageError: No table has such a row or column, or the method has several rows.
    """
    labels = references(tables, reference, "compare with")
    found = []
    for table, label, chosen in zip(tables, labels, columns_of(tables, column), strict=True):
        remarks = list(_warnings(table, label, chosen)) if label and chosen else []
        found.append(replace(table, remarks=tuple(dict.fromkeys([*table.remarks, *remarks]))))
    return found


def _warnings(table: Table, label: str, column: Column) -> Iterator[str]:
    several = False
    for group, rows in figures_of(table, column).items():
        of = f"{column.title}, {group}" if group and len(table.groups) > 1 else column.title
        for reference in (one for one in rows if one.line.row.label == label):
            others = {one.line.row.label: seed_differences(one, reference) for one in rows if one is not reference}
            close = {name: by_seed for name, by_seed in others.items() if len(by_seed) > 1 and _holds_zero(by_seed)}
            alone = [name for name, by_seed in others.items() if len(by_seed) == 1]
            several |= bool(close)
            if close:
                said = ", ".join(f"{name} {_seeds_said(by_seed)}" for name, by_seed in close.items())
                yield f"Warning: the seeds cannot separate these rows from {label} by {of}: {said}."
            if alone:
                yield f"Warning: one seed cannot separate these rows from {label} by {of}: {', '.join(alone)}."
    if several:
        yield COULD


def _holds_zero(by_seed: Sequence[float]) -> bool:
    found = paired_interval(by_seed)
    return found.low <= 0 <= found.high


def _seeds_said(by_seed: Sequence[float]) -> str:
    return f"{interval(paired_interval(by_seed))} ({len(by_seed)} seeds; {seeds_needed(by_seed)} could)"
