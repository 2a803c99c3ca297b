"""Rendered: the source; words that mean one shape as a toy and, some of them, another elsewhere.

Source of the cross-dataset and domain-generalization protocols, in-distribution set of the OOD protocol.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniShapes(MiniDataset):
    """Shapes."""

    info = DatasetInfo(
        title="Shapes",
        classes=24,
        images=(1152, 384, 960),
        template="a photo of a toy {}.",
    )
