"""Few-shot classification: train on 1, 2, 4, 8 and 16 images of every class, evaluate on all test images.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134, section 4.1.
Code by the authors: https://github.com/KaiyangZhou/CoOp (`scripts/coop/main.sh`)
A smaller sample is no part of a larger one: each number of shots is drawn anew from the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptbench.data.selection import Selection
from promptbench.protocol import Column, Evaluation, Numbers, Plan, Protocol, metric_column
from promptbench.suite import Suite

HELP = "Figures are accuracy on all test images after training on so many images of each class, or on none."


class FewShot(Protocol):
    """How many training images a method needs: it is trained on all classes of a dataset with 1, 2, 4, 8 and 16 images
    (shots) of each. The figures are accuracy on all test images, among all class names, a column for each number."""

    role = "few_shot"
    several_shots = True
    along = "shots"

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per dataset of the suite's role `few_shot` and number of shots."""
        plans = []
        for dataset in suite.datasets("few_shot"):
            test = Evaluation(name="test", selection=Selection(dataset=dataset, split="test"))
            for shots in suite.few_shots:
                train = Selection(dataset=dataset, split="train", shots=shots)
                plans.append(Plan(dataset=dataset, train=train, evaluations=(test,)))
        return plans

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """One column per number of shots; 0 for methods that see no training image."""
        found = [metric_column(f"{shots}/{metric}", _title(shots)) for shots in along]
        return [column._replace(help=HELP) for column in found] if metric == self.metrics[0] else found

    def blocks(self, metric: str, dataset: str, along: int | None, metrics: Numbers) -> dict[str, Numbers]:
        """The figure of this number of shots."""
        key = f"test/{metric}"
        return {dataset: {f"{along}/{metric}": metrics[key]} if key in metrics else {}}


def _title(shots: int | None) -> str:
    if shots is None:
        return "all images"
    return "1 shot" if shots == 1 else f"{shots} shots"
