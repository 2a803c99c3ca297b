"""Where the runs of a call read and write, and what they share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from promptbench.clip.backbone import Backbone
from promptbench.clip.load import load_backbone
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.results.result import find, predictions_path
from promptbench.results.spec import Spec
from promptbench.suite import Suite

Same = TypeVar("Same", bound="Session")


@dataclass(frozen=True)
class Place:
    """Where runs read and write, on which device, and what they keep; other processes and machines are told it.

    Attributes:
        output: The folder that results and learned tensors go to.
        roots: Data roots; only read.
        device: `cpu`, `cuda` or `cuda:N`.
        save_predictions: Whether each run keeps its scores of every image.
        may_train: Whether a training that is not stored is made; otherwise it is an error.
        skip_unreadable: Whether images that cannot be read are left out; otherwise they are an error.
        loggers: Names in `loggers.LOGGERS` that watch each run.
    """

    output: Path
    roots: tuple[Path, ...] = ()
    device: str = "cpu"
    save_predictions: bool = False
    may_train: bool = True
    skip_unreadable: bool = False
    loggers: tuple[str, ...] = ()

    def absolute(self) -> Place:
        """The same for a process that may be in another folder; what is said here names the folder as it was given."""
        return replace(self, output=self.output.absolute())

    def is_finished(self, spec: Spec) -> bool:
        """Whether the result of a run is there, and its predictions where they are wanted."""
        if find(self.output, spec) is None:
            return False
        return not self.save_predictions or predictions_path(self.output, spec).exists()


class Session:
    """The backbone and the opened datasets of this process; another process opens its own.

    Args:
        place: Where runs read and write.
        suite: Names the backbone and the datasets.
    """

    def __init__(self, place: Place, suite: Suite) -> None:
        self.place, self.suite = place, suite
        self._datasets: dict[str, Dataset] = {}
        self.found: dict[Any, Any] = {}  # what was looked up of runs; see `identity`

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Session is of one process; hand over its place and its suite.")

    def at(self: Same, **changes: Any) -> Same:
        """A session at another place, with nothing opened yet.

        Args:
            changes: Fields of the place.
        """
        return type(self)(replace(self.place, **changes), self.suite)

    @property
    def output(self) -> Path:
        """The folder that results and learned tensors go to."""
        return self.place.output

    @property
    def roots(self) -> tuple[Path, ...]:
        """Data roots."""
        return self.place.roots

    @property
    def device(self) -> str:
        """`cpu`, `cuda` or `cuda:N`."""
        return self.place.device

    @property
    def save_predictions(self) -> bool:
        """Whether each run keeps its scores of every image."""
        return self.place.save_predictions

    @property
    def may_train(self) -> bool:
        """Whether a training that is not stored is made."""
        return self.place.may_train

    @property
    def skip_unreadable(self) -> bool:
        """Whether images that cannot be read are left out."""
        return self.place.skip_unreadable

    @property
    def loggers(self) -> tuple[str, ...]:
        """Who watches each run."""
        return self.place.loggers

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen backbone, loaded when the first run needs it."""
        backbone: Backbone = load_backbone(self.suite.backbone).to(self.device)
        return backbone

    def close(self) -> None:
        """Let go of what is opened; it is opened again where somebody asks for it."""
        vars(self).pop("backbone", None)
        self._datasets.clear()

    def is_finished(self, spec: Spec) -> bool:
        """Whether the result of a run is there, and its predictions where they are wanted."""
        return self.place.is_finished(spec)

    def dataset(self, name: str) -> Dataset:
        """A dataset of the suite, opened once."""
        if name not in self._datasets:
            entry = self.suite.entry(name)
            dataset = open_dataset(entry.dataset, entry.options, self.roots, alias=entry.name)
            dataset.skip_unreadable = self.skip_unreadable
            self._datasets[name] = dataset
        return self._datasets[name]
