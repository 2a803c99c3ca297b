"""What the protocols share that train on a source and evaluate the same prompts elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from promptbench.data.selection import Selection
from promptbench.protocol import Column, Evaluation, Outcome, Plan, Protocol, mean_over, metric_column
from promptbench.suite import Suite

SOURCE = "source"  # the evaluation on the source's own test images
HELP = (
    "source: accuracy on test images of the dataset trained on; then on datasets that were not, each among its own "
    "class names; average: the mean over these, the source apart."
)


class Transfer(Protocol):
    """Training on all classes of the source; accuracy on the source, on each target, and averaged over the targets.

    Attributes:
        targets: The suite's role that holds the targets.
    """

    role = "source"
    averaged = False
    needs_logits = False
    targets: ClassVar[str]

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per source."""
        return [self.plan_of(suite, source) for source in suite.datasets("source")]

    def plan_of(self, suite: Suite, source: str) -> Plan:
        """The training on a source, and the test images of source and targets."""
        tests = {SOURCE: source, **{name: name for name in suite.datasets(self.targets) if name != source}}
        return Plan(
            dataset=source,
            train=Selection(dataset=source, split="train", shots=suite.shots),
            evaluations=tuple(
                Evaluation(name=name, selection=Selection(dataset=dataset, split="test"))
                for name, dataset in tests.items()
            ),
        )

    def measure(self, outcomes: Mapping[str, Outcome], plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
        """Adds `average/accuracy`, over all targets, the source apart."""
        metrics, notes = super().measure(outcomes, plan)
        targets = [evaluation.name for evaluation in plan.evaluations if evaluation.name != SOURCE]
        for metric in self.metrics:
            metrics |= mean_over(metrics, targets, metric)
        return metrics, notes

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """Source, targets, average over targets."""
        names = [SOURCE, *(name for name in evaluations if name != SOURCE), "average"]
        found = [metric_column(f"{name}/{metric}", name) for name in names]
        return [column._replace(help=HELP) for column in found] if metric == self.metrics[0] else found
