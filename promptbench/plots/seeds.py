"""Spread over seeds: the table's summary, seed by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptbench.plots.source import Source, about, axis, column_of, name, overall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
STORED = True


def data(source: Source) -> dict[str, Any]:
    """Per method: the figure of every seed, in percent, and the table's mean and standard deviation."""
    table = source.table()
    lines = overall(table)
    column = column_of(table, source.column)
    rows, missing = [], []
    for line in lines:
        cell = line.cells.get(column.key)
        if cell is None or cell.mean is None:
            missing.append(name(line))
            continue
        by_seed = source.per_seed(line, column)
        rows.append({"method": name(line), "by_seed": by_seed, "mean": cell.mean, "std": cell.std})
    facts = about("seeds", source, table, lines)
    return {**facts, "x": axis(table, lines[0], column), "rows": rows, "left_out": missing}


def draw(data: dict[str, Any]) -> Figure:
    """One row per method: a ring for each seed, a stroke for the mean."""
    from promptbench.plots.style import finish, new_figure

    rows = data["rows"]
    figure, axes = new_figure(0.9 + 0.17 * len(rows))
    for place, row in enumerate(rows):
        values = list(row["by_seed"].values())
        axes.plot(values, [place] * len(values), "o", color="black", markerfacecolor="none", markersize=4)
        axes.plot([row["mean"]], [place], "|", color="black", markersize=11, markeredgewidth=1.5)
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(data["x"])
    return finish(figure, data, "Rings: seeds; strokes: means.", bars=False)
