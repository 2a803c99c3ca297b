"""Accuracy on base classes against accuracy on new ones; on each contour the harmonic mean H is the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptbench.show.plots.picture import bars_are, finish, new_figure, style_in, width_of
from promptbench.show.plots.source import Source, about, axis, column_of, name, overall, with_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"


def data(source: Source) -> dict[str, Any]:
    """Per method: mean and standard deviation over seeds of base and new accuracy, in percent."""
    table = source.table()
    lines = overall(table)
    base, new = column_of(table, "base"), column_of(table, "new")
    shown, missing = with_figures(lines, base, new)
    return {
        **about("base-new", source, table, lines, missing),
        "x": axis(table, lines[0], base),
        "y": axis(table, lines[0], new),
        "points": [
            {"method": name(line), "mean": [cell.mean for cell in cells], "std": [cell.std for cell in cells]}
            for line, cells in shown
        ],
        "left_out": missing,
    }


def draw(data: dict[str, Any]) -> Figure:
    """Points with bars of one standard deviation over contours of H."""
    figure, axes = new_figure(2.8, width=width_of(data))
    for point in data["points"]:
        (x, y), (dx, dy) = point["mean"], point["std"]
        style = style_in(data, point["method"]) | {"linestyle": "none"}
        axes.errorbar([x], [y], xerr=[dx or 0], yerr=[dy or 0], label=point["method"], elinewidth=0.7, **style)
    axes.set_xlabel(data["x"])
    axes.set_ylabel(data["y"])
    _contours(axes)
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """What the lines and bars are."""
    return ["Grey lines: equal harmonic mean H.", *bars_are(data)]


def _contours(axes: Any) -> None:
    """Lines of equal H within the present limits, labelled where they end: on the right, or just above the bottom."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    axes.margins(0.08)
    for one in (axes.xaxis, axes.yaxis):
        one.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    low, high = (2 * base * new / (base + new) for base, new in ((left, bottom), (right, top)))
    step = next(step for step in (0.2, 0.5, 1, 2, 5, 10, 20) if high - low <= 9 * step)
    for h in np.arange(math.ceil(low / step), math.ceil(high / step)) * step:
        base = np.linspace(max(left, h / 2 + 1e-3), right, 200)
        axes.plot(base, h * base / (2 * base - h), color="0.75", linewidth=0.6, zorder=1, scalex=False, scaley=False)
        ends = h * right / (2 * right - h)
        if ends >= bottom:
            text = {"xy": (right, ends), "xytext": (2, 0), "ha": "left", "va": "center"}
        else:
            text = {"xy": (h * bottom / (2 * bottom - h), bottom), "xytext": (0, 2), "ha": "center", "va": "bottom"}
        if ends >= bottom or 0.07 < (text["xy"][0] - left) / (right - left) < 0.93:
            axes.annotate(f"H {h:g}", textcoords="offset points", fontsize=7, color="0.45", **text)
    axes.set(xlim=(left, right), ylim=(bottom, top))
