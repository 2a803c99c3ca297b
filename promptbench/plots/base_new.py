"""Accuracy on base classes against accuracy on new ones; on each contour the harmonic mean H is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptbench.plots.source import Source, about, axis, column_of, name, overall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
STORED = True


def data(source: Source) -> dict[str, Any]:
    """Per method: mean and standard deviation over seeds of base and new accuracy, in percent."""
    table = source.table()
    lines = overall(table)
    base, new = column_of(table, "base"), column_of(table, "new")
    points, missing = [], []
    for line in lines:
        cells = line.cells[base.key], line.cells[new.key]
        if any(cell.mean is None for cell in cells):
            missing.append(name(line))
            continue
        points.append(
            {"method": name(line), "mean": [cell.mean for cell in cells], "std": [cell.std for cell in cells]}
        )
    facts = about("base-new", source, table, lines)
    return {
        **facts,
        "x": axis(table, lines[0], base),
        "y": axis(table, lines[0], new),
        "points": points,
        "left_out": missing,
    }


def draw(data: dict[str, Any]) -> Figure:
    """Points with bars of one standard deviation over contours of H."""
    from promptbench.plots.style import finish, new_figure, series_style

    figure, axes = new_figure(3.1)
    for place, point in enumerate(data["points"]):
        (x, y), (dx, dy) = point["mean"], point["std"]
        style = series_style(place) | {"linestyle": "none"}
        axes.errorbar([x], [y], xerr=[dx or 0], yerr=[dy or 0], label=point["method"], zorder=3, **style)
    axes.set_xlabel(data["x"])
    axes.set_ylabel(data["y"])
    _contours(axes)
    return finish(figure, data, "Grey lines: equal harmonic mean H.")


def _contours(axes: Any) -> None:
    """Lines of equal H within the present limits, labelled."""
    import numpy as np

    axes.margins(0.08)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    base, new = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    h = 2 * base * new / (base + new)
    span = h.max() - h.min()
    step = next(step for step in (0.2, 0.5, 1, 2, 5, 10, 20, 50) if span / step <= 7)
    levels = np.arange(np.ceil(h.min() / step) * step, h.max(), step)
    lines = axes.contour(base, new, h, levels=levels, colors="0.75", linewidths=0.6, zorder=1)
    axes.clabel(lines, fmt=lambda level: f"H {level:g}", fontsize=7, colors="0.45")
