"""What a method costs against what it gives: parameters, seconds of training, milliseconds an image, memory."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from promptbench.results.result import Result
from promptbench.show.plots.picture import bars_are, finish, panel_grid, style_in, width_of
from promptbench.show.plots.source import Source, about, axis, column_of, name, overall, with_figures
from promptbench.show.tables.cost import cost_of, machines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
TITLES = {
    "learned_parameters": "learned parameters",
    "train_seconds": "training per run (s)",
    "eval_ms_per_image": "evaluation per image (ms)",
    "peak_memory_mb": "peak memory (MiB)",
}


def data(source: Source) -> dict[str, Any]:
    """Per method: the table's summary in percent, and the mean of each cost over its runs."""
    table = source.table()
    lines = overall(table)
    column = column_of(table, source.column)
    along = source.layout.protocol.along  # the costs are those of the runs behind the column
    shown, missing = with_figures(lines, column)
    points = []
    for line, (cell,) in shown:
        runs = [r for r in line.results if not along or column.key.startswith(f"{getattr(r.spec, along)}/")]
        cost = {what: _mean(runs, what) for what in TITLES}
        points.append({"method": name(line), "mean": cell.mean, "std": cell.std, "cost": cost})
    devices = machines(list(chain.from_iterable(line.results for line in lines)))
    return {
        **about("cost", source, table, lines, missing),
        "y": axis(table, lines[0], column),
        "points": points,
        "devices": devices,
        "left_out": missing,
    }


def _mean(runs: Sequence[Result], what: str) -> float | None:
    values = [value for result in runs if (value := cost_of(result, what)) is not None]
    return sum(values) / len(values) if values else None


def draw(data: dict[str, Any]) -> Figure:
    """A panel per cost, logarithmic; what costs nothing is a level line, and what was not measured is left out."""
    from matplotlib.ticker import MaxNLocator

    width = width_of(data)
    measured = [what for what in TITLES if any(point["cost"][what] is not None for point in data["points"])]
    shown = measured or list(TITLES)[:1]
    figure, panels = panel_grid(len(shown), 2.1, width, least=1.5, sharey=True)
    for axes, what in zip(panels.flat, shown, strict=False):
        _panel(axes, data, what)
        axes.set_xlabel(TITLES[what])
    panels[0][0].yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    for axes in panels[:, 0]:
        axes.set_ylabel(textwrap.fill(data["y"], 28))
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """Where costs were measured, and what lines and bars are."""
    return [f"Measured on {'; '.join(data['devices'])}.", "Level lines cost nothing.", *bars_are(data)]


def _panel(axes: Any, data: Mapping[str, Any], what: str) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    for point in data["points"]:
        style = style_in(data, point["method"])
        if point["cost"][what]:
            bar = {"yerr": [point["std"] or 0], "label": point["method"], "elinewidth": 0.7}
            axes.errorbar([point["cost"][what]], [point["mean"]], **bar, **style | {"linestyle": "none"})
        elif point["cost"][what] is not None:
            axes.axhline(point["mean"], label=point["method"], markevery=[], **style)  # its mark in the legend alone
    costs = [point["cost"][what] for point in data["points"] if point["cost"][what]] or [1]
    decades = math.log10(max(costs) / min(costs))
    axes.margins(x=0.1)
    if decades <= 0.7:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    elif decades < 1.3:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if decades < 2.6 else (1,)))
    axes.xaxis.set_major_formatter(_short)
    axes.xaxis.set_minor_locator(NullLocator())


def _short(value: float, _: int) -> str:
    """The label of a tick, 1000 as 1k, as matplotlib asks for it."""
    size = sum(value >= limit for limit in (1e3, 1e6, 1e9))
    return f"{value / 1000**size:g}{' kMG'[size].strip()}"
