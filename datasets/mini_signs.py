"""Rendered: 16 pixelated signs, named by colour, shape and ground."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniSigns(MiniDataset):
    """Signs."""

    info = DatasetInfo(
        title="Signs",
        classes=16,
        images=(768, 256, 640),
        template="a pixelated image of a {}.",
    )
