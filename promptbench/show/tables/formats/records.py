"""JSON: every figure with its seeds and the runs behind it, so that it can be traced to its files.

    {"promptbench_tables": 1, "tables": [{..., "lines": [{..., "cells": {"base/accuracy": {...}}}], "runs": {...}}]}

A run `base2new/dtd/maple-0123456789ab` lies in `results/base2new/dtd/maple-0123456789ab.json` of the output folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from promptbench.results.result import Result
from promptbench.show.tables.formats.texts import Style, heading, remarks
from promptbench.show.tables.table import Cell, Comparison, Line, Table

VERSION = 1
"""Of the format."""


def render(tables: Sequence[Table], style: Style) -> str:
    """One document."""
    document = {"promptbench_tables": VERSION, "tables": [_table(table) for table in tables]}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _table(table: Table) -> dict[str, Any]:
    keys = [column.key for column in table.columns]
    compared = {(id(item.line), item.column.key): item for item in table.comparisons}
    return {
        "title": heading(table),
        "protocol": table.protocol,
        "suite": table.suite,
        "backbone": table.backbone,
        "shots": list(table.shots),
        "blocks_are": table.blocks_are,
        "columns": [column._asdict() for column in table.columns],
        "ranked": table.ranked,
        "lines": [
            _line(
                line,
                {key: _cell(line, line.cells[key], compared.get((id(line), key))) for key in keys if key in line.cells},
            )
            for line in table.lines
        ],
        "remarks": remarks(table),
        "runs": {result.name: _run(result) for row in table.rows for result in row.results},
    }


def _line(line: Line, cells: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "published" if line.published else line.kind,
        "group": line.group,
        "method": line.row.method,
        "label": line.label,
        "settings": line.row.apart,
        "versus": line.versus,
        "published": dict(line.published),
        "reconstructed": line.row.reconstructed,
        "origins": sorted(line.origins),
        "shots": list(line.shots),
        "n": line.n,
        "cells": cells,
    }


def _cell(line: Line, cell: Cell, beside: Comparison | None) -> dict[str, Any]:
    """One figure; `n` is null where datasets have different numbers of seeds, or a paper does not say."""
    n = None if "-" in line.n or line.published else len(cell.values)
    found: dict[str, Any] = {"mean": cell.mean, "std": cell.std, "ddof": 0, "n": n}
    found["seeds"] = [
        {"data_seed": seed[0], "train_seed": seed[1], "value": value, "outlier": seed in cell.outliers}
        for seed, value in cell.values.items()
    ]
    found["runs"] = list(cell.runs)
    if cell.mean is None:
        found |= {"gap": cell.gap, "reason": cell.reason}
    if beside:
        found["published"] = {
            "value": beside.paper,
            "line": beside.origin,
            "source": beside.source,
            "verdict": beside.verdict,
            "gap": beside.gap,
            "interval": beside.interval,
            "why": beside.why,
        }
    return found


def _run(result: Result) -> dict[str, Any]:
    spec = result.spec
    return {
        "dataset": spec.dataset,
        "method": spec.label,
        "shots": spec.shots,
        "data_seed": spec.data_seed,
        "train_seed": spec.train_seed,
        "sample_digest": spec.sample_digest or result.conditions.get("sample_digest", ""),
        "commit": result.commit,
        "created": result.created,
    }
