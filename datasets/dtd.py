"""Describable Textures (DTD): 47 textures named by adjectives.

Cimpoi et al., "Describing Textures in the Wild", CVPR 2014, arXiv:1311.3618.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp; it is none of the makers' ten splits.
License: for research.
"""

from __future__ import annotations

from promptbench.data.dataset import Dataset, DatasetInfo, Download, Sources


class DescribableTextures(Dataset):
    """DTD."""

    info = DatasetInfo(
        title="DTD",
        classes=47,
        images=(2820, 1128, 1692),
        template="{} texture.",
        folder=("dtd", "dataset_suite/dtddataset/dtd"),
        split_file="split_zhou_DescribableTextures.json",
        image_folder="images",
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        paper="Cimpoi et al., CVPR 2014, arXiv:1311.3618",
        license="for research",
    )
    sources = Sources(
        downloads=(
            Download(
                url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                md5="fff73e5086ae6bdbea199a49dfb8a4c1",
                folder="dtd/images",
                target="images",
            ),
        ),
        split_url="https://drive.google.com/file/d/1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x/view",
    )
