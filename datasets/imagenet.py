"""ImageNet-1k: 1000 classes of the ILSVRC 2012 challenge.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, arXiv:1409.0575.
The split is the challenge's own; as in all prompt-learning papers its 50 000 validation images are the test set, and
there is no validation set. Classes are the folders of `images/train` in sorted order, named by `classnames.txt` (CoOp's
file of CLIP's names).
License: its own terms of access, for non-commercial research and education.
Differs from CoOp: files are sorted. CoOp takes them as the file system lists them, so its few-shot sample depends on
the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from promptbench.config import UsageError
from promptbench.dataset import Dataset, DatasetInfo, Item
from promptbench.splits import class_folder_items, read_class_names, subfolders

_FOLDERS = {"train": "train", "test": "val"}  # the challenge's labelled test set was never published


class ImageNet(Dataset):
    """ImageNet-1k."""

    info = DatasetInfo(
        title="ImageNet",
        classes=1000,
        template="a photo of a {}.",
        folder="imagenet",
        split_file="classnames.txt",
        image_folder="images",
        url="https://image-net.org",
        paper="Russakovsky et al., IJCV 2015, arXiv:1409.0575",
        license="non-commercial research and education, terms of access",
    )
    distinct_names = False  # CLIP's names hold pairs such as missile (n03773504, n04008634)

    def read(self, split: str) -> Sequence[Item]:
        """The sorted files of the sorted class folders."""
        if split not in _FOLDERS:
            return []
        labels = {folder: label for label, folder in enumerate(self._class_folders)}
        return class_folder_items(self.image_root, _FOLDERS[split], labels, self._class_name)

    @cached_property
    def _class_folders(self) -> list[str]:
        train = self.image_root / "train"
        found = subfolders(train)
        if not found:
            raise UsageError(f"The dataset {self.name!r} has no class folders in {train}; extract the images there.")
        return found

    @cached_property
    def _names(self) -> dict[str, str]:
        return read_class_names(self.folder / self.info.split_file)

    def _class_name(self, folder: str) -> str:
        if folder not in self._names:
            path = self.folder / self.info.split_file
            raise UsageError(f"{path} has no name for the class folder {folder!r}; add a line `{folder} name`.")
        return self._names[folder]
