"""Tables as data, unrounded: JSON with everything behind a figure, CSV by line of the tables or by run and metric.

In CSV a text that a spreadsheet would take for a formula begins with an apostrophe.

In JSON every figure has its seeds and the runs behind it, so that it can be traced to its files:

    {"promptbench_tables": 1, "tables": [{..., "lines": [{..., "cells": {"base/accuracy": {...}}}], "runs": {...}}]}

A run `base2new/dtd/maple-0123456789ab` lies in `results/base2new/dtd/maple-0123456789ab.json` of the output folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from typing import Any

import pandas as pd

from promptbench.results.frame import ENCODE
from promptbench.results.knowledge import Choice, selection_of, text_prior
from promptbench.results.result import Result
from promptbench.results.spec import DATA, MACHINE, SETTING, Spec, names_of
from promptbench.show.tables.formats.texts import (
    RECIPE,
    Style,
    clean,
    heading,
    recipe_of,
    remarks,
    seeds_text,
    settings_said,
    shots_text,
    trained_lines,
)
from promptbench.show.tables.table import Cell, Comparison, Line, Table, Test, Tested

VERSION = 1
"""Of the JSON."""

KNOWN = ("selection", "trials", "settings by dataset", "text prior")
FACTS = (
    *("protocol", "suite", "backbone", "kind", "dataset", "dataset title", "method", "label", "settings"),
    *(*KNOWN, "shots", "seeds", "n"),
)
LONG = (
    *(
        "protocol",
        "suite",
        "backbone",
        "dataset",
        "dataset title",
        "method",
        "label",
        "settings",
        *KNOWN,
        "shots",
        "data_seed",
        "train_seed",
    ),
    *("metric", "value", "origin", "run"),
)
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # how one begins for spreadsheets, in wide letters, too
TESTED = (
    *("compared", "against", "datasets", "difference", "won", "tied", "lost", "p", "p_holm", "smallest_p"),
    *("common_seeds", "over_seeds", "low", "high", "seeds_for_1_point"),
)
"""What CSV says of a row tested against another, behind `test/`."""
BESIDE = ("paper", "gap", "verdict", "why")


def render_json(tables: Sequence[Table], style: Style) -> str:
    """One JSON document."""
    document = {"promptbench_tables": VERSION, "tables": [_table(table, style) for table in tables]}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _table(table: Table, style: Style) -> dict[str, Any]:
    beside = {(id(item.line), item.column.key): item for item in table.comparisons}
    return {
        "title": heading(table),
        "protocol": table.protocol,
        "suite": table.suite,
        "backbone": table.backbone,
        "shots": list(table.shots),
        "blocks_are": table.blocks_are,
        "columns": [column._asdict() for column in table.columns],
        "ranked": table.ranked,
        "lines": [_line(table, line, beside) for line in table.lines],
        "remarks": remarks(table),
        "runs": {name: _run(result) for name, result in table.results.items()},
        **({"tests": [_test(table, test) for test in table.tests]} if table.tests else {}),
        **({"appendix": [_recipe(line) for line in trained_lines(table)]} if style.appendix else {}),
    }


def _line(table: Table, line: Line, beside: Mapping[tuple[int, str], Comparison]) -> dict[str, Any]:
    keys = [column.key for column in table.columns if column.key in line.cells]
    return {
        "kind": "published" if line.published else line.kind,
        "group": line.group,
        "group_title": table.title(line.group),
        "method": line.row.method,
        "label": line.label,
        "settings": line.row.apart,
        "selection": line.selection._asdict(),
        "text_prior": line.text_prior,
        "versus": _typed(table, line.versus),
        "published": {where: figure.source for where, figure in line.published.items()},
        "reconstructed": line.row.reconstructed,
        "origins": sorted(line.origins),
        "shots": list(line.shots),
        "n": line.n,
        "cells": {key: _cell(line, line.cells[key], beside.get((id(line), key))) for key in keys},
    }


def _recipe(line: Line) -> dict[str, Any]:
    """What a row was trained with; lists hold the values of different datasets or shots."""
    recipe = {name.replace(" ", "_"): values for name, values in recipe_of(line).items()}
    choice = {"selection": line.selection._asdict(), "text_prior": line.text_prior}
    return {"method": line.row.method, "label": line.label, **recipe, **choice, "config": settings_said(line)}


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


def _test(table: Table, test: Test) -> dict[str, Any]:
    rows = [
        {"method": one.line.row.method, "label": one.line.label, **_tested(test, one), "why": one.why}
        for one in test.rows
    ]
    return {
        "against": _typed(table, test.against),
        "against_label": test.against,
        "column": test.column._asdict(),
        "group": test.group,
        "datasets": list(test.datasets),
        "rows_tested": test.family,
        "smallest_p": test.smallest,
        "rows": rows,
    }


def _tested(test: Test, one: Tested) -> dict[str, Any]:
    """The figures of a row tested, in points where they are differences; None where there is none."""
    found = {name: None if one.p is None else getattr(one, name) for name in ("difference", "won", "tied", "lost", "p")}
    over_seeds, low, high = one.interval[:3] if one.interval else (None, None, None)
    spread = one.seeds > 1
    return {
        **found,
        "p_holm": one.holm,
        "common_seeds": one.seeds,
        "over_seeds": over_seeds,
        "low": low if spread else None,
        "high": high if spread else None,
        "seeds_for_1_point": one.needed,
    }


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


def render_csv(tables: Sequence[Table], style: Style) -> str:
    """All tables under one header; every figure is followed by its standard deviation, and by the paper's.

    A row tested against another has a line of the kind `test` with that.
    """
    keys: dict[str, None] = {}
    lines: list[dict[str, object]] = []
    compared = tested = False
    for table in tables:
        keys |= dict.fromkeys(column.key for column in table.columns)
        lines += [_facts(table, line) | _figures(table, line) | _trained(line, style) for line in table.lines]
        for test in table.tests:
            lines += [_test_facts(table, test, one) for one in test.rows]
        compared |= bool(table.comparisons) or any(line.published for line in table.lines)
        tested |= bool(table.tests)
    facts = ["", "/std", *(f"/{fact}" for fact in BESIDE if compared)]
    figures = [key + fact for key, fact in product(keys, facts)]
    figures += [f"test/{fact}" for fact in TESTED if tested]
    recipe = [f"recipe/{name}" for name in (*RECIPE, "config") if style.appendix]
    return _written(lines, (*FACTS, *figures, *recipe, "origin", "remark"))


def render_csv_long(tables: Sequence[Table], style: Style) -> str:
    """Every metric of every run on a line of its own, with the name of its file and all that was chosen for it."""
    asked = [item for item in names_of(Spec, SETTING, MACHINE, DATA) if item not in LONG]
    return _written(chain.from_iterable(_runs(table, asked) for table in tables), (*LONG, *asked))


def _facts(table: Table, line: Line) -> dict[str, object]:
    kind = "published" if line.published else line.kind + " difference" * bool(line.versus)
    method = f"Δ {line.row.typed} − {_typed(table, line.versus)}" if line.versus else line.row.method
    over = [
        line.row.apart,
        *_known(line.selection, line.text_prior),
        shots_text(line.shots),
        seeds_text(line.seeds, " "),
        line.n,
    ]
    names = [line.group, table.title(line.group), method, line.label]
    facts = [table.protocol, table.suite, table.backbone, kind, *names, *over]
    said = dict.fromkeys(chain.from_iterable((cell.gap.strip("–"), cell.reason) for cell in line.cells.values()))
    origins = ", ".join(line.published) or " ".join(sorted(line.origins))
    return {**dict(zip(FACTS, facts, strict=True)), "origin": origins, "remark": "; ".join(filter(None, said))}


def _typed(table: Table, label: str) -> str:
    """A row's name with the method as it is typed, by the row's label."""
    return next((row.typed for row in table.rows if row.label == label), label)


def _test_facts(table: Table, test: Test, one: Tested) -> dict[str, object]:
    facts = _facts(table, one.line) | {"kind": "test", "dataset": test.group, "n": one.seeds, "remark": one.why}
    said = {"compared": test.column.title, "against": _typed(table, test.against), "datasets": len(test.datasets)}
    said |= {"smallest_p": test.smallest, **_tested(test, one)}
    return facts | {f"test/{name}": value for name, value in said.items()}


def _trained(line: Line, style: Style) -> dict[str, object]:
    """What a line was trained with, for an appendix."""
    if not style.appendix or line.published:
        return {}
    values = {f"recipe/{name}": " / ".join(values) for name, values in recipe_of(line).items()}
    return {**values, "recipe/config": settings_said(line)}


def _known(choice: Choice, prior: str) -> list[object]:
    """The cells of `KNOWN`; the number of trials is empty where nobody says."""
    return [choice.kind, choice.trials or "", "yes" if choice.by_dataset else "no", prior]


def _figures(table: Table, line: Line) -> dict[str, object]:
    """By column; the figure of a line from papers stands where those beside ours do."""
    found: dict[str, object] = {}
    for key, cell in line.cells.items():
        found |= {f"{key}/paper" if line.published else key: cell.mean, f"{key}/std": cell.std}
    for item in table.comparisons:
        if item.line is line:
            found |= {f"{item.column.key}/{fact}": getattr(item, fact) for fact in BESIDE}
    return found


def _runs(table: Table, asked: Sequence[str]) -> Iterable[Sequence[object]]:
    """The metrics of every run, with what the run is of and these fields of its spec."""
    for row in table.rows:
        for result in row.results:
            spec = result.spec
            facts: list[object] = [table.protocol, table.suite, table.backbone]
            facts += [spec.dataset, table.title(spec.dataset), row.method, row.label, row.apart]
            facts += [
                *_known(selection_of(result), text_prior(result)),
                shots_text([spec.shots]),
                str(spec.data_seed),
                str(spec.train_seed),
            ]
            values = [getattr(spec, name) for name in asked]
            chosen = [value if isinstance(value, str) else ENCODE(value) for value in values]
            for metric, value in result.metrics.items():
                yield [*facts, metric, value, spec.recipe.get("origin", ""), result.name, *chosen]


def _written(lines: Iterable[Any], columns: Sequence[str]) -> str:
    frame = pd.DataFrame(list(lines), columns=list(columns), dtype=object)
    frame = frame.apply(lambda column: column.map(_clean)).rename(columns=_inert)
    return frame.to_csv(index=False, lineterminator="\n")


def _clean(value: object) -> object:
    return _inert(value) if isinstance(value, str) else value


def _inert(text: str) -> str:
    """The text on one line, an apostrophe in front where a spreadsheet would compute it; a number stays one."""
    text = clean(text)
    if not text.lstrip().startswith(FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
