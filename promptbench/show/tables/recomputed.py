"""Metrics computed again from stored predictions, by the protocols' own measures, beside those that results hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from promptbench import registry
from promptbench.config import UsageError
from promptbench.data.selection import Selection
from promptbench.protocol import Evaluation, Outcome, Plan, Protocol, digits_of
from promptbench.results.result import Result, find_predictions, folder_of

if TYPE_CHECKING:
    from promptbench.results.predictions import Predictions

EXACT = 1e-6  # what machines differ by in a sum
HALF = 2  # images whose weight other percentages may be off by where logits were rounded to half precision
COUNTED = ("accuracy", "h", "drop")  # metrics of counts, which no rounding changes
AS_STORED = ("temperature",)  # what a run found on images of which no predictions are kept
SHOWN = 20  # differences in full


@dataclass(frozen=True)
class Difference:
    """A metric that does not follow from what is stored.

    Attributes:
        run: Its name.
        metric: Its name.
        stored: As the result has it.
        found: As the predictions have it; None where they do not give it.
    """

    run: str
    metric: str
    stored: float
    found: float | None

    def __str__(self) -> str:
        found = "nothing" if self.found is None else f"{self.found:.6g}"
        return f"{self.run}, {self.metric}: {self.stored:.6g} is stored, {found} follows from the predictions"


@dataclass(frozen=True)
class Recomputed:
    """What came of it.

    Attributes:
        results: Those with predictions, with the metrics that follow from these.
        metrics: How many were compared.
        differences: Where they are not what the results hold.
        without: Names of results that have no predictions.
        rounded: How many have logits that were rounded to half precision.
    """

    results: tuple[Result, ...]
    metrics: int
    differences: tuple[Difference, ...]
    without: tuple[str, ...]
    rounded: int

    def said(self) -> list[str]:
        """What a reader has to know, a sentence or a difference each."""
        found = f"Computed again from stored predictions: {self.metrics} metrics of {len(self.results)} results, "
        count = len(self.differences)
        found += "no difference." if not count else f"{count} difference{'s' * (count != 1)}:"
        lines = [found, *map(str, self.differences[:SHOWN])]
        lines += [f"... and {count - SHOWN} more"] if count > SHOWN else []
        if self.rounded:
            lines.append(
                f"With logits in half precision: {self.rounded}; their accuracy is exact, other metrics are off by "
                f"less than {HALF} images count for."
            )
        if self.without:
            names = ", ".join([*self.without[:3], *(["..."] if len(self.without) > 3 else [])])
            lines.append(f"Left out, without stored predictions: {len(self.without)} ({names}).")
        return lines


def recomputed(results: Iterable[Result]) -> Recomputed:
    """The results with the metrics that follow from their predictions.

    Raises:
        UsageError: No result has predictions, or some cannot be read.
    """
    again: list[Result] = []
    without: list[str] = []
    differences: list[Difference] = []
    metrics = rounded = 0
    for result in results:
        stored = predictions_of(result)
        if stored is None:
            without.append(result.name)
            continue
        exact = all(of_evaluation.exact for of_evaluation in stored.values())
        found = measured_again(result, stored)
        fewest = min(len(of_evaluation.labels) for of_evaluation in stored.values())
        differences += differing(result, found, EXACT if exact else 100 * HALF / fewest)
        metrics += len(result.metrics)
        rounded += not exact
        again.append(replace(result, metrics=found))
    if not again:
        raise UsageError("No result has stored predictions; make some with `promptbench run --save-predictions`.")
    return Recomputed(tuple(again), metrics, tuple(differences), tuple(without), rounded)


def predictions_of(result: Result) -> dict[str, Predictions] | None:
    """The predictions beside a result, by evaluation; None where there are none."""
    from promptbench.results.predictions import load_predictions

    assert result.path is not None  # it was read from there
    try:
        path = find_predictions(folder_of(result.path), result.spec)
    except UsageError:  # a file that lies elsewhere
        return None
    return load_predictions(path) if path else None


def measured_again(result: Result, stored: Mapping[str, Predictions]) -> dict[str, float]:
    """The metrics of a run, from its predictions; what a run found on other images stays as it is stored."""
    protocol: Protocol = registry.load("protocols", result.spec.protocol)()
    names = dict.fromkeys([*stored, *result.conditions.get("images", {})])
    selection = Selection(dataset=result.spec.dataset, split="test")  # measures ask for names of evaluations alone
    evaluations = tuple(Evaluation(name=name, selection=selection) for name in names)
    kept = {name: result.metrics[name] for name in AS_STORED if name in result.metrics}
    places = {name: place for place, name in enumerate(dict.fromkeys(_names(stored)))}
    outcomes = {}
    for name, of in stored.items():
        classes = tuple(places[class_name] for class_name in of.class_names)
        outcomes[name] = Outcome(of.logits, of.labels, of.scores, classes=classes, temperature=kept.get("temperature"))
    plan = Plan(dataset=result.spec.dataset, train=selection, evaluations=evaluations)
    return {**protocol.measure(outcomes, plan)[0], **kept}


def _names(stored: Mapping[str, Predictions]) -> Iterator[str]:
    """The class names shown, those of the evaluation with most of them first."""
    for of_evaluation in sorted(stored.values(), key=lambda kept: -len(kept.class_names)):
        yield from of_evaluation.class_names


def differing(result: Result, found: Mapping[str, float], within: float) -> list[Difference]:
    """The stored metrics that are not those found; what results of earlier versions lack is no difference."""
    differences = []
    for name, stored in result.metrics.items():
        value = found.get(name)
        rounding = within * 10 ** (1 - digits_of(name))  # less of what is no percentage, from 0 to 1 or so
        slack = EXACT if name.rpartition("/")[2] in COUNTED else max(EXACT, rounding)
        if value is None or not math.isclose(value, stored, rel_tol=0.0, abs_tol=slack):
            differences.append(Difference(result.name, name, stored, value))
    return differences
