"""CSV, unrounded: a line per line of the tables, or, in long format, per run and metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from promptbench.show.tables.formats.texts import Style, clean, seeds_text, shots_text
from promptbench.show.tables.table import Line, Table

FACTS = ("protocol", "suite", "backbone", "kind", "dataset", "method", "settings", "shots", "seeds", "n")
LONG = (
    *("protocol", "suite", "backbone", "dataset", "method", "settings", "shots", "data_seed", "train_seed"),
    *("metric", "value", "origin", "run"),
)
BESIDE = ("paper", "gap", "verdict", "why")


def render(tables: Sequence[Table], style: Style) -> str:
    """All tables under one header; every figure is followed by its standard deviation, and by the paper's."""
    keys = dict.fromkeys(column.key for table in tables for column in table.columns)
    beside = BESIDE if any(table.comparisons or line.published for table in tables for line in table.lines) else ()
    figures = [name for key in keys for name in (key, f"{key}/std", *(f"{key}/{fact}" for fact in beside))]
    lines = [_facts(table, line) | _figures(table, line) for table in tables for line in table.lines]
    return _written(lines, (*FACTS, *figures, "origin", "remark"))


def render_long(tables: Sequence[Table], style: Style) -> str:
    """Every metric of every run on a line of its own, with the name of the run's file."""
    return _written([line for table in tables for line in _runs(table)], LONG)


def _facts(table: Table, line: Line) -> dict[str, object]:
    kind = "published" if line.published else f"{line.kind} difference" if line.versus else line.kind
    method = line.label if line.versus else line.row.method
    over = [line.row.apart, shots_text(line.shots), seeds_text(line.seeds, " "), line.n]
    facts = [table.protocol, table.suite, table.backbone, kind, line.group, method, *over]
    said = dict.fromkeys(text for cell in line.cells.values() for text in (cell.gap.strip("–"), cell.reason) if text)
    origins = ", ".join(line.published) or " ".join(sorted(line.origins))
    return {**dict(zip(FACTS, facts, strict=True)), "origin": origins, "remark": "; ".join(said)}


def _figures(table: Table, line: Line) -> dict[str, object]:
    """By column; the figure of a line from papers stands where those beside ours do."""
    found: dict[str, object] = {}
    for key, cell in line.cells.items():
        found |= {f"{key}/paper" if line.published else key: cell.mean, f"{key}/std": cell.std}
    for item in table.comparisons:
        if item.line is line:
            found |= {f"{item.column.key}/{fact}": getattr(item, fact) for fact in BESIDE}
    return found


def _runs(table: Table) -> Iterable[Sequence[object]]:
    for row in table.rows:
        for result in row.results:
            spec = result.spec
            facts = [table.protocol, table.suite, table.backbone, spec.dataset, row.method, row.apart]
            facts += [shots_text([spec.shots]), str(spec.data_seed), str(spec.train_seed)]
            for metric, value in result.metrics.items():
                yield [*facts, metric, value, spec.recipe.get("origin", ""), result.name]


def _written(lines: Iterable[Any], columns: Sequence[str]) -> str:
    frame = pd.DataFrame(list(lines), columns=list(columns), dtype=object)
    return frame.apply(lambda column: column.map(_clean)).to_csv(index=False, lineterminator="\n")


def _clean(value: object) -> object:
    return clean(value) if isinstance(value, str) else value
