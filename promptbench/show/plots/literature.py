"""H of published methods over the years of their papers, every one labelled, and the best until then.

It shows what papers print, and no figure of ours: `data` takes rows of `promptbench.results.papers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError
from promptbench.results.papers import SEARCHED, Published, bib_key_of, bib_key_of_source, year_of
from promptbench.show.plots.picture import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL, DATASET, METRIC = "base2new", "average11", "h"
WIDE, HIGH = 6.9, 4.05  # inches: both columns of a two-column paper
SMALL, FITS = 5.8, 20  # points, the names; those of more letters than fit between two years are smaller
END = 0.5  # years of room for the names of the last year
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # the names, so that no line strikes them through


def data(rows: Sequence[Published]) -> dict[str, Any]:
    """Per method: the year of its paper, H in percent, and whether its settings saw images that they should not.

    Of several rows of a method its own paper's counts, else what most sources print.

    Raises:
        UsageError: There is no such figure among the rows.
    """
    shown = [row for row in rows if (row.protocol, row.dataset, row.metric) == (PROTOCOL, DATASET, METRIC)]
    of_method: dict[tuple[str, ...], list[Published]] = {}
    for row in shown:
        if bib_key_of(row):
            of_method.setdefault(row.same, []).append(row)
    points: dict[tuple[str, float], dict[str, Any]] = {}
    for row in map(_usual, of_method.values()):
        point = {"year": year_of(bib_key_of(row)), "h": row.value, "searched": row.selection.kind in SEARCHED}
        # one figure may stand under two names, such as a plug-in's and that of CoOp with it
        points.setdefault((bib_key_of(row), row.value), {"method": row.method, **point})
    if not points:
        raise UsageError(f"There is no published {METRIC} of {PROTOCOL} on {DATASET} by a method whose paper is known.")
    return {
        "kind": "literature",
        "backbones": sorted({row.backbone for row in shown}),
        "points": sorted(points.values(), key=lambda point: (point["year"], point["h"], point["method"])),
    }


def _usual(rows: Sequence[Published]) -> Published:
    """The row of a method's own paper, else one with what most sources print, the first of equals."""

    def weight(row: Published) -> tuple[bool, int]:
        own = bib_key_of(row) == bib_key_of_source(row)
        return own, sum(abs(other.value - row.value) <= other.rounding + row.rounding for other in rows)

    return max(rows, key=weight)


def draw(data: Mapping[str, Any]) -> Figure:
    """A column of points for each year, their names beside them, and the best until each year as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, HIGH))
    axes = figure.add_axes((0.065, 0.06, 0.93, 0.92))
    years = sorted({point["year"] for point in data["points"]})
    values = [point["h"] for point in data["points"]]
    room = 0.06 * (max(values) - min(values)) + 0.3
    axes.set(xlim=(years[0] - 0.12, years[-1] + END), ylim=(min(values) - room, max(values) + room))
    _best(axes, data["points"], years)
    names = short_names([point["method"] for point in data["points"]])
    for year in years:
        _column(axes, [point for point in data["points"] if point["year"] == year], names)
    axes.set_xticks(years, [str(year) for year in years])
    axes.set_ylabel("H, mean of 11 datasets (%)")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure


def caption_of(data: Mapping[str, Any]) -> str:
    """The caption of the picture."""
    return (
        f"Printed figures of base to new classes, {', '.join(data['backbones'])}, 16 shots, over the years in which "
        "papers appeared; none is measured here. Line: the best until then. Hollow: settings or epoch chosen on "
        "validation or test images; of the others most sources do not say how they were chosen. Some are told more "
        "than the 16 images, such as class descriptions or a larger teacher."
    )


def _best(axes: Any, points: Sequence[Mapping[str, Any]], years: Sequence[int]) -> None:
    """The highest H of all papers until each year, as steps."""
    best = [max(point["h"] for point in points if point["year"] <= year) for year in years]
    axes.step([*years, years[-1] + END], [*best, best[-1]], where="post", color="0.75", linewidth=1.0, zorder=1)


def short_names(methods: Sequence[str]) -> dict[str, str]:
    """Names without what stands in brackets, where that tells none apart."""
    short = {method: method.partition(" (")[0].replace(" + ", "+") for method in methods}
    return {method: name if list(short.values()).count(name) == 1 else method for method, name in short.items()}


def _column(axes: Any, points: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """The points of a year from the lowest up, each name beside its point, or as near as the others leave room."""
    low, high = axes.get_ylim()
    height = (high - low) / (HIGH * 0.92 * 72) * (SMALL * 1.25)  # of a line of names, in points of H
    places = spread([point["h"] for point in points], height)
    for point, place in zip(points, places, strict=True):
        year, h = point["year"], point["h"]
        face = "white" if point["searched"] else COLOURS[2]
        axes.plot([year], [h], "o", color=COLOURS[2], markerfacecolor=face, zorder=3)
        axes.plot([year + 0.03, year + 0.08], [h, place], color="0.6", linewidth=0.4, zorder=2)
        name = names[point["method"]]
        size = SMALL * min(1.0, FITS / len(name))
        axes.text(year + 0.09, place, name, fontsize=size, va="center", zorder=4, bbox=BEHIND)


def spread(values: Sequence[float], least: float) -> list[float]:
    """Places as near to rising values as can be, in the mean of squares, that are `least` apart or more.

    Values whose places would touch form a group that is centred on their mean; groups that touch become one.
    """
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _start(groups[-1], least) < _start(groups[-2], least) + len(groups[-2]) * least:
            last = groups.pop()
            groups[-1] += last
    places: list[float] = []
    for group in groups:
        places += [_start(group, least) + number * least for number in range(len(group))]
    return places


def _start(group: Sequence[float], least: float) -> float:
    """The lowest place of a group."""
    return sum(group) / len(group) - least * (len(group) - 1) / 2
