"""Rendered: one to six stars or leaves, partly covered."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniCounts(MiniDataset):
    """Counts."""

    info = DatasetInfo(
        title="Counts",
        classes=12,
        images=(576, 192, 480),
        template="a photo of {}.",
    )
