"""Reliability diagrams of base and of new images: how often a method is right, by how sure it is."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from promptbench.config import UsageError
from promptbench.metrics.classification import confidence_bins, confidences
from promptbench.results.predictions import Predictions, stored_predictions
from promptbench.show.plots.picture import LABEL, finish, new_figure, width_of
from promptbench.show.plots.source import NothingToShow, Source, about, name, overall
from promptbench.show.tables.table import Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
BINS = 15  # as of `ece`
EVALUATIONS = ("base", "new")
MOST_METHODS = 3  # that a column has room for


def data(source: Source) -> dict[str, Any]:
    """Per method and half of the classes: images, accuracy and confidence by bin, all images of its runs together.

    The calibration error is that of these images together, where tables have the mean over runs; after a temperature
    where all runs have one.
    """
    table = source.table()
    lines = overall(table)
    panels = {name(line): found for line in lines if (found := _panels(source, line))}
    if not panels:
        raise NothingToShow(
            f"There are no predictions of base and new images beside the {source.protocol} results; make some with "
            "`promptbench run --save-predictions`."
        )
    if len(panels) > MOST_METHODS:
        raise UsageError(
            f"Reliability diagrams of {len(panels)} methods are too many for a column; name at most {MOST_METHODS} "
            "with --method."
        )
    shown = [line for line in lines if name(line) in panels]
    datasets = {result.spec.dataset for result in chain.from_iterable(line.results for line in shown)}
    return {
        **about("reliability", source, table, shown),
        "datasets": sorted(datasets),
        "panels": [{"method": method, "halves": halves} for method, halves in panels.items()],
    }


def _panels(source: Source, line: Line) -> dict[str, Any]:
    """By half the bins of all images of a line's runs; nothing where a run has no predictions of the half."""
    stored = [(result, stored_predictions(source.folders, result.spec) or {}) for result in line.results]
    halves = {}
    for half in EVALUATIONS:
        if all(half in found for _, found in stored):
            temperatures = [result.metrics.get("temperature") for result, _ in stored]
            halves[half] = bins_of([found[half] for _, found in stored], temperatures)
    return halves


def bins_of(runs: Sequence[Predictions], temperatures: Sequence[float | None]) -> dict[str, Any]:
    """Images, accuracy and confidence in percent by bin, and the calibration error, also after temperatures."""
    right = torch.cat([run.logits.argmax(dim=1) == run.labels for run in runs])
    plain = torch.cat([confidences(run.logits) for run in runs])
    found = binned(plain, right)
    if any(temperature is None for temperature in temperatures):
        return found
    pairs = zip(runs, temperatures, strict=True)
    scaled = torch.cat([confidences(run.logits, temperature or 1.0) for run, temperature in pairs])
    return {**found, "ece_scaled": binned(scaled, right)["ece"]}


def binned(confidence: Tensor, right: Tensor) -> dict[str, Any]:
    """The same of confidences (N,), from 0 to 1, and of whether images are recognised (N,)."""
    place = confidence_bins(confidence, BINS)
    counts = place.bincount(minlength=BINS).double()
    hits = 100 * place.bincount(right.double(), minlength=BINS)
    sure = 100 * place.bincount(confidence.double(), minlength=BINS)
    filled = counts.clamp(min=1)
    return {
        "images": counts.int().tolist(),
        "accuracy": (hits / filled).tolist(),
        "confidence": (sure / filled).tolist(),
        "ece": float((hits - sure).abs().sum()) / len(confidence),
    }


def draw(data: dict[str, Any]) -> Figure:
    """Two panels a method, bars of accuracy with the gap to confidence hatched, and the number of images below."""
    panels = data["panels"]
    heights = [3.0, 1.0] * len(panels)
    options = {"sharex": True, "sharey": "row", "squeeze": False, "gridspec_kw": {"height_ratios": heights}}
    figure, grid = new_figure(
        2.1 * len(panels) + 0.25, width=width_of(data), rows=2 * len(panels), columns=2, **options
    )
    for place, panel in enumerate(panels):
        for column, half in enumerate(EVALUATIONS):
            above, below = grid[2 * place][column], grid[2 * place + 1][column]
            if half not in panel["halves"]:
                above.set_axis_off()
                below.set_axis_off()
                continue
            _bars(above, panel["halves"][half])
            _counts(below, panel["halves"][half])
            above.set_title(_title(half, panel["halves"][half]), fontsize=7.5, pad=3)
        grid[2 * place][0].set_ylabel(f"{textwrap.fill(panel['method'], LABEL)}\naccuracy (%)")
        grid[2 * place + 1][0].set_ylabel("images\n(%)")
    for axes in grid[-1]:
        axes.set_xlabel("confidence (%)")
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """Which images are shown, and what the numbers are."""
    pooled = f"Images of {len(data['datasets'])} datasets together, where tables average runs."
    sentences = [pooled] if len(data["datasets"]) > 1 else []
    sentences.append(f"ECE (%) over {BINS} bins.")
    halves = chain.from_iterable(panel["halves"].values() for panel in data["panels"])
    if any("ece_scaled" in half for half in halves):
        sentences.append("→: after the temperature, which the bars do not show.")
    return sentences


def _title(half: str, found: dict[str, Any]) -> str:
    after = f" → {found['ece_scaled']:.1f}" if "ece_scaled" in found else ""
    return f"{half}: ECE {found['ece']:.1f}{after}"


def _bars(axes: Any, found: dict[str, Any]) -> None:
    """Accuracy by bin, and from it to the mean confidence the gap: above where the method is too sure of itself."""
    filled = np.flatnonzero(found["images"])
    width = 100 / BINS
    left = filled * width
    accuracy, confidence = np.array(found["accuracy"])[filled], np.array(found["confidence"])[filled]
    look = {"width": width, "align": "edge"}
    axes.plot([0, 100], [0, 100], color="0.5", linewidth=0.7, linestyle="--", zorder=1)
    axes.bar(left, accuracy, color="0.72", edgecolor="white", linewidth=0.4, label="accuracy", zorder=2, **look)
    gap = {"fill": False, "edgecolor": "#d55e00", "linewidth": 0.6, "hatch": "/////", "zorder": 3}
    axes.bar(left, confidence - accuracy, bottom=accuracy, label="gap to confidence", **gap, **look)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 103)


def _counts(axes: Any, found: dict[str, Any]) -> None:
    images = np.array(found["images"])
    axes.bar(np.arange(BINS) * 100 / BINS, 100 * images / images.sum(), width=100 / BINS, align="edge", color="0.35")
    axes.set_xlim(0, 100)
