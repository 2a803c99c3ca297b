"""Gain over a baseline, such as zero-shot CLIP, dataset by dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError
from promptbench.protocol import Column
from promptbench.show.plots.picture import finish, new_figure, style_of
from promptbench.show.plots.source import Source, about, column_of, metric_of, name, over
from promptbench.show.tables.table import Line, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
STORED = True


def data(source: Source) -> dict[str, Any]:
    """Per method: difference to the baseline in points, dataset by dataset and averaged; None where there is none."""
    table = source.table()
    column = column_of(table, source.column)
    figures, lines = _figures(source, table, column)
    baseline = _baseline(source, lines)
    reference = figures[name(baseline)]
    series = []
    for method, values in figures.items():
        gains = [_difference(values.get(place), figure) for place, figure in reference.items()]
        if method != name(baseline) and any(gain is not None for gain in gains):
            series.append({"method": method, "gain": gains})
    what = column.title if source.layout.protocol.averaged else metric_of(column)
    return {
        **about("gain", source, table, lines),
        "baseline": name(baseline),
        "x": f"{what} minus that of {name(baseline)} (points)",
        "of": "" if source.layout.protocol.averaged else over(table, baseline),
        "datasets": list(reference),
        "series": series,
        "left_out": sorted(set(figures) - {one["method"] for one in series} - {name(baseline)}),
    }


def _figures(source: Source, table: Table, column: Column) -> tuple[dict[str, dict[str, float | None]], list[Line]]:
    """Figures by method and dataset: along the table's lines, or along those of its columns that show one metric."""
    figures: dict[str, dict[str, float | None]] = {}
    kept: dict[str, Line] = {}
    for line in table.lines:
        if source.layout.protocol.averaged and line.kind in ("block", "average"):
            cell = line.cells.get(column.key)
            figures.setdefault(name(line), {})[line.group] = cell.mean if cell else None
        elif not source.layout.protocol.averaged and line.group == table.lines[0].group:
            alike = [one for one in table.columns if metric_of(one) == metric_of(column)]
            cells = {one.title: line.cells.get(one.key) for one in alike}
            figures[name(line)] = {title: cell.mean if cell else None for title, cell in cells.items()}
        kept.setdefault(name(line), line)
    return figures, list(kept.values())


def _baseline(source: Source, lines: Sequence[Line]) -> Line:
    wanted = source.baseline or (source.suite.companions[0] if source.suite and source.suite.companions else "")
    untrained = [line for line in lines if line.shots == (0,)]
    found = [line for line in lines if line.row.method == wanted] if wanted else untrained
    if not found:
        raise UsageError(
            f"There is no result of the baseline '{wanted or 'zeroshot'}' to show gains over; name a method that has "
            "some with --baseline."
        )
    return found[0]


def _difference(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def draw(data: dict[str, Any]) -> Figure:
    """One band per dataset, with a mark per method."""
    rows, methods = len(data["datasets"]), len(data["series"])
    figure, axes = new_figure(1.2 + rows * max(0.2, 0.05 * methods))
    for place, series in enumerate(data["series"]):
        shift = 0.8 * ((place + 0.5) / methods - 0.5)
        shown = [(gain, row + shift) for row, gain in enumerate(series["gain"]) if gain is not None]
        style = style_of(series["method"], data["methods"]) | {"linestyle": "none"}
        axes.plot(*zip(*shown, strict=True), label=series["method"], zorder=3, **style)
    for row in range(0, rows, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.94", linewidth=0, zorder=0)
    axes.axvline(0, color="black", linewidth=0.8, zorder=2)
    axes.set_yticks(range(rows), data["datasets"])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlabel(data["x"])
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    return finish(figure, data, *([f"{data['of'][:1].upper()}{data['of'][1:]}."] if data["of"] else []), bars=False)
