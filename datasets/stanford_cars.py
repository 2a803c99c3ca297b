"""Stanford Cars: 196 models of cars, each with its year.

Krause et al., "3D Object Representations for Fine-Grained Categorization", ICCV Workshops 2013.
Split: the makers' test set; a fifth of each class of their training set is val, at random, by the authors of CoOp, who
also moved the year to the front of the names. Image paths start with `cars_train/` or `cars_test/`.
License: not known. The makers' page is gone; the address below is CoOp's guide.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class StanfordCars(Dataset):
    """StanfordCars."""

    info = DatasetInfo(
        title="StanfordCars",
        classes=196,
        template="a photo of a {}.",
        folder="stanford_cars",
        split_file="split_zhou_StanfordCars.json",
        url="https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md#stanfordcars",
        paper="Krause et al., ICCV Workshops 2013",
    )
