"""Base-to-new: train on the first half of the classes, evaluate on both halves apart.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
Code by the authors: https://github.com/KaiyangZhou/CoOp (`scripts/cocoop`)
Base test images are scored against the base class names only, new ones against the new names only. The harmonic mean is

    H = 2 * base * new / (base + new)

Halves are the field's, by the order of the labels; `split: random:N` draws others, with the seed N.
`joint` scores all test images against all names, as Zhou et al., "DeCoOp", ICML 2024, arXiv:2406.00345, report it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from promptbench.data.selection import Selection
from promptbench.metrics.classification import harmonic_mean
from promptbench.protocol import Column, Evaluation, Plan, Protocol
from promptbench.suite import Suite


class Base2New(Protocol):
    """Few-shot training on base classes, test accuracy on base and on new classes, and their harmonic mean `h`."""

    role = "base2new"
    halves = True

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per dataset of the suite's role `base2new` and split of its classes."""
        plans = []
        for dataset in suite.datasets("base2new"):
            plans += [_plan(dataset, suite.shots, halves) for halves in suite.split]
        return plans

    def summarize(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Adds `h` where both accuracies are there; a method that cannot score new classes has none."""
        derived = dict(metrics)
        if "base/accuracy" in metrics and "new/accuracy" in metrics:
            derived["h"] = harmonic_mean(metrics["base/accuracy"], metrics["new/accuracy"])
        return derived

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """Base, new, H and joint; of another metric there is no H."""
        lower = metric == "ece"
        base, new, joint = (Column(f"{name}/{metric}", name, lower=lower) for name in ("base", "new", "joint"))
        return [base, new, *([] if lower else [Column("h", "H", derived=True)]), joint]


def _plan(dataset: str, shots: int, halves: str) -> Plan:
    tests = {name: Selection(dataset=dataset, split="test", classes=name, halves=halves) for name in ("base", "new")}
    tests["joint"] = Selection(dataset=dataset, split="test")
    return Plan(
        dataset=dataset,
        train=Selection(dataset=dataset, split="train", classes="base", shots=shots, halves=halves),
        evaluations=tuple(Evaluation(name=name, selection=selection) for name, selection in tests.items()),
    )
