"""FGVC-Aircraft: 100 aircraft variants.

Maji et al., "Fine-Grained Visual Classification of Aircraft", 2013, arXiv:1306.5151.
The split is the makers' own, in `images_variant_{train,val,test}.txt`; the label is the line number in `variants.txt`.
License: for non-commercial research only.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, DatasetInfo, Download, Item, Sources
from promptbench.data.splits import SPLITS, check_labels, read_text


class FGVCAircraft(Dataset):
    """FGVC-Aircraft by variant."""

    info = DatasetInfo(
        title="FGVCAircraft",
        classes=100,
        images=(3334, 3333, 3333),
        template="a photo of a {}, a type of aircraft.",
        folder=("fgvc_aircraft", "dataset_suite/fgvc-aircraft-2013b/data", "dataset_suite/fgvc-aircraft-2013b"),
        split_file="variants.txt",
        image_folder="images",
        url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        paper="Maji et al., arXiv:1306.5151",
        license="non-commercial research only",
    )
    sources = Sources(
        downloads=(
            Download(
                url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                folder="fgvc-aircraft-2013b/data",
                target="",
            ),
        ),
    )

    def read(self, split: str) -> Sequence[Item]:
        """All splits at once, in the order of the makers' lists."""
        if not self._items:
            variants = [
                line.strip() for line in read_text(self.annotation(self.info.split_file)).splitlines() if line.strip()
            ]
            labels = {variant: label for label, variant in enumerate(variants)}
            splits = {key: self._listed(f"images_variant_{key}.txt", labels) for key in SPLITS}
            check_labels(splits, where=f"The dataset {self.name!r} in {self.folder}")
            self._items = {key: tuple(items) for key, items in splits.items()}
        return self._items[split]

    def few_shot_pool(self, split: str, sampler: str) -> list[Item]:
        """Training images, and with GalLoP's sampler those of the makers' list `trainval`, as the authors have it."""
        if (split, sampler) != ("train", "stratified"):
            return super().few_shot_pool(split, sampler)
        labels = {item.class_name: item.label for item in self.items("train")}
        return self._listed("images_variant_trainval.txt", labels)

    def _listed(self, file: str, labels: dict[str, int]) -> list[Item]:
        items, path = [], self.annotation(file)
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            image, _, variant = line.strip().partition(" ")
            if image and variant not in labels:
                raise UsageError(f"{path}, line {number}: {variant!r} is not in {self.info.split_file}.")
            if image:
                items.append(Item(f"{image}.jpg", labels[variant], variant))
        return items
