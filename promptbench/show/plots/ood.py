"""Histograms of an OOD score over in-distribution images and over each set of strangers, from stored predictions."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from promptbench import registry
from promptbench.config import UsageError, unknown
from promptbench.results.predictions import Predictions, load_predictions
from promptbench.results.result import Result, find_predictions
from promptbench.show.plots.picture import finish, new_figure, width_of
from promptbench.show.plots.source import NothingToShow, Source, about, overall
from promptbench.show.plots.source import name as name_of
from promptbench.show.tables.formats.texts import seeds_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "ood"
BINS = 24
MOST_METHODS = 3  # that a column has room for
INSIDE = "id"  # the evaluation on in-distribution images


def data(source: Source) -> dict[str, Any]:
    """Per method: shares of images, in percent, by bin of the score, of ID images and of each OOD set.

    The run is the one with the first seed that has predictions.
    """
    score = source.score or registry.load("protocols", source.protocol).scores[0]
    if score not in registry.names("scores"):
        raise unknown("score", score, registry.names("scores"))
    table = source.table()
    chosen = [(line, found) for line in overall(table) if (found := _first_stored(source, line.results, score))]
    if not chosen:
        raise NothingToShow(
            f"There are no predictions with the score {score} beside the {source.protocol} results; make some with "
            "`promptbench run --save-predictions`."
        )
    if len(chosen) > MOST_METHODS:
        raise UsageError(
            f"Histograms of {len(chosen)} methods are too many for a column; name at most {MOST_METHODS} with --method."
        )
    panels = [_panel(name_of(line), result, by_set, score) for line, (result, by_set) in chosen]
    sets = _in_order(source, list(panels[0]["shares"]))
    facts = about("ood", source, table, [line for line, _ in chosen])
    shown = [seeds_text([result.spec.seeds], "") for _, (result, _) in chosen]
    return {
        **facts,
        "seeds": shown,
        "n": dict.fromkeys(facts["n"], "1"),
        "score": registry.facts("scores", score).attributes["title"],
        "sets": sets,
        "titles": registry.titles("datasets", sets),
        "panels": panels,
    }


def _first_stored(
    source: Source, results: Sequence[Result], score: str
) -> tuple[Result, Mapping[str, Predictions]] | None:
    """The result with the first seeds whose predictions are there and have the score."""
    for result in sorted(results, key=lambda result: result.spec.seeds):
        for folder in source.folders:
            path = find_predictions(folder, result.spec)
            if path:
                found = load_predictions(path)
                if INSIDE in found and all(score in of_set.scores for of_set in found.values()):
                    return result, found
    return None


def _panel(method: str, result: Result, by_set: Mapping[str, Predictions], score: str) -> dict[str, Any]:
    scores = {name: of_set.scores[score].double() for name, of_set in by_set.items()}
    together = torch.cat(list(scores.values()))
    low, high = float(together.min()), float(together.max())
    edges = [low + (high - low) * place / BINS for place in range(BINS + 1)]
    aurocs = {name: result.metrics.get(f"{name}/{score}/auroc") for name in scores if name != INSIDE}
    return {
        "method": method,
        "edges": edges,
        "auroc": aurocs,
        "shares": {name: _shares(values, low, high) for name, values in scores.items()},
    }


def _shares(values: Tensor, low: float, high: float) -> list[float]:
    """Percent of the values in each of equal bins."""
    place = ((values - low) / (high - low or 1.0) * BINS).long().clamp(0, BINS - 1)
    return [100 * count / len(values) for count in place.bincount(minlength=BINS).tolist()]


def _in_order(source: Source, names: Sequence[str]) -> list[str]:
    """The OOD sets in the suite's order."""
    order = {name: place for place, name in reversed(list(enumerate(source.datasets)))}
    return sorted((name for name in names if name != INSIDE), key=lambda name: (order.get(name, len(order)), name))


def draw(data: dict[str, Any]) -> Figure:
    """A row per OOD set, hatched, over the in-distribution images, grey; a column per method."""
    sets, panels = data["sets"], data["panels"]
    options = {"sharex": True, "sharey": True, "squeeze": False}
    figure, grid = new_figure(
        0.6 + 0.62 * len(sets), width=width_of(data), rows=len(sets), columns=len(panels), **options
    )
    for row, name in enumerate(sets):
        for axes, panel in zip(grid[row], panels, strict=True):
            _histograms(axes, panel, name)
        grid[row][0].set_title(data["titles"][name], fontsize=7, loc="left", pad=2)
    for axes, panel in zip(grid[0], panels, strict=True):
        axes.annotate(
            textwrap.fill(panel["method"], 16), (0.5, 1.32), xycoords="axes fraction", ha="center", va="bottom"
        )
    for axes in grid[-1]:
        axes.set_xlabel(f"{data['score']} score")
    shares = chain.from_iterable(panel["shares"].values() for panel in panels)
    highest = max(chain.from_iterable(shares))
    grid[0][0].set_ylim(0, 1.25 * highest)
    figure.supylabel("images (%)", fontsize=7.5)
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """Which seeds are shown, and what the numbers are."""
    return [f"Seed {', '.join(dict.fromkeys(data['seeds']))}.", "Numbers: AUROC (%)."]


def _histograms(axes: Any, panel: dict[str, Any], name: str) -> None:
    inside, outside, edges = panel["shares"][INSIDE], panel["shares"][name], panel["edges"]
    axes.stairs(inside, edges, fill=True, color="0.72", label="in-distribution")
    axes.stairs(outside, edges, color="black", linewidth=0.9, hatch="//////", label="out-of-distribution")
    axes.margins(x=0.02)
    if panel["auroc"][name] is not None:
        place = {"xycoords": "axes fraction", "ha": "right", "va": "top", "fontsize": 7}
        axes.annotate(f"{panel['auroc'][name]:.1f}", (0.99, 1.02), **place)
