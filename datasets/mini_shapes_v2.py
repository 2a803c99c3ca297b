"""Rendered: a shift of mini_shapes: smaller, off centre and tilted; test images only."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniShapesV2(MiniDataset):
    """Shapes-V2."""

    info = DatasetInfo(
        title="Shapes-V2",
        classes=24,
        images=(0, 0, 960),
        template="a photo of a toy {}.",
    )
    splits = ("test",)
