"""What a method costs against what it gives: learned parameters, and seconds of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from promptbench.averages import Line
from promptbench.plots.source import Source, about, axis, column_of, name, overall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
STORED = True
COSTS = {"learned_parameters": "learned parameters", "train_seconds": "training per run (s)"}


def data(source: Source) -> dict[str, Any]:
    """Per method: the table's summary in percent, and the mean of each cost over its runs."""
    table = source.table()
    lines = overall(table)
    column = column_of(table, source.column)
    points, missing = [], []
    for line in lines:
        cell = line.cells.get(column.key)
        if cell is None or cell.mean is None:
            missing.append(name(line))
            continue
        cost = {what: _mean(line, what) for what in COSTS}
        points.append({"method": name(line), "mean": cell.mean, "std": cell.std, "cost": cost})
    devices = sorted({_device(line) for line in lines})
    return {
        **about("cost", source, table, lines),
        "y": axis(table, lines[0], column),
        "points": points,
        "devices": devices,
        "left_out": missing,
    }


def _mean(line: Line, what: str) -> float | None:
    values = [value for result in line.results if (value := result.cost.get(what)) is not None]
    return sum(values) / len(values) if values else None


def _device(line: Line) -> str:
    spec = line.results[0].spec
    return f"{spec.device}, {spec.threads} thread{'s' * (spec.threads != 1)}"


def draw(data: dict[str, Any]) -> Figure:
    """A panel per cost, logarithmic; what costs nothing is a level line."""
    from promptbench.plots.style import finish, new_figure, series_style

    figure, panels = new_figure(2.5, columns=len(COSTS), sharey=True)
    for axes, (what, title) in zip(panels, COSTS.items(), strict=True):
        _panel(axes, data["points"], what, series_style)
        axes.set_xlabel(title)
    panels[0].set_ylabel(data["y"])
    return finish(figure, data, f"Seconds on {'; '.join(data['devices'])}. Level lines cost nothing.")


def _panel(axes: Any, points: Sequence[dict[str, Any]], what: str, series_style: Any) -> None:
    axes.set_xscale("log")
    for place, point in enumerate(points):
        style = series_style(place)
        if point["cost"][what]:
            bar = {"yerr": [point["std"] or 0], "label": point["method"], "zorder": 3}
            axes.errorbar([point["cost"][what]], [point["mean"]], **bar, **style | {"linestyle": "none"})
        else:
            line = {key: style[key] for key in ("color", "linestyle")}
            axes.axhline(point["mean"], label=point["method"], linewidth=1, **line)
