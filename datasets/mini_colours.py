"""Rendered: 20 colours of any shape."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniColours(MiniDataset):
    """Colours."""

    info = DatasetInfo(
        title="Colours",
        classes=20,
        images=(960, 320, 800),
        template="a photo of a {} object.",
    )
