"""A curve over one setting of a method, everything else equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError
from promptbench.results.result import Result
from promptbench.show.plots.picture import RECONSTRUCTED, bars_are, finish, new_figure, style_of, width_of
from promptbench.show.plots.source import NothingToShow, Source, about, over, overall, titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
NOT_SETTINGS = ("origin", "overrides", "source")


def data(source: Source) -> dict[str, Any]:
    """Per column of the protocol's table: mean and standard deviation over seeds, in percent, by value of the field."""
    method, fields = _fields(source.fields)
    chosen = [result for result in source.results if result.spec.method == method]
    by_value = _one_variant(chosen, method, fields)
    tables = {value: source.table(results) for value, results in by_value.items()}
    lines = {value: overall(table)[0] for value, table in tables.items()}
    last = source.table(chain.from_iterable(by_value.values()))
    first = next(iter(lines.values()))
    series = []
    for column in last.columns:
        cells = {value: line.cells.get(column.key) for value, line in lines.items()}
        shown = {value: cell for value, cell in cells.items() if cell is not None and cell.mean is not None}
        if shown:
            means = {value: [cell.mean, cell.std] for value, cell in shown.items()}
            series.append({"column": column.title, "by_value": means})
    facts = about("ablation", source, last, lines.values())
    return {
        **facts,
        "n": {value: line.n for value, line in lines.items()},
        "method": titled(method) + RECONSTRUCTED * first.row.reconstructed,
        "x": " = ".join(fields),
        "y": f"accuracy, {over(last, first)} (%)",
        "values": list(by_value),
        "series": series,
    }


def _fields(texts: Sequence[str]) -> tuple[str, list[str]]:
    """The method and the names of its fields, from texts such as `maple.depth`."""
    parts = [text.partition(".") for text in texts]
    if not parts or any(not field for _, _, field in parts) or len({method for method, _, _ in parts}) > 1:
        raise UsageError("An ablation needs fields of one method; write --field method.field, such as maple.depth.")
    return parts[0][0], [field for _, _, field in parts]


def _one_variant(results: Iterable[Result], method: str, fields: Sequence[str]) -> dict[str, list[Result]]:
    """The results that differ in the fields alone, by value: of several such sets that with most values.

    Where several fields are named, they run together.
    """
    variants: dict[str, dict[str, dict[str, Result]]] = {}
    known: set[str] = set()
    for result in results:
        settings = _settings(result)
        known |= settings.keys()
        values = [json.dumps(settings.pop(field)) for field in fields if field in settings]
        if len(values) == len(fields) and len(set(values)) == 1:
            of_value = variants.setdefault(json.dumps(settings, sort_keys=True), {}).setdefault(values[0], {})
            of_value.setdefault(json.dumps([result.spec.dataset, result.spec.seeds]), result)
    if not variants:
        wanted = f"{method}.{' and '.join(fields)}"
        hint = f"; it has {', '.join(sorted(known))}" if known else ""
        raise NothingToShow(f"There is no result of {wanted} to draw a curve over{hint}.")
    best = max(variants.values(), key=lambda values: (len(values), sum(map(len, values.values()))))
    if len(best) < 2:
        raise NothingToShow(
            f"All results of {method} have {fields[0]}={next(iter(best))}, or differ in other settings too; "
            "a curve needs runs with several values."
        )
    return {_text(value): list(best[value].values()) for value in sorted(best, key=_by_size)}


def _settings(result: Result) -> dict[str, Any]:
    """What may not differ along the curve; the recipe in so far as no method's own recipe sets it per dataset."""
    sources: Mapping[str, str] = result.conditions.get("provenance") or {}
    spec = result.spec
    recipe = {
        name: value
        for name, value in spec.recipe.items()
        if name not in NOT_SETTINGS and not str(sources.get(f"recipe.{name}", "")).startswith("recipe")
    }
    of_spec = {name: getattr(spec, name) for name in ("shots", "sampler", "precision", "plugin", "trained_by")}
    return {**of_spec, **recipe, **spec.config}


def _by_size(value: str) -> tuple[int, float, str]:
    """The sort key of a setting's values: numbers by size, then others."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def _text(value: str) -> str:
    """A setting's value, stored as JSON, as an axis shows it."""
    plain = json.loads(value)
    if isinstance(plain, str):
        return plain
    return f"{plain:g}" if isinstance(plain, float) else value


def draw(data: dict[str, Any]) -> Figure:
    """A line per column over evenly spaced values."""
    figure, axes = new_figure(2.3, width=width_of(data))
    names = [series["column"] for series in data["series"]]
    for series in data["series"]:
        x = [data["values"].index(value) for value in data["values"] if value in series["by_value"]]
        mean, std = zip(*(series["by_value"][data["values"][one]] for one in x), strict=True)
        axes.errorbar(
            x, mean, yerr=[one or 0 for one in std], label=series["column"], **style_of(series["column"], names)
        )
    axes.set_xticks(range(len(data["values"])), data["values"])
    axes.set_xlabel(f"{data['x']} of {data['method']}")
    axes.set_ylabel(data["y"])
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """How values are laid out, and what bars are."""
    return ["Values are spaced evenly.", *bars_are(data)]
