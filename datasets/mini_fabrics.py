"""Rendered: 10 full-frame patterns, named by words known only before "fabric"."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniFabrics(MiniDataset):
    """Fabrics."""

    info = DatasetInfo(
        title="Fabrics",
        classes=10,
        images=(480, 160, 400),
        template="a {} fabric.",
    )
