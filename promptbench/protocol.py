"""The contract of a protocol: what to train on, what to evaluate, what follows from the scores, what its table shows.

A protocol speaks of data only by name. `Selection` says which images of which dataset; the runner opens them, trains
one method per `Plan`, scores the images of each `Evaluation`, and hands the outcomes to `measure`.

Letters: N images, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from promptbench.data.selection import Selection
from promptbench.metrics.classification import CALIBRATION, accuracy, calibration
from promptbench.suite import Suite

if TYPE_CHECKING:
    from torch import Tensor

    from promptbench.data.corruptions import Corruption

Numbers = Mapping[str, float]

SCALED = "_scaled"
"""What the name of a calibration metric ends in that was measured after the temperature."""
NO_PERCENTAGE = {"nll": ("nats", "0 and more"), "brier": ("", "0 to 2"), "temperature": ("", "0.05 to 20.1")}
"""Units and ranges of metrics that are not in percent."""
MEANINGS = {
    "accuracy": "accuracy: the share of images whose own class scores highest among the class names shown.",
    "ece": "ece, expected calibration error: how far confidence, the largest probability, is from accuracy, on average "
    "over 15 bins of confidence.",
    "adaptive_ece": "adaptive_ece: the calibration error over 15 bins that hold as many images each.",
    "nll": "nll, negative log-likelihood: -log of the probability of the true class, mean over images.",
    "brier": "brier: the squared distance of the probabilities from the truth, mean over images.",
}
"""What the metrics are that every evaluation has, as tables say it below and `describe` says it."""
AFTER = "{}_scaled: the same after a temperature, fitted on a few validation images, has divided the logits."


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Images to score, and the class names they are scored against.

    Attributes:
        name: First part of its metrics' names, as in `base/accuracy`.
        selection: The images.
        names: The selection whose class names are shown to the method; None shows those of `selection`. It differs
            where base images meet base and new names together, or out-of-distribution images the names of the source.
        same_classes: Whether images of another dataset than that of `names` are of its classes, as those of a shifted
            version are; otherwise they are of none.
        group: What its figures are averaged with, such as `near`; "" for no such average.
        corruption: Of the images, after the crop; None leaves them as they are.
    """

    name: str
    selection: Selection
    names: Selection | None = None
    same_classes: bool = False
    group: str = ""
    corruption: Corruption | None = None

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

    @property
    def corruption(self) -> str:
        """The corruptions that it evaluates under, such as `fog:3`, separated by spaces; "" for none."""
        found = [str(evaluation.corruption) for evaluation in self.evaluations if evaluation.corruption]
        return " ".join(dict.fromkeys(found))

    def under(self, corruption: Corruption) -> Plan:
        """The same with all images evaluated corrupted."""
        changed = [replace(evaluation, corruption=corruption) for evaluation in self.evaluations]
        return replace(self, evaluations=tuple(changed))

    def limited(self, most: int | None) -> Plan:
        """The same with at most so many images of each split that is evaluated, see `Selection.limit`."""
        limited = [replace(one, selection=replace(one.selection, limit=most)) for one in self.evaluations]
        return replace(self, evaluations=tuple(limited))


@dataclass(frozen=True)
class Outcome:
    """What a method says of the images of one evaluation.

    Attributes:
        logits: (N, K), float32.
        labels: (N,), int64, positions among the class names shown; -1 for an image of no such class.
        scores: (N,) each, larger for images that look in-distribution, by the names that the protocol asks for.
        missing: Why a score is not there, by its name.
        classes: The dataset's own label of each class shown, K of them; without any, from 0 to K - 1.
        temperature: What logits are divided by before calibration is measured again; None where none was fitted.
        measured: Its own metrics where they were measured before its logits were thrown away; None otherwise.
    """

    logits: Tensor
    labels: Tensor
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[int, ...] = ()
    temperature: float | None = None
    measured: Mapping[str, float] | None = None

    def metrics(self) -> Mapping[str, float]:
        """Accuracy and calibration, by name; none where an image is of no class shown."""
        if self.measured is not None:
            return self.measured
        if bool((self.labels < 0).any()):
            return {}
        return {"accuracy": accuracy(self.logits, self.labels), **calibrations(self)}

    def without_logits(self) -> Outcome:
        """The same, measured, without its logits: an evaluation of ImageNet has 200 MB of them."""
        return replace(self, measured=self.metrics(), logits=self.logits.new_empty(0, self.logits.shape[1]))


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
        help: What the figure is, where its name does not say it: a sentence that stands under the table.
    """

    key: str
    title: str
    derived: bool = False
    lower: bool = False
    unit: str = "%"
    range: str = "0 to 100"
    digits: int = 1
    ranked: bool = True
    help: str = ""

    @property
    def direction(self) -> str:
        """`higher is better` or `lower is better`."""
        return f"{'lower' if self.lower else 'higher'} is better"


def metric_column(key: str, title: str) -> Column:
    """The column of a metric that every evaluation has, such as `base/nll`: its name says unit and direction."""
    metric = key.rpartition("/")[2].removesuffix(SCALED)
    unit, limits = NO_PERCENTAGE.get(metric, ("%", "0 to 100"))
    said = MEANINGS.get(metric, "")
    if said and key.endswith(SCALED):
        said = f"{said} {AFTER.format(metric)}"
    return Column(key, title, lower=metric in CALIBRATION, unit=unit, range=limits, digits=digits_of(key), help=said)


def digits_of(key: str) -> int:
    """How many decimals of a metric are shown: more of one that is no percentage."""
    return 3 if key.rpartition("/")[2].removesuffix(SCALED) in NO_PERCENTAGE else 1


class Protocol(ABC):
    """Base class of protocols; one per module of `promptbench/protocols/`, named by its file.

    Attributes:
        role: The suite's role whose datasets it runs over; `--dataset` replaces those.
        recipes_of: The protocol whose recipes it trains with; "" for its own.
        scores: Names of the scores, one plugin each, that are computed for every image evaluated.
        metrics: What its table can show of an evaluation; the first unless the reader asks for another.
        several_shots: Whether it trains with each of the suite's `few_shots`, not with its `shots`.
        halves: Whether it trains on base classes, by each `split` of the suite.
        along: A field of the spec whose values are columns of the table instead of rows; "" for none.
        blocks_are: What the blocks of lines in its table are.
        averaged: Whether the table ends in averages over its blocks.
        corrupts: Whether it corrupts images itself, by the suite's `corruptions`.
        in_all: Whether `--protocol all` stands for it too.
        needs_logits: Whether `measure` looks at logits itself; otherwise those of one evaluation are gone before the
            next.
    """

    plugin_kind: ClassVar[str] = "protocol"
    role: ClassVar[str]
    recipes_of: ClassVar[str] = ""
    scores: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", *CALIBRATION, *(name + SCALED for name in CALIBRATION))
    several_shots: ClassVar[bool] = False
    halves: ClassVar[bool] = False
    along: ClassVar[str] = ""
    blocks_are: ClassVar[str] = "dataset"
    averaged: ClassVar[bool] = True
    corrupts: ClassVar[bool] = False
    in_all: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = True

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
            metrics |= {f"{name}/{metric}": value for metric, value in outcome.metrics().items()}
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


def calibrations(outcome: Outcome) -> dict[str, float]:
    """How right its probabilities are, by the names in `CALIBRATION`, and after its temperature where it has one."""
    found = calibration(outcome.logits, outcome.labels)
    if outcome.temperature is None:
        return found
    scaled = calibration(outcome.logits, outcome.labels, outcome.temperature)
    return found | {name + SCALED: value for name, value in scaled.items()}


def mean_over(metrics: Numbers, evaluations: Sequence[str], metric: str) -> dict[str, float]:
    """`average/<metric>`, the mean over these evaluations, where each of them has the metric."""
    keys = [f"{name}/{metric}" for name in evaluations]
    if not keys or any(key not in metrics for key in keys):
        return {}
    return {f"average/{metric}": sum(metrics[key] for key in keys) / len(keys)}
