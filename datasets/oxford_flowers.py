"""Oxford Flowers 102: 102 kinds of flowers.

Nilsback and Zisserman, "Automated Flower Classification over a Large Number of Classes", ICVGIP 2008.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp; it is not the makers' split.
License: not known.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class OxfordFlowers(Dataset):
    """OxfordFlowers."""

    info = DatasetInfo(
        title="OxfordFlowers",
        classes=102,
        template="a photo of a {}, a type of flower.",
        folder="oxford_flowers",
        split_file="split_zhou_OxfordFlowers.json",
        image_folder="jpg",
        url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        paper="Nilsback and Zisserman, ICVGIP 2008",
    )
