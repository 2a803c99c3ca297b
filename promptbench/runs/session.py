"""What the runs of one call share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from promptbench.clip.backbone import Backbone
from promptbench.clip.load import load_backbone
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.results.result import find, predictions_path
from promptbench.results.spec import Spec
from promptbench.suite import Suite


@dataclass
class Session:
    """The backbone, the opened datasets and the output folder of one call.

    Attributes:
        suite: Names the backbone and the datasets.
        output: Where results and learned tensors go.
        roots: Data roots; only read.
        device: `cpu`, `cuda` or `cuda:N`.
        save_predictions: Whether each run keeps its scores of every image.
        may_train: Whether a training that is not stored is made; otherwise it is an error.
        skip_unreadable: Whether images that cannot be read are left out; otherwise they are an error.
        loggers: Names in `loggers.LOGGERS` that watch each run.
    """

    suite: Suite
    output: Path
    roots: tuple[Path, ...] = ()
    device: str = "cpu"
    save_predictions: bool = False
    may_train: bool = True
    skip_unreadable: bool = False
    loggers: tuple[str, ...] = ()
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    found: dict[Any, Any] = field(default_factory=dict, repr=False)  # what was looked up of runs; see `identity`

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen backbone, loaded when the first run needs it."""
        backbone: Backbone = load_backbone(self.suite.backbone).to(self.device)
        return backbone

    def is_finished(self, spec: Spec) -> bool:
        """Whether the result of a run is there, and its predictions where they are wanted."""
        if find(self.output, spec) is None:
            return False
        return not self.save_predictions or predictions_path(self.output, spec).exists()

    def dataset(self, name: str) -> Dataset:
        """A dataset of the suite, opened once."""
        if name not in self._datasets:
            entry = self.suite.entry(name)
            dataset = open_dataset(entry.dataset, entry.options, self.roots, alias=entry.name)
            dataset.skip_unreadable = self.skip_unreadable
            self._datasets[name] = dataset
        return self._datasets[name]
