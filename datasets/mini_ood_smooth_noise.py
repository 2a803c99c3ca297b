"""Rendered: coloured clouds, for OOD detection; test images only."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniOodSmoothNoise(MiniDataset):
    """Smooth noise."""

    info = DatasetInfo(
        title="Smooth noise",
        classes=1,
        images=(0, 0, 600),
        template="a photo of a {}.",
    )
    splits = ("test",)
