"""Stanford Cars: 196 models of cars, each with its year.

Krause et al., "3D Object Representations for Fine-Grained Categorization", ICCV Workshops 2013.
Split: the makers' test set; a fifth of each class of their training set is val, at random, by the authors of CoOp, who
also moved the year to the front of the names. Image paths start with `cars_train/` or `cars_test/`.
License: not known. The makers' page is gone; the address below is CoOp's guide.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from promptbench.data.dataset import Dataset, DatasetInfo, Item, Sources
from promptbench.data.splits import read_matlab


class StanfordCars(Dataset):
    """StanfordCars."""

    info = DatasetInfo(
        title="StanfordCars",
        classes=196,
        images=(6509, 1635, 8041),
        template="a photo of a {}.",
        folder=("stanford_cars", "dataset_suite/stanford_cars"),
        split_file="split_zhou_StanfordCars.json",
        url="https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md#stanfordcars",
        paper="Krause et al., ICCV Workshops 2013",
    )
    sources = Sources(
        split_url="https://drive.google.com/file/d/1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT/view",
        by_hand=(
            "Get cars_train.tgz and cars_test.tgz: the makers' server has them no more, "
            "https://github.com/pytorch/vision/issues/7545 collects copies.",
            "Unpack them to {folder}/cars_train and {folder}/cars_test, with 00001.jpg and so on directly in each; "
            "some copies have one folder too many, as in cars_train/cars_train.",
        ),
    )

    def annotated(self) -> tuple[list[Item], list[Item]]:
        """The makers' development kit."""
        test = "cars_test_annos_withlabels.mat"
        return (
            self._listed("cars_train", self.annotation("devkit/cars_train_annos.mat")),
            self._listed("cars_test", self.annotation(f"devkit/{test}", test)),
        )

    def _listed(self, folder: str, annotations: Path) -> list[Item]:
        rows = [(str(row["fname"]), int(row["class"]) - 1) for row in read_matlab(annotations, "annotations")]
        return [Item(f"{folder}/{image}", label, self._names[label]) for image, label in rows]

    @cached_property
    def _names(self) -> list[str]:
        names = read_matlab(self.annotation("devkit/cars_meta.mat"), "class_names")
        return [" ".join([year, *words]) for *words, year in (str(name).split(" ") for name in names)]
