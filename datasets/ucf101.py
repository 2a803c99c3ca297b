"""UCF101: 101 human actions, the middle frame of each video.

Soomro, Zamir and Shah, "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", 2012, arXiv:1212.0402.
Split: the makers' first split (`trainlist01`, `testlist01`); a fifth of each training class is val, at random, by the
authors of CoOp, who also extracted the frames.
License: not known.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class UCF101(Dataset):
    """UCF101."""

    info = DatasetInfo(
        title="UCF101",
        classes=101,
        template="a photo of a person doing {}.",
        folder="ucf101",
        split_file="split_zhou_UCF101.json",
        image_folder="UCF-101-midframes",
        url="https://www.crcv.ucf.edu/data/UCF101.php",
        paper="Soomro et al., arXiv:1212.0402",
    )
