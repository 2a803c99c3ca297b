"""Rendered: a shift of mini_shapes: five renditions; test images only."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniShapesR(MiniDataset):
    """Shapes-R."""

    info = DatasetInfo(
        title="Shapes-R",
        classes=24,
        images=(0, 0, 960),
        template="a photo of a toy {}.",
    )
    splits = ("test",)
