"""Rendered: 16 animal words that mean one shape in a diagram and, half of them, another in a photo.

The right context decides the sense, so there is much for a prompt to gain.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniDiagrams(MiniDataset):
    """Diagrams."""

    info = DatasetInfo(
        title="Diagrams",
        classes=16,
        images=(768, 256, 640),
        template="a diagram of a {}.",
    )
