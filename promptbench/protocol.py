"""The contract of a protocol: what to train on, what to evaluate, what follows from the figures.

A protocol speaks of data only by name. `Selection` says which images of which dataset; the runner opens them, trains
one method per `Plan`, evaluates it, and hands the metrics back to `summarize`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from promptbench.suite import Suite

Split = Literal["train", "val", "test", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Images of one dataset.

    Attributes:
        dataset: Name of an entry of the suite.
        split: One of the dataset's splits; `held_out` is its validation images or, where it has none, training images
            that the few-shot sample leaves over.
        classes: `all` classes, or the first (`base`) or second (`new`) half of the sorted labels, or a half of a half
            (`base.new`). The labels of the images selected count from 0 in that order.
        shots: Images drawn per class, over all classes before `classes` is applied; None takes the whole split.
    """

    dataset: str
    split: Split
    classes: str = "all"
    shots: int | None = None


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


class Protocol(ABC):
    """Base class of protocols; one per module of `promptbench/protocols/`, named by its file.

    Attributes:
        role: The suite's role whose datasets it runs over; `--dataset` replaces those.
        columns: Metrics that its table shows, from left to right: name, title, and whether it is derived from others.
    """

    plugin_kind: ClassVar[str] = "protocol"
    role: ClassVar[str]
    columns: ClassVar[tuple[tuple[str, str, bool], ...]]

    @abstractmethod
    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """The runs of one method and one seed on a suite; pure, reads no data."""

    def summarize(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics of one run, in percent, with what is derived from them added; a metric may be missing."""
        return dict(metrics)
