"""The ratios of a report as a picture: against their bars, and over the number of classes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from promptbench.show.plots.picture import LETTERS, new_figure, style_of

from .measure import MAIN, VIT_B16
from .rows import LEAST_SHARE, Row, bars, steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = ("coop", "cocoop", "maple", "promptsrc", "gallop", "clip_lora")
"""Methods whose ratios are drawn over the number of classes; the table has all."""


def draw(report: Mapping[str, Any]) -> Figure:
    """Plain seconds over ours: what was measured and its bar, and for each backbone the steps by number of classes."""
    judged = [row for row in bars(report) if row.unit == "x" and row.value is not None]
    backbones = {name: series(found["groups"]) for name, found in report["backbones"].items()}
    labels = list(dict.fromkeys(label for points in backbones.values() for label in points))
    reached = shares(report["backbones"].get(VIT_B16, {"groups": ()})["groups"])
    heights = [0.3 + 0.3 * len(judged)] * bool(judged) + [0.3 + 0.14 * len(reached)] * bool(reached)
    heights += [1.2] * len(backbones)
    figure, panels = new_figure(sum(heights) + 1.0, rows=len(heights), height_ratios=heights, squeeze=False)
    panels = [row[0] for row in panels]
    if judged:
        _against_bars(panels.pop(0), judged)
    if reached:
        _against_limit(panels.pop(0), reached)
    for axes, (name, points) in zip(panels, backbones.items(), strict=True):
        _over_classes(axes, name, points, labels)
    if labels:
        panels[0].legend(loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=2, handlelength=2.2, columnspacing=0.8)
    machine = report["machine"]
    said = (
        f"Plain seconds over ours, medians of one run in turns; {machine['processor']}, {machine['threads']} "
        f"thread{'s' * (machine['threads'] != 1)}, float32. {report['allocator'][0].upper()}{report['allocator'][1:]}. "
        "Where the table has ~, a part of plain was counted, not timed."
    )
    figure.supxlabel(textwrap.fill(said, LETTERS), fontsize=7, color="0.3", x=0.01, ha="left", linespacing=1.15)
    return figure


def _against_bars(axes: Any, rows: Sequence[Row]) -> None:
    """A bar for each measured ratio, with a line across it where it has to reach."""
    places = range(len(rows))
    reached = [row.value or 0.0 for row in rows]
    wanted = [row.bar or 0.0 for row in rows]
    axes.barh(places, reached, height=0.4, color="0.75", edgecolor="black", linewidth=0.5)
    for place, row, value, bar in zip(places, rows, reached, wanted, strict=True):
        axes.plot([bar, bar], [place - 0.28, place + 0.28], color="black", linewidth=1.6)
        axes.text(1.06 * max(value, bar), place, f"{value:.3g}", va="center", fontsize=7)
        axes.text(1.05, place - 0.33, row.what, va="bottom", fontsize=7)
    axes.set_yticks([])
    axes.invert_yaxis()
    _logarithmic(axes.xaxis, axes.set_xscale)
    axes.set_xlim(1, 2 * max(*reached, *wanted))
    axes.set_xlabel("plain / ours, 100 classes (line: the bar)")


def shares(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Percent of the limit that each method's step reaches, as it is trained, with as many classes as the bars ask."""
    return {
        step.method: step.share for step in steps(groups) if step.as_trained and step.classes == MAIN and step.share
    }


def _against_limit(axes: Any, reached: Mapping[str, float]) -> None:
    """A bar for each method's share of its limit, with a line where it has to reach."""
    axes.barh(range(len(reached)), list(reached.values()), height=0.7, color="0.75", edgecolor="black", linewidth=0.5)
    axes.axvline(LEAST_SHARE, color="black", linewidth=1.6)
    axes.set_yticks(range(len(reached)), list(reached), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of the limit, {MAIN} classes (line: the bar)")


def series(groups: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Classes and ratio of the steps of a few methods, those timed at several numbers of classes, by what they are."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step in steps(groups):
        if step.ratio is not None and step.as_trained and step.method in DRAWN:
            found.setdefault(f"{step.method}, batch {step.batch}", []).append((step.classes, step.ratio))
    return {label: sorted(points) for label, points in found.items() if len(points) > 1}


def _over_classes(axes: Any, name: str, points: Mapping[str, list[tuple[int, float]]], labels: Sequence[str]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    for label, line in points.items():
        axes.plot(*zip(*line, strict=True), label=label, **style_of(label, labels))
    _logarithmic(axes.xaxis, axes.set_xscale)
    axes.xaxis.set_major_locator(FixedLocator(sorted({classes for line in points.values() for classes, _ in line})))
    axes.xaxis.set_minor_locator(NullLocator())
    _logarithmic(axes.yaxis, axes.set_yscale)
    axes.margins(x=0.1, y=0.15)
    axes.set_xlabel(f"classes, {name}")
    axes.set_ylabel("plain / ours")


def _logarithmic(axis: Any, set_scale: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
