"""What the test sets for models of ImageNet share: class folders whose names a file of ImageNet's tells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.data.dataset import Dataset, Item
from promptbench.data.splits import class_folder_items, read_class_names, subfolders

FOLDERS = ("imagenet", "Imagenet")
"""Where ImageNet itself lies below a data root: in CoOp's tree, in GalLoP's."""


class ImageNetVariant(Dataset):
    """Test images of ImageNet's classes.

    Attributes:
        own_classes: Whether its classes are those it has folders for, and not all of ImageNet's.
    """

    own_classes: ClassVar[bool] = False
    distinct_names = False  # CLIP's names hold pairs such as missile (n03773504, n04008634)

    def read(self, split: str) -> Sequence[Item]:
        """The sorted files of the class folders."""
        if split != "test":
            return []
        classes = self.classes()
        labels = {folder: label for label, folder in enumerate(classes)}
        items = class_folder_items(self.image_root, "", labels, classes.__getitem__)
        if not items:
            raise UsageError(
                f"The dataset {self.name!r} has no class folders in {self.image_root}; extract the images there."
            )
        return items

    @cached_property
    def class_names(self) -> ClassNames:
        """The names of its classes, also of those without images."""
        return ClassNames(self.classes().values(), template=self.template)

    def classes(self) -> dict[str, str]:
        """Class folder to class name, in label order: the sorted wnids."""
        wnids = subfolders(self.image_root) if self.own_classes else sorted(self.listed_names)
        return {wnid: name_of(wnid, self.listed_names, self.names_file) for wnid in wnids}

    def class_id(self, item: Item) -> str:
        """The wnid, for two classes may have one name."""
        return self.wnids[item.label]

    @cached_property
    def wnids(self) -> list[str]:
        """In label order."""
        return list(self.classes())

    @property
    def names_file(self) -> Path:
        """Its own list of class names, or ImageNet's."""
        imagenet = [root / folder for root in self.roots for folder in FOLDERS]
        return self.annotation(self.info.split_file, places=imagenet)

    @cached_property
    def listed_names(self) -> dict[str, str]:
        """Wnid to class name, for all of ImageNet's classes in the order of the file."""
        return read_class_names(self.names_file)


def name_of(wnid: str, names: dict[str, str], path: Path) -> str:
    """The name of a class folder, from the names read from `path`; UsageError if it is not among them."""
    if wnid not in names:
        raise UsageError(f"{path} has no name for the class folder {wnid!r}; add a line `{wnid} name`.")
    return names[wnid]
