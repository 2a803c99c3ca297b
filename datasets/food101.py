"""Food-101: 101 dishes.

Bossard, Guillaumin and Van Gool, "Food-101: Mining Discriminative Components with Random Forests", ECCV 2014.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp; it is not the makers' split.
License: scientific fair use; the images belong to their photographers.
"""

from __future__ import annotations

from promptbench.data.dataset import Dataset, DatasetInfo, Download, Sources


class Food101(Dataset):
    """Food101."""

    info = DatasetInfo(
        title="Food101",
        classes=101,
        images=(50500, 20200, 30300),
        template="a photo of {}, a type of food.",
        folder=("food-101", "dataset_suite/food-101"),
        split_file="split_zhou_Food101.json",
        image_folder="images",
        url="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        paper="Bossard et al., ECCV 2014",
        license="scientific fair use; the images belong to their photographers",
    )
    sources = Sources(
        downloads=(
            Download(
                url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                md5="85eeb15f3717b99a5da872d97d918f87",
                folder="food-101/images",
                target="images",
            ),
        ),
        split_url="https://drive.google.com/file/d/1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl/view",
    )
