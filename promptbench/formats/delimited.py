"""CSV, unrounded: a line per line of the tables, or, in long format, per run and metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from promptbench.formats.texts import Style, clean, seeds_text, shots_text
from promptbench.lines import Cell, Comparison, Table

FACTS = ("protocol", "suite", "backbone", "kind", "dataset", "method", "settings", "shots", "seeds", "n")
LONG = (
    *("protocol", "suite", "backbone", "dataset", "method", "settings", "shots", "data_seed", "train_seed"),
    *("metric", "value", "origin", "run"),
)
BESIDE = ("paper", "gap", "verdict", "why")


def render(tables: Sequence[Table], style: Style) -> str:
    """All tables under one header; every figure is followed by its standard deviation, and by the paper's."""
    keys = list(dict.fromkeys(column.key for table in tables for column in table.columns))
    beside = BESIDE if any(table.comparisons or line.published for table in tables for line in table.lines) else ()
    names = [name for key in keys for name in (key, f"{key}/std", *(f"{key}/{fact}" for fact in beside))]
    rows: list[Sequence[object]] = [[*FACTS, *names, "origin", "remark"]]
    for table in tables:
        compared = {(id(item.line), item.column.key): item for item in table.comparisons}
        for line in table.lines:
            kind = "published" if line.published else f"{line.kind} difference" if line.versus else line.kind
            method = line.label if line.versus else line.row.method
            cells = [line.cells.get(key, Cell()) for key in keys]
            numbers: list[object] = []
            for key, cell in zip(keys, cells, strict=True):
                if line.published:
                    numbers += ["", cell.std, cell.mean, "", "", ""]
                else:
                    numbers += [cell.mean, cell.std, *(_beside(compared.get((id(line), key))) if beside else ())]
            said = dict.fromkeys(text for cell in cells for text in (cell.gap.strip("–"), cell.reason) if text)
            over = [line.row.apart, shots_text(line.shots), seeds_text(line.seeds, " "), line.n]
            facts = [table.protocol, table.suite, table.backbone, kind, line.group, method, *over]
            origins = ", ".join(line.published) or " ".join(sorted(line.origins))
            rows.append([*facts, *numbers, origins, "; ".join(said)])
    return _written(rows)


def render_long(tables: Sequence[Table], style: Style) -> str:
    """Every metric of every run on a line of its own, with the name of the run's file."""
    return _written([LONG, *(line for table in tables for line in _runs(table))])


def _runs(table: Table) -> Iterable[Sequence[object]]:
    for row in table.rows:
        for result in row.results:
            spec = result.spec
            facts = [table.protocol, table.suite, table.backbone, spec.dataset, row.method, row.apart]
            facts += [shots_text([spec.shots]), str(spec.data_seed), str(spec.train_seed)]
            for metric, value in result.metrics.items():
                yield [*facts, metric, value, spec.recipe.get("origin", ""), result.name]


def _beside(item: Comparison | None) -> list[object]:
    return [item.paper, item.gap, item.verdict, item.why] if item else ["", "", "", ""]


def _written(rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([clean(item) if isinstance(item, str) else item for item in row] for row in rows)
    return out.getvalue()
