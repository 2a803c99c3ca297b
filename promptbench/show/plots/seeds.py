"""Spread over seeds: the table's summary, seed by seed."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from promptbench.show.plots.picture import finish, new_figure
from promptbench.show.plots.source import Source, about, axis, column_of, name, overall, with_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
STORED = True
LABEL = 24  # letters of a method's name on a line


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
    figure, axes = new_figure(0.7 + 0.165 * sum(lines))
    for middle, row in zip(middles, rows, strict=True):
        values = list(row["by_seed"].values())
        axes.plot(values, [middle] * len(values), "o", color="black", markerfacecolor="none", markersize=4)
        axes.plot([row["mean"]], [middle], "|", color="black", markersize=11, markeredgewidth=1.5)
    axes.set_yticks(middles, labels)
    axes.set_ylim(sum(lines) + 0.1, -0.1)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(data["x"])
    return finish(figure, data, "Rings: seeds; strokes: means.", bars=False)
