"""Accuracy against the number of training images per class; a method that sees none is a level line."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from promptbench.show.plots.picture import finish, new_figure, style_of
from promptbench.show.plots.source import NothingToShow, Source, about, name, over, overall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "few_shot"
STORED = True


def data(source: Source) -> dict[str, Any]:
    """Per method: shots, means and standard deviations over seeds, in percent."""
    table = source.table()
    lines = overall(table)
    shots = {column.key: column.key.partition("/")[0] for column in table.columns}
    if source.layout.protocol.along != "shots":
        raise NothingToShow(f"The protocol {source.protocol} does not compare numbers of shots; few_shot does.")
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
    return {**about("shots", source, table, lines), "y": f"accuracy, {over(table, lines[0])} (%)", "series": series}


def draw(data: dict[str, Any]) -> Figure:
    """Curves over evenly spaced numbers of shots, which is a logarithmic axis for 1, 2, 4, 8, 16."""
    figure, axes = new_figure(2.7)
    numbers = set(chain.from_iterable(series["shots"] for series in data["series"])) - {"0"}
    ticks = sorted(numbers, key=lambda text: (text == "all", int(text) if text != "all" else 0))
    for place, series in enumerate(data["series"]):
        style = style_of(series["method"], data["methods"])
        if series["shots"] == ["0"]:
            axes.axhline(series["mean"][0], color=style["color"], linestyle=style["linestyle"], label=series["method"])
            continue
        shift = 0.03 * (place - len(data["series"]) / 2)  # so that bars do not hide each other
        x = [ticks.index(shots) + shift for shots in series["shots"]]
        axes.errorbar(x, series["mean"], yerr=[std or 0 for std in series["std"]], label=series["method"], **style)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlabel("training images per class")
    axes.set_ylabel(data["y"])
    return finish(figure, data)
