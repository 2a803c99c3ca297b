"""What the runs of one call share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from promptbench.backbone import Backbone
from promptbench.dataset import Dataset, open_dataset
from promptbench.suite import Suite
from promptbench.weights import load_backbone


@dataclass
class Bench:
    """The backbone, the opened datasets and the output folder of one call.

    Attributes:
        suite: Names the backbone and the datasets.
        output: Where results and learned tensors go.
        roots: Data roots; only read.
        device: `cpu` or `cuda`.
    """

    suite: Suite
    output: Path
    roots: tuple[Path, ...] = ()
    device: str = "cpu"
    _datasets: dict[str, Dataset] = field(default_factory=dict)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen backbone, loaded when the first run needs it."""
        backbone: Backbone = load_backbone(self.suite.backbone).to(self.device)
        return backbone

    def dataset(self, name: str) -> Dataset:
        """A dataset of the suite, opened once."""
        if name not in self._datasets:
            entry = self.suite.entry(name)
            self._datasets[name] = open_dataset(entry.dataset, entry.options, self.roots, alias=entry.name)
        return self._datasets[name]
