"""The trade-off behind OpenworldAUC: base images taken for base and recognised against new ones taken for new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from promptbench.metrics.classification import OpenWorld, open_world
from promptbench.results.predictions import Predictions, stored_predictions
from promptbench.show.plots.picture import finish, new_figure, style_in, width_of
from promptbench.show.plots.source import NothingToShow, Source, about, name, over, overall
from promptbench.show.tables.table import Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
STEPS = 200  # of the axis that curves are averaged along
MARKED = 40  # steps from one mark to the next
EVALUATIONS = ("base", "new", "joint")

Curve = tuple[np.ndarray, float]  # base side along the steps, and the area below


def data(source: Source) -> dict[str, Any]:
    """Per method: base side along the new side, in percent, and the area below, which is OpenworldAUC.

    Curves are averaged over the seeds of a dataset and then over datasets, at equal shares of new images, which keeps
    the area the mean that tables show; beyond the most that a run recognises, its base side is 0.
    """
    table = source.table()
    lines = overall(table)
    found = [(line, curve) for line in lines if (curve := _mean_curve(source, line))]
    if not found:
        raise NothingToShow(
            f"There are no predictions of base, new and joint images beside the {source.protocol} results; make some "
            "with `promptbench run --save-predictions`."
        )
    shown = [line for line, _ in found]
    missing = [name(line) for line in lines if line not in shown]
    series = [{"method": name(line), "base": heights.tolist(), "auc": area} for line, (heights, area) in found]
    return {
        **about("open-world", source, table, lines, missing),
        "over": over(table, shown[0]),
        "new": _axis().tolist(),
        "series": series,
        "left_out": missing,
    }


def _axis() -> np.ndarray:
    return np.linspace(0, 100, STEPS + 1)


def _mean_curve(source: Source, line: Line) -> Curve | None:
    """The mean curve of a line; None where a dataset of it has no predictions of all three evaluations."""
    by_dataset: dict[str, list[Curve]] = {result.spec.dataset: [] for result in line.results}
    for result in line.results:
        found = stored_predictions(source.folders, result.spec) or {}
        if found.keys() >= set(EVALUATIONS):
            by_dataset[result.spec.dataset].append(curve_of(found))
    if not all(by_dataset.values()):
        return None
    heights = [np.mean([curve for curve, _ in curves], axis=0) for curves in by_dataset.values()]
    areas = [fmean(area for _, area in curves) for curves in by_dataset.values()]
    return np.mean(heights, axis=0), fmean(areas)


def curve_of(predictions: Mapping[str, Predictions]) -> Curve:
    """The curve of a run along the steps, and the area below it."""
    of = paired(*(predictions[evaluation] for evaluation in EVALUATIONS))
    new_side, base_side = (np.array(side)[::-1] for side in of.curve())
    return np.interp(_axis(), new_side, base_side, right=0.0), of.auc()


def paired(base: Predictions, new: Predictions, joint: Predictions) -> OpenWorld:
    """Base and new images among the names of their half and, found again by their paths, among all names."""
    rows = {image: row for row, image in enumerate(joint.images)}
    of_all = tuple(joint.logits[torch.tensor([rows[image] for image in half.images])] for half in (base, new))
    columns = columns_of(base.class_names, joint.class_names)
    return open_world((base.logits, base.labels), (new.logits, new.labels), (of_all[0], of_all[1]), columns)


def columns_of(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """Where names stand among others; of several that are alike, the first comes first."""
    places: dict[str, list[int]] = {}
    for column, known in enumerate(among):
        places.setdefault(known, []).append(column)
    return [places[wanted].pop(0) for wanted in names]


def draw(data: dict[str, Any]) -> Figure:
    """A curve per method, with its area in the legend."""
    figure, axes = new_figure(2.9, width=width_of(data))
    new = np.array(data["new"])
    for place, series in enumerate(data["series"]):
        base = np.array(series["base"])
        last = int(np.flatnonzero(base)[-1]) + 2 if base.any() else 1
        marks = {"markevery": (3 + 5 * place % MARKED, MARKED), "markersize": 3.5}
        style = style_in(data, series["method"]) | marks
        axes.plot(new[:last], base[:last], label=series["method"], **style)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_aspect("equal")
    axes.grid(True)
    axes.set_xlabel("new images taken for new and recognised (%)")
    axes.set_ylabel("base images taken for base\nand recognised (%)")
    areas = {series["method"]: f"{series['auc']:.1f}" for series in data["series"]}
    return finish(figure, data, behind=areas)


def said(data: Mapping[str, Any]) -> list[str]:
    """What the numbers are, and what runs along a curve."""
    numbers = f"Numbers: OpenworldAUC (%), the area below, {data['over']}."
    return [numbers, "Along a curve the threshold of being base falls."]
