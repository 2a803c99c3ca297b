"""Papers' figures beside ours: what each prints, the gap, the verdict, and rows that only papers have.

Which figure of a paper is meant follows from the column, `<what>/<metric>`: what is a number of shots, the source
(`source`, `id`), the average, or a dataset evaluated on; a metric of the protocol itself, such as `h`, is of the block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

from promptbench.protocol import Column
from promptbench.results.papers import METRICS, Published, choose, compare, find, same_backbone
from promptbench.show.tables.table import Cell, Comparison, Line, Row, Table
from promptbench.suite import load_suite

OF_SOURCE = ("source", "id")
NOT_EQUAL = "seeds differ from dataset to dataset"


class Figure(NamedTuple):
    """What a paper would call a figure of ours; shots only where they tell columns apart."""

    dataset: str
    metric: str
    score: str
    shots: int | None


def with_published(table: Table, published: Sequence[Published]) -> Table:
    """The table with comparisons, and with lines of methods that papers alone have figures of.

    Where none can be compared, a remark says why.

    Args:
        table: Of means over seeds.
        published: As `papers.load` gives them.
    """
    rows = [row for row in published if row.protocol == table.protocol and same_backbone(table.backbone, row.backbone)]
    if table.suite == "mini" or not rows:
        reason = f"no paper's {table.protocol} figures are known of the backbone {table.backbone}"
        reason = "the mini suite is no public benchmark" if table.suite == "mini" else reason
        return replace(table, remarks=(*table.remarks, f"Published figures: not comparable, {reason}."))
    comparisons: dict[tuple[str, Figure], Comparison] = {}
    for line, column in product(table.lines, table.columns):
        figure = figure_of(table, line, column)
        if figure and (line.row.label, figure) not in comparisons:
            compared = _compared(line, column, figure, published)
            comparisons |= {(line.row.label, figure): compared} if compared else {}
    return replace(table, lines=_with_papers(table, rows), comparisons=tuple(comparisons.values()))


def figure_of(table: Table, line: Line, column: Column) -> Figure | None:
    """What papers call the figure of a line and column; None if it is none of theirs."""
    metrics = METRICS.get(table.protocol, ())
    if line.kind == "mean" or line.versus or line.published:
        return None
    of_block = _average(line, set(_trained_on(line))) if line.kind == "average" else line.group
    if column.key in metrics:
        return Figure(of_block, column.key, "", None)
    what, _, metric = column.key.rpartition("/")
    if metric not in metrics:
        return None
    score = "" if table.blocks_are == "dataset" or what in OF_SOURCE else line.group.lower().replace("-", "_")
    if what.isdecimal():
        return Figure(of_block, metric, score, int(what))
    if what in OF_SOURCE:
        return Figure(_trained_on(line)[0], metric, score, None)
    dataset = _average(line, set(chain.from_iterable(result.spec.evaluated for result in line.results)))
    return Figure(dataset if what == "average" else what, metric, score, None)


def _average(line: Line, datasets: set[str]) -> str:
    """The papers' name of an average over datasets, `average11`, if they average over these."""
    return f"average{len(datasets)}" if frozenset(datasets) in _roles() else "average"


@cache
def _roles() -> frozenset[frozenset[str]]:
    """The sets of datasets that papers average over."""
    suite = load_suite("clip11")
    return frozenset(frozenset(suite.datasets(role)) for role in suite.roles)


def _trained_on(line: Line) -> list[str]:
    return list(dict.fromkeys(result.spec.dataset for result in line.results))


def _compared(line: Line, column: Column, figure: Figure, published: Sequence[Published]) -> Comparison | None:
    """One figure of ours beside the first row that it may be compared with; None where papers have none."""
    cell = line.cells.get(column.key, Cell())
    candidates = [
        row
        for row in find(
            published,
            label=line.row.method,
            protocol=line.results[0].spec.protocol,
            dataset=figure.dataset,
            metric=figure.metric,
            score=figure.score,
        )
        if figure.shots is None or row.shots in (figure.shots, None)
    ]
    if cell.mean is None or not candidates:
        return None
    behind = set(cell.runs)
    paper, comparable, why = choose(candidates, [result for result in line.results if result.name in behind])
    assert paper is not None  # there are candidates
    values = list(cell.values.values())
    if len(values) < 1 or (cell.std is None and len(values) > 1):
        comparable, why = False, NOT_EQUAL
    shift = cell.mean - math.fsum(values) / len(values) if values else 0.0  # H of means is no mean of H
    ours = [value + shift for value in values]
    verdict = compare(
        paper, ours, comparable=comparable, average=paper.average, zero_shot=paper.zero_shot, why=why or paper.note
    )
    return Comparison(
        line=line,
        column=column,
        paper=f"{paper.value:.{paper.digits}f}" + (f" ± {paper.std}" if paper.std is not None else ""),
        origin=_origin(paper),
        source=paper.source,
        verdict=verdict.text,
        gap=verdict.gap,
        interval=verdict.interval,
        why=verdict.why,
    )


def _origin(row: Published) -> str:
    """File and line without the folder that the package lies in."""
    file, comma, line = row.where.partition(",")
    return f"{Path(file).name}{comma}{line}"


def _with_papers(table: Table, rows: Sequence[Published]) -> tuple[Line, ...]:
    """The lines, and at the end of each group those of methods that the table has no row of."""
    places: dict[Figure, tuple[int, str]] = {}
    for number, group in enumerate(table.groups):
        for line, column in product(group, table.columns):
            figure = figure_of(table, line, column)
            if figure:
                places.setdefault(figure, (number, column.key))
    own = {row.method for row in table.rows}
    found: dict[int, dict[str, dict[str, Published]]] = {}
    for row in rows:
        shots = [figure.shots for figure in places if figure.shots is not None]
        place = places.get(Figure(row.dataset, row.metric, row.score, row.shots if shots else None))
        if place and not own & set(row.labels) and (shots or row.shots in (0, *table.shots)):
            name = row.labels[0] if row.labels else row.method  # sources spell CoCoOp in two ways
            found.setdefault(place[0], {}).setdefault(name, {}).setdefault(place[1], row)
    lines: list[Line] = []
    for number, group in enumerate(table.groups):
        lines += [*group, *(_paper_line(group[0], of) for _, of in sorted(found.get(number, {}).items()))]
    return tuple(lines)


def _paper_line(beside: Line, rows: Mapping[str, Published]) -> Line:
    cells = {key: Cell(mean=row.value, std=row.std) for key, row in rows.items()}
    counts = sorted({row.n_seeds for row in rows.values() if row.n_seeds is not None})
    return replace(
        beside,
        row=Row(next(iter(rows.values())).method, "", ()),
        results=(),
        n="-".join(map(str, counts)) or "?",
        cells=cells,
        published={_origin(row): row for row in rows.values()},
    )
