"""Robustness: train on the source, all classes; evaluate on its test images, clean and corrupted.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
arXiv:1903.12261. Code by the authors: https://github.com/hendrycks/robustness
The kinds and severities are theirs, the images are corrupted here; see `promptbench.data.corruptions`. So this is not
ImageNet-C, and there is no mCE, which divides by figures of another network on those files.

The accuracy under a kind is the mean over its severities, and with that on clean images

    drop = clean - mean over kinds,

in points, the smaller the better. A training is that of `domain_generalization`, and is shared with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from promptbench.data.corruptions import KINDS, corruptions_of
from promptbench.data.selection import Selection
from promptbench.protocol import Column, Evaluation, Outcome, Plan, Protocol, mean_over, metric_column
from promptbench.suite import Suite

CLEAN = "clean"  # the evaluation on the images as they are
HELP = "drop: accuracy on clean images minus the mean over the kinds of corruption."
USUAL = ("gaussian_noise:3", "defocus_blur:3", "fog:3", "contrast:3", "jpeg_compression:3")


class Robustness(Protocol):
    """How much accuracy is lost on bad pictures: after training on all classes of the source its test images are
    classified as they are, and blurred, noisy, in fog or otherwise corrupted. The figures are accuracy under each kind,
    their mean, and the drop from clean images to that mean, which should be small."""

    role = "source"
    recipes_of = "domain_generalization"
    averaged = False
    needs_logits = False
    corrupts = True
    in_all = False

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per source, under the suite's corruptions, or five of all families where it names none."""
        corruptions = corruptions_of(suite.corruptions or USUAL, f"Suite {suite.name!r}: the corruption")
        plans = []
        for source in suite.datasets("source"):
            test = Selection(dataset=source, split="test")
            corrupted = [Evaluation(name=str(one), selection=test, corruption=one) for one in corruptions]
            train = Selection(dataset=source, split="train", shots=suite.shots)
            evaluations = (Evaluation(name=CLEAN, selection=test), *corrupted)
            plans.append(Plan(dataset=source, train=train, evaluations=evaluations))
        return plans

    def measure(self, outcomes: Mapping[str, Outcome], plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
        """Adds `<kind>/<metric>`, the mean over severities, `average/<metric>` over kinds, and `drop` of accuracy."""
        metrics, notes = super().measure(outcomes, plan)
        kinds = by_kind(evaluation.name for evaluation in plan.evaluations)
        for metric in self.metrics:
            for kind, names in kinds.items():
                metrics |= {f"{kind}/{metric}": value for value in mean_over(metrics, names, metric).values()}
            metrics |= mean_over(metrics, list(kinds), metric)
        if f"{CLEAN}/accuracy" in metrics and "average/accuracy" in metrics:
            metrics["drop"] = metrics[f"{CLEAN}/accuracy"] - metrics["average/accuracy"]
        return metrics, notes

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """Clean, the kinds, their mean, and the drop from clean to it; of another metric there is no drop."""
        kinds = [kind for kind in KINDS if kind in by_kind(evaluations)]
        titles = {CLEAN: CLEAN, **dict(zip(kinds, kinds, strict=True)), "average": "mean of corrupted"}
        found = [metric_column(f"{name}/{metric}", title) for name, title in titles.items()]
        if metric != self.metrics[0]:
            return found
        return [*found, Column("drop", "drop", lower=True, unit="points", range="-100 to 100", help=HELP)]


def by_kind(evaluations: Iterable[str]) -> dict[str, list[str]]:
    """The corrupted evaluations, such as `fog:3`, by kind."""
    found: dict[str, list[str]] = {}
    for name in evaluations:
        kind, colon, _ = name.partition(":")
        if colon:
            found.setdefault(kind, []).append(name)
    return found
