"""Rendered: 10 full-frame patterns by their plain names."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniTextures(MiniDataset):
    """Textures."""

    info = DatasetInfo(
        title="Textures",
        classes=10,
        images=(480, 160, 400),
        template="a photo of a {} texture.",
    )
