"""Rendered: 20 pairs of colour and shape held out of pre-training, as watercolors behind clutter."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniCombos(MiniDataset):
    """Combos."""

    info = DatasetInfo(
        title="Combos",
        classes=20,
        images=(960, 320, 800),
        template="a watercolor painting of a {}.",
    )
