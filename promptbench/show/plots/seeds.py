"""Spread over seeds: the table's summary, seed by seed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptbench.show.plots.picture import LABEL, finish, name_rows, new_figure, style_in, width_of
from promptbench.show.plots.source import Source, about, axis, column_of, name, overall, with_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"


def data(source: Source) -> dict[str, Any]:
    """Per method: the figure of every seed, in percent, and the table's mean and standard deviation."""
    table = source.table()
    lines = overall(table)
    column = column_of(table, source.column)
    shown, missing = with_figures(lines, column)
    rows = []
    for line, (cell,) in shown:
        by_seed = source.per_seed(line, column)
        rows.append({"method": name(line), "by_seed": by_seed, "mean": cell.mean, "std": cell.std})
    facts = about("seeds", source, table, lines, missing)
    return {**facts, "x": axis(table, lines[0], column), "rows": rows, "left_out": missing}


def draw(data: dict[str, Any]) -> Figure:
    """One row per method: a ring for each seed, a stroke for the mean."""
    rows = data["rows"]
    labels = [textwrap.fill(row["method"], LABEL) for row in rows]
    lines = [label.count("\n") + 1 for label in labels]
    middles = [sum(lines[:place]) + own / 2 for place, own in enumerate(lines)]
    figure, axes = new_figure(0.5 + 0.15 * sum(lines), width=width_of(data))
    for middle, row in zip(middles, rows, strict=True):
        values = list(row["by_seed"].values())
        colour = style_in(data, row["method"])["color"]
        axes.axhline(middle, color="0.92", linewidth=0.5, zorder=1)
        axes.plot(values, [middle] * len(values), "o", color=colour, markerfacecolor="none", markersize=4)
        axes.plot([row["mean"]], [middle], "|", color=colour, markersize=9, markeredgewidth=1.5)
    name_rows(axes, middles, [row["method"] for row in rows], data)
    axes.set_ylim(sum(lines) + 0.1, -0.1)
    axes.set_xlabel(data["x"])
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """What the marks are."""
    return ["Rings: seeds; strokes: means."]
