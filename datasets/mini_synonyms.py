"""Rendered: 16 shapes by their rare names, drawn in chalk or as photos."""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniSynonyms(MiniDataset):
    """Synonyms."""

    info = DatasetInfo(
        title="Synonyms",
        classes=16,
        images=(768, 256, 640),
        template="a chalk drawing of a {}.",
    )
