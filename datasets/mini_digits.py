"""Scanned: the handwritten digits that come with scikit-learn, enlarged from 8 x 8; real data, nothing rendered.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998; CC BY 4.0.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo

from ._mini import MiniDataset


class MiniDigits(MiniDataset):
    """Digits."""

    info = DatasetInfo(
        title="Digits",
        classes=10,
        images=(480, 160, 400),
        template="a photo of the number {}.",
        url="https://archive.ics.uci.edu/dataset/80",
        paper="Alpaydin and Kaynak, UCI, 1998",
        license="CC BY 4.0",
    )
