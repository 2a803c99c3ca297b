"""Food-101: 101 dishes.

Bossard, Guillaumin and Van Gool, "Food-101: Mining Discriminative Components with Random Forests", ECCV 2014.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp; it is not the makers' split.
License: scientific fair use; the images belong to their photographers.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class Food101(Dataset):
    """Food101."""

    info = DatasetInfo(
        title="Food101",
        classes=101,
        template="a photo of {}, a type of food.",
        folder="food-101",
        split_file="split_zhou_Food101.json",
        image_folder="images",
        url="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        paper="Bossard et al., ECCV 2014",
        license="scientific fair use; the images belong to their photographers",
    )
