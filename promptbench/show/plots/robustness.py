"""Accuracy under corruptions: over the severity, and the drop from clean images under each kind."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

from promptbench.show.plots.picture import bars_are, finish, new_figure, style_in, width_of
from promptbench.show.plots.source import NothingToShow, Source, about, name, over, overall
from promptbench.show.tables.table import Line, population_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "robustness"
CLEAN = "0"  # the severity of clean images


def data(source: Source) -> dict[str, Any]:
    """Per method: mean and standard deviation over seeds of the accuracy, in percent, by severity, the mean over the
    kinds that have all severities, and of the drop from clean images, in points, by kind."""
    table = source.table()
    lines = [line for line in overall(table) if "drop" in line.cells and line.cells["drop"].mean is not None]
    if not lines:
        raise NothingToShow(f"The protocol {source.protocol} has no corrupted images; robustness has.")
    kinds: dict[str, list[str]] = {}
    for corruption in lines[0].results[0].spec.corruption.split():
        kind, _, severity = corruption.partition(":")
        kinds.setdefault(kind, []).append(severity)
    severities = sorted(set.intersection(*map(set, kinds.values())))
    series = []
    for line in lines:
        clean = _over_seeds(line, [["clean"]])
        curve = {severity: _over_seeds(line, [[f"{kind}:{severity}" for kind in kinds]]) for severity in severities}
        drops = {kind: _over_seeds(line, [["clean"], [kind]]) for kind in kinds}
        series.append({"method": name(line), "by_severity": {CLEAN: clean, **curve}, "by_kind": drops})
    return {
        **about("robustness", source, table, lines),
        "y": f"accuracy, {over(table, lines[0])} (%)",
        "severities": [CLEAN, *severities],
        "kinds": list(kinds),
        "series": series,
    }


def _over_seeds(line: Line, groups: list[list[str]]) -> list[float | None]:
    """Mean and standard deviation, over the seeds, of the mean accuracy of a group of evaluations, less that of the
    second."""
    values = []
    for result in line.results:
        means = [fmean(result.metrics[f"{evaluation}/accuracy"] for evaluation in group) for group in groups]
        values.append(means[0] - sum(means[1:]))
    return [fmean(values), population_std(values) if len(values) > 1 else None]


def draw(data: dict[str, Any]) -> Figure:
    """Curves over the severity, where there are several, above a row of marks for each kind."""
    curves = len(data["severities"]) > 2
    kinds = data["kinds"]
    methods = len(data["series"])
    below = 0.45 + max(0.17, 0.07 * methods) * len(kinds)
    if curves:
        how = {"height_ratios": [2.1, below]}
        figure, (above, axes) = new_figure(2.1 + below, width=width_of(data), rows=2, gridspec_kw=how)
        _draw_curves(above, data)
    else:
        figure, axes = new_figure(below, width=width_of(data))
    for place, series in enumerate(data["series"]):
        look = {**style_in(data, series["method"]), "linestyle": "none"}
        places = [row + 0.8 * ((place + 0.5) / methods - 0.5) for row in range(len(kinds))]
        axes.plot([series["by_kind"][kind][0] for kind in kinds], places, label=series["method"], **look)
    for row in range(0, len(kinds), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.94", linewidth=0, zorder=0)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("drop from clean images, in points")
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """What is above and what below."""
    if len(data["severities"]) > 2:
        return ["Above the mean over kinds, below the drop of each, the mean over severities.", *bars_are(data)]
    return [f"Drops at severity {data['severities'][-1]}."]


def _draw_curves(axes: Any, data: dict[str, Any]) -> None:
    """Accuracy, the mean over kinds, from clean images to the highest severity."""
    places = range(len(data["severities"]))
    for series in data["series"]:
        mean, std = zip(*(series["by_severity"][severity] for severity in data["severities"]), strict=True)
        style = style_in(data, series["method"])
        axes.errorbar(places, mean, yerr=[one or 0 for one in std], label=series["method"], **style)
    axes.set_xticks(places, ["clean", *data["severities"][1:]])
    axes.set_xlabel("severity")
    axes.set_ylabel(data["y"])
