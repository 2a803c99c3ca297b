"""Describable Textures (DTD): 47 textures named by adjectives.

Cimpoi et al., "Describing Textures in the Wild", CVPR 2014, arXiv:1311.3618.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp; it is none of the makers' ten splits.
License: for research.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class DescribableTextures(Dataset):
    """DTD."""

    info = DatasetInfo(
        title="DTD",
        classes=47,
        template="{} texture.",
        folder="dtd",
        split_file="split_zhou_DescribableTextures.json",
        image_folder="images",
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        paper="Cimpoi et al., CVPR 2014, arXiv:1311.3618",
        license="for research",
    )
