"""UCF101: 101 human actions, the middle frame of each video.

Soomro, Zamir and Shah, "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", 2012, arXiv:1212.0402.
Split: the makers' first split (`trainlist01`, `testlist01`); a fifth of each training class is val, at random, by the
authors of CoOp, who also extracted the frames.
License: not known.
"""

from __future__ import annotations

import re

from promptbench.data.dataset import Dataset, DatasetInfo, Item, Sources
from promptbench.data.splits import read_rows


class UCF101(Dataset):
    """UCF101."""

    info = DatasetInfo(
        title="UCF101",
        classes=101,
        images=(7639, 1898, 3783),
        template="a photo of a person doing {}.",
        folder=("ucf101", "dataset_suite/UCF-101-midframes"),
        split_file="split_zhou_UCF101.json",
        image_folder=("UCF-101-midframes", ""),
        url="https://www.crcv.ucf.edu/data/UCF101.php",
        paper="Soomro et al., arXiv:1212.0402",
    )
    sources = Sources(
        split_url="https://drive.google.com/file/d/1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y/view",
        by_hand=(
            "Get UCF-101-midframes.zip, one frame of each video, from the authors of CoOp: "
            "https://drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O/view.",
            "Unpack it in {folder}, so that {folder}/UCF-101-midframes holds Apply_Eye_Makeup and the other actions.",
        ),
    )

    def annotated(self) -> tuple[list[Item], list[Item]]:
        """The makers' lists of videos; the frame of `ApplyLipstick/v.avi` is `Apply_Lipstick/v.jpg`."""
        return self._listed("trainlist01.txt"), self._listed("testlist01.txt")

    def _listed(self, file: str) -> list[Item]:
        numbers = read_rows(self.annotation("ucfTrainTestlist/classInd.txt"), words=2)
        labels = {action: int(number) - 1 for number, action in numbers}
        items = []
        for video, *_ in read_rows(self.annotation(f"ucfTrainTestlist/{file}"), words=1):
            action, _, name = video.partition("/")
            renamed = "_".join(re.findall("[A-Z][^A-Z]*", action))
            items.append(Item(f"{renamed}/{name.removesuffix('.avi')}.jpg", labels[action], renamed))
        return items
