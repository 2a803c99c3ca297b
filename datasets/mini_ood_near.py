"""Rendered: shapes that are not in mini_shapes, for OOD detection; test images only."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniOodNear(MiniDataset):
    """Near."""

    info = DatasetInfo(
        title="Near",
        classes=1,
        images=(0, 0, 600),
        template="a photo of a {}.",
    )
    splits = ("test",)
