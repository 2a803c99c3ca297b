"""Rendered: 20 shapes as tilted neon signs behind clutter."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniNeon(MiniDataset):
    """Neon."""

    info = DatasetInfo(
        title="Neon",
        classes=20,
        images=(960, 320, 800),
        template="a neon sign of a {}.",
    )
