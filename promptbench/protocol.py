"""The contract of a protocol: what to train on, what to evaluate, what follows from the scores, what its table shows.

A protocol speaks of data only by name. `Selection` says which images of which dataset; the runner opens them, trains
one method per `Plan`, scores the images of each `Evaluation`, and hands the outcomes to `measure`.

Letters: N images, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from promptbench.data.selection import Selection
from promptbench.metrics.classification import accuracy, expected_calibration_error
from promptbench.suite import Suite

if TYPE_CHECKING:
    from torch import Tensor

Numbers = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Images to score, and the class names they are scored against.

    Attributes:
        name: First part of its metrics' names, as in `base/accuracy`.
        selection: The images.
        names: The selection whose class names are shown to the method; None shows those of `selection`. It differs
            where base images meet base and new names together, or out-of-distribution images the names of the source.
    """

    name: str
    selection: Selection
    names: Selection | None = None

    @property
    def shown(self) -> Selection:
        """The selection whose class names are shown to the method."""
        return self.names or self.selection


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training and the evaluations of its outcome: one run, one result.

    Attributes:
        dataset: The dataset (or source) that the result is filed under.
        train: The images to train on; its class names are those trained with.
        evaluations: What to evaluate afterwards, in this order; their names differ.
    """

    dataset: str
    train: Selection
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Outcome:
    """What a method says of the images of one evaluation.

    Attributes:
        logits: (N, K), float32.
        labels: (N,), int64, positions among the class names shown; -1 for an image of no such class.
        scores: (N,) each, larger for images that look in-distribution, by the names that the protocol asks for.
        missing: Why a score is not there, by its name.
    """

    logits: Tensor
    labels: Tensor
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


class Column(NamedTuple):
    """A column of a table: one figure of each line.

    Attributes:
        key: Name of the metric, such as `base/accuracy`.
        title: What the table calls it.
        derived: Whether it follows from other columns, seed means and averages included, instead of being averaged.
        lower: Whether less is better.
        unit: What its figures count; "" where they have none.
        range: What they lie between.
        digits: Decimals shown.
        ranked: Whether tables may print the best in bold.
    """

    key: str
    title: str
    derived: bool = False
    lower: bool = False
    unit: str = "%"
    range: str = "0 to 100"
    digits: int = 1
    ranked: bool = True

    @property
    def direction(self) -> str:
        """`higher is better` or `lower is better`."""
        return f"{'lower' if self.lower else 'higher'} is better"


class Protocol(ABC):
    """Base class of protocols; one per module of `promptbench/protocols/`, named by its file.

    Attributes:
        role: The suite's role whose datasets it runs over; `--dataset` replaces those.
        recipes_of: The protocol whose recipes it trains with; "" for its own.
        scores: Names in `metrics.ood.SCORES` that are computed for every image evaluated.
        metrics: What its table can show of an evaluation; the first unless the reader asks for another.
        several_shots: Whether it trains with each of the suite's `few_shots`, not with its `shots`.
        along: A field of the spec whose values are columns of the table instead of rows; "" for none.
        blocks_are: What the blocks of lines in its table are.
        averaged: Whether the table ends in averages over its blocks.
    """

    plugin_kind: ClassVar[str] = "protocol"
    role: ClassVar[str]
    recipes_of: ClassVar[str] = ""
    scores: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "ece")
    several_shots: ClassVar[bool] = False
    along: ClassVar[str] = ""
    blocks_are: ClassVar[str] = "dataset"
    averaged: ClassVar[bool] = True

    @abstractmethod
    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """The runs of one method and one seed on a suite; pure, reads no data."""

    def measure(self, outcomes: Mapping[str, Outcome], plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
        """The metrics of a run, and why some that were to be expected are missing, by name.

        Args:
            outcomes: By evaluation, in the order of the plan; without those that the method cannot score.
            plan: The run's.
        """
        metrics: dict[str, float] = {}
        for name, outcome in outcomes.items():
            if bool((outcome.labels >= 0).all()):
                metrics[f"{name}/accuracy"] = accuracy(outcome.logits, outcome.labels)
                metrics[f"{name}/ece"] = expected_calibration_error(outcome.logits, outcome.labels)
        return self.summarize(metrics), {}

    def summarize(self, metrics: Numbers) -> dict[str, float]:
        """The metrics, of one run or averaged, with those that are derived from them added; any may be missing."""
        return dict(metrics)

    @abstractmethod
    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """The columns of its table.

        Args:
            metric: One of `metrics`.
            evaluations: Those that the results have, in the suite's order.
            along: The values of the field `along` that they have, in order.
        """

    def blocks(self, metric: str, dataset: str, along: int | None, metrics: Numbers) -> dict[str, Numbers]:
        """The figures that one run gives the table: block, to column key, to figure."""
        return {dataset: metrics}


def mean_over(metrics: Numbers, evaluations: Sequence[str], metric: str) -> dict[str, float]:
    """`average/<metric>`, the mean over these evaluations, where each of them has the metric."""
    keys = [f"{name}/{metric}" for name in evaluations]
    if not keys or any(key not in metrics for key in keys):
        return {}
    return {f"average/{metric}": sum(metrics[key] for key in keys) / len(keys)}
