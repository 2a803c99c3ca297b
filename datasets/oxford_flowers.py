"""Oxford Flowers 102: 102 kinds of flowers.

Nilsback and Zisserman, "Automated Flower Classification over a Large Number of Classes", ICVGIP 2008.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp; it is not the makers' split.
License: not known.
"""

from __future__ import annotations

import json

from promptbench.data.dataset import Dataset, DatasetInfo, Download, Item, Sources
from promptbench.data.splits import read_matlab, read_text


class OxfordFlowers(Dataset):
    """OxfordFlowers."""

    info = DatasetInfo(
        title="OxfordFlowers",
        classes=102,
        images=(4093, 1633, 2463),
        template="a photo of a {}, a type of flower.",
        folder=("oxford_flowers", "dataset_suite/flowers102"),
        split_file="split_zhou_OxfordFlowers.json",
        image_folder="jpg",
        url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        paper="Nilsback and Zisserman, ICVGIP 2008",
    )
    sources = Sources(
        downloads=(
            Download(
                url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
                md5="52808999861908f626f3c1f4e79d11fa",
                folder="jpg",
                target="jpg",
            ),
            Download(
                url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat",
                md5="e0620be6f572b9609742df49c70aed4d",
                folder=None,
                target="imagelabels.mat",
            ),
        ),
        split_url="https://drive.google.com/file/d/1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT/view",
    )

    def annotated(self) -> tuple[list[Item], None]:
        """The makers' labels, from 1, and the names in CoOp's `cat_to_name.json`; their own split is not used."""
        names = json.loads(read_text(self.annotation("cat_to_name.json")))
        labels = [int(label) for label in read_matlab(self.annotation("imagelabels.mat"), "labels")]
        numbered = enumerate(labels, start=1)
        return [Item(f"image_{number:05d}.jpg", label - 1, names[str(label)]) for number, label in numbered], None
