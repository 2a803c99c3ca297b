"""Rendered: a shift of mini_shapes: small tilted sketches; test images only."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniShapesSketch(MiniDataset):
    """Shapes-Sketch."""

    info = DatasetInfo(
        title="Shapes-Sketch",
        classes=24,
        images=(0, 0, 960),
        template="a photo of a toy {}.",
    )
    splits = ("test",)
