"""Rendered: a shift of mini_shapes: cluttered, covered and noisy; test images only."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniShapesA(MiniDataset):
    """Shapes-A."""

    info = DatasetInfo(
        title="Shapes-A",
        classes=24,
        images=(0, 0, 960),
        template="a photo of a toy {}.",
    )
    splits = ("test",)
