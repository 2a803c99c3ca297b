"""Accuracy against the number of training images per class; a method that sees none is a level line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from promptbench.show.plots.looks import KINDS
from promptbench.show.plots.picture import (
    bars_are,
    finish,
    is_dimmed,
    label_below,
    panel_grid,
    style_in,
    text_width,
    title_panels,
    width_of,
)
from promptbench.show.plots.source import NothingToShow, Source, about, name, over, overall
from promptbench.show.tables.table import Line, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "few_shot"
TOGETHER = 5  # curves that a panel shows so that each can be followed
HIGH = 1.45  # inches, a panel of several


def data(source: Source) -> dict[str, Any]:
    """Per method: shots, means and standard deviations over seeds, in percent; of each dataset too, if asked for."""
    table = source.table()
    lines = overall(table)
    if source.layout.protocol.along != "shots":
        raise NothingToShow(f"The protocol {source.protocol} does not compare numbers of shots; few_shot does.")
    found = {
        **about("shots", source, table, lines),
        "y": f"accuracy, {over(table, lines[0])} (%)",
        "series": _series(table, lines),
    }
    if source.by_dataset:
        blocks = dict.fromkeys(line.group for line in table.lines if line.kind == "block")
        found["by_dataset"] = {}
        for block in blocks:
            own = [line for line in table.lines if line.group == block]
            found["by_dataset"][table.title(block)] = _series(table, own)
        found["datasets"] = list(found["by_dataset"])
    return found


def _series(table: Table, lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The curves of some lines."""
    shots = {column.key: column.key.partition("/")[0] for column in table.columns}
    series = []
    for line in lines:
        cells = [(shots[key], cell) for key, cell in line.cells.items() if cell.mean is not None]
        series.append(
            {
                "method": name(line),
                "shots": [number if number != "None" else "all" for number, _ in cells],
                "mean": [cell.mean for _, cell in cells],
                "std": [cell.std for _, cell in cells],
            }
        )
    return series


def draw(data: dict[str, Any]) -> Figure:
    """Curves over evenly spaced numbers of shots, which is a logarithmic axis for 1, 2, 4, 8, 16.

    Where curves are many there is a panel for each kind of methods, in which the others are grey; a panel for each
    dataset, and one for their average, if asked for.
    """
    panels = _panels(data)
    one = len(panels) == 1
    figure, grid = panel_grid(len(panels), 2.5 if one else HIGH, width_of(data), least=1.5, sharex=True, sharey=True)
    ticks = _ticks(data["series"])
    for axes, (_, series, front) in zip(grid.flat, panels, strict=False):
        _draw_curves(axes, data, series, front, ticks)
        axes.set_xticks(range(len(ticks)), ticks)
    above = title_panels(
        list(grid.flat)[: len(panels)], [title for title, _, _ in panels], width_of(data) / len(grid[0]) - 0.3
    )
    figure.set_figheight(figure.get_figheight() + (0 if one else len(grid) * above))
    if one:
        grid[0][0].set_ylabel(data["y"])
        grid[0][0].set_xlabel("training images per class")
    else:
        label = "accuracy (%)" if "by_dataset" in data else data["y"]
        figure.supylabel(textwrap.fill(label, int(HIGH * len(grid) / text_width("n"))), fontsize=7.5)
        label_below(grid, len(panels), "training images per class")
    return finish(figure, data)


def _panels(data: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]], set[str]]]:
    """Of each panel its title, its curves, and the names of those that are not in grey."""
    series, names = data["series"], {one["method"] for one in data["series"]}
    if "by_dataset" in data:
        of_datasets = [(dataset, data["by_dataset"][dataset], names) for dataset in data["datasets"]]
        return [*of_datasets, ("average", series, names)] if len(of_datasets) > 1 else of_datasets
    level = {one["method"] for one in series if one["shots"] == ["0"]}
    curves = names - level
    if len(curves) <= TOGETHER or any(is_dimmed(data, one) for one in names):
        return [("", series, names)]
    by_kind: dict[str, set[str]] = {}
    for one in sorted(curves, key=lambda one: list(KINDS).index(data["looks"][one]["kind"])):
        by_kind.setdefault(data["looks"][one]["kind"], set()).add(one)
    if len(by_kind) == 1:
        return [("", series, names)]
    return [(KINDS[kind].title, series, own | level) for kind, own in by_kind.items()]


def _ticks(series: Iterable[Mapping[str, Any]]) -> list[str]:
    """All numbers of shots, by size."""
    numbers = set(chain.from_iterable(one["shots"] for one in series)) - {"0"}
    return sorted(numbers, key=lambda text: (text == "all", int(text) if text != "all" else 0))


def _draw_curves(
    axes: Any,
    data: Mapping[str, Any],
    series: Sequence[Mapping[str, Any]],
    front: set[str],
    ticks: Sequence[str],
) -> None:
    """The curves of a panel, moved a little aside, so that bars do not hide each other."""
    shown = [one["method"] for one in series if one["method"] in front]
    for one in series:
        style = style_in(data, one["method"])
        places = [float(ticks.index(shots)) for shots in one["shots"] if shots != "0"]
        if one["method"] not in front:
            axes.plot(places, one["mean"], color="0.85", linewidth=0.8, zorder=1)
        elif not places:
            line = {"color": style["color"], "linestyle": style["linestyle"], "zorder": style["zorder"]}
            axes.axhline(one["mean"][0], label=one["method"], **line)
        else:
            shift = 0.04 * (shown.index(one["method"]) - (len(shown) - 1) / 2)
            bars = {"yerr": [std or 0 for std in one["std"]], "elinewidth": 0.7}
            axes.errorbar([place + shift for place in places], one["mean"], label=one["method"], **bars, **style)


def said(data: Mapping[str, Any]) -> list[str]:
    """What is grey, and what bars are."""
    grey = ["Grey: the methods of the other panels."] if "by_dataset" not in data and len(_panels(data)) > 1 else []
    return [*grey, *bars_are(data)]
