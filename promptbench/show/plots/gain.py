"""Gain over a baseline, such as zero-shot CLIP, dataset by dataset."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError
from promptbench.protocol import Column
from promptbench.show.plots.picture import (
    LABEL,
    finish,
    label_below,
    name_rows,
    new_figure,
    panel_grid,
    style_in,
    text_width,
    title_panels,
    width_of,
)
from promptbench.show.plots.source import Source, about, column_of, metric_of, name, over
from promptbench.show.tables.table import Line, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
TOGETHER = 6  # methods that a band has room for


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
            figures.setdefault(name(line), {})[table.title(line.group)] = cell.mean if cell else None
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
    """A band per dataset with a mark per method; of many methods a row for each, in a panel per dataset."""
    many = len(data["series"]) > TOGETHER
    figure = _rows(data) if many else _bands(data)
    return finish(figure, data, legend=not many)


def _rows(data: Mapping[str, Any]) -> Figure:
    names = [series["method"] for series in data["series"]]
    labels = [textwrap.fill(name, LABEL) for name in names]
    lines = [label.count("\n") + 1 for label in labels]
    middles = [sum(lines[:place]) + own / 2 for place, own in enumerate(lines)]
    width = width_of(data)
    high = 0.4 + 0.13 * sum(lines)
    options = {"least": 0.8, "sharex": True, "sharey": True}
    figure, grid = panel_grid(len(data["datasets"]), high, width, **options)
    room = (width - text_width("\n".join(labels))) / len(grid[0]) - 0.1
    above = title_panels(list(grid.flat)[: len(data["datasets"])], data["datasets"], room)
    for place, axes in enumerate(list(grid.flat)[: len(data["datasets"])]):
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True, axis="x")
        for middle, series in zip(middles, data["series"], strict=True):
            axes.axhline(middle, color="0.92", linewidth=0.5, zorder=1)
            if series["gain"][place] is not None:
                style = style_in(data, series["method"]) | {"linestyle": "none", "markersize": 3.5}
                axes.plot([series["gain"][place]], [middle], **style)
        axes.axvline(0, color="black", linewidth=0.6, zorder=2)
    for row in grid:
        name_rows(row[0], middles, names, data)
    grid[0][0].set_ylim(sum(lines) + 0.1, -0.1)
    grid[0][0].margins(x=0.08)
    label_below(grid, len(data["datasets"]), data["x"])
    figure.set_figheight(figure.get_figheight() + len(grid) * above + 0.1)
    return figure


def _bands(data: Mapping[str, Any]) -> Figure:
    rows, methods = len(data["datasets"]), len(data["series"])
    figure, axes = new_figure(0.6 + rows * max(0.2, 0.09 * methods), width=width_of(data))
    for place, series in enumerate(data["series"]):
        shift = 0.8 * ((place + 0.5) / methods - 0.5)
        shown = [(gain, row + shift) for row, gain in enumerate(series["gain"]) if gain is not None]
        style = style_in(data, series["method"]) | {"linestyle": "none"}
        axes.plot(*zip(*shown, strict=True), label=series["method"], **style)
    for row in range(0, rows, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.94", linewidth=0, zorder=0)
    axes.axvline(0, color="black", linewidth=0.8, zorder=2)
    axes.set_yticks(range(rows), [textwrap.fill(dataset, LABEL) for dataset in data["datasets"]])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlabel(data["x"])
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    return figure


def said(data: Mapping[str, Any]) -> list[str]:
    """What the figures are over, where the axis does not say it."""
    return [f"{data['of'][:1].upper()}{data['of'][1:]}."] if data["of"] else []
