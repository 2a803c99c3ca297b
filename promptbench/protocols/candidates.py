"""Candidates: the same new-class images against more and more class names.

Ours; it asks how much of a method's accuracy on new classes depends on how many classes it is shown.
Training is base-to-new's. The test images are those of an eighth of the classes (half of the half of the new ones);
they are scored against the names of that eighth, of its quarter, of all new classes, and of all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from promptbench.data.selection import Selection
from promptbench.protocol import Column, Evaluation, Plan, Protocol, metric_column
from promptbench.suite import Suite

SHOWN = {"eighth": "new.base.base", "quarter": "new.base", "half": "new", "whole": "all"}
TITLES = {"eighth": "1/8 of the classes", "quarter": "1/4", "half": "1/2", "whole": "all"}

HELP = "1/8, 1/4, 1/2, all: accuracy on the same images of new classes among this share of all class names."


class Candidates(Protocol):
    """How much of the accuracy on new classes depends on how many names are to choose from: the same images of a few
    classes that were not trained on are classified among more and more names. The figures are accuracy, a column for
    each share of all class names that is shown."""

    role = "candidates"
    recipes_of = "base2new"
    halves = True

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per dataset of the suite's role `candidates` and split of its classes."""
        plans = []
        for dataset in suite.datasets("candidates"):
            plans += [_plan(dataset, suite.shots, halves) for halves in suite.split]
        return plans

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """From few names to all."""
        found = [metric_column(f"{name}/{metric}", title) for name, title in TITLES.items()]
        return [column._replace(help=HELP) for column in found] if metric == self.metrics[0] else found


def _plan(dataset: str, shots: int, halves: str) -> Plan:
    images = Selection(dataset=dataset, split="test", classes=SHOWN["eighth"], halves=halves)
    shown = {name: replace(images, classes=classes) for name, classes in SHOWN.items()}
    return Plan(
        dataset=dataset,
        train=Selection(dataset=dataset, split="train", classes="base", shots=shots, halves=halves),
        evaluations=tuple(Evaluation(name=name, selection=images, names=names) for name, names in shown.items()),
    )
