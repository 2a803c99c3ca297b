"""ImageNet-1k: 1000 classes of the ILSVRC 2012 challenge.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, arXiv:1409.0575.
The split is the challenge's own; as in all prompt-learning papers its 50 000 validation images are the test set, and
there is no validation set. Classes are the folders of `images/train` in sorted order, named by `classnames.txt` (CoOp's
file of CLIP's names).
License: its own terms of access, for non-commercial research and education.
Differs from CoOp: files are sorted. CoOp takes them as the file system lists them, so its few-shot sample depends on
the disk; it keeps that order in `imagenet/preprocessed.pkl`. With `listing` set to such a file the images come in its
order, which is not that of sorted files, and the sample of a seed is the one that CoOp draws beside that file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from promptbench.config import UsageError, path_of
from promptbench.data.dataset import Dataset, DatasetInfo, Item, Sources
from promptbench.data.selection import read_coop
from promptbench.data.splits import class_folder_items, read_class_names, subfolders

from ._imagenet import name_of

_FOLDERS = {"train": "train", "test": "val"}  # the challenge's labelled test set was never published


class ImageNet(Dataset):
    """ImageNet-1k."""

    info = DatasetInfo(
        title="ImageNet",
        classes=1000,
        images=(1_281_167, 0, 50000),
        template="a photo of a {}.",
        folder=("imagenet", "Imagenet"),
        split_file="classnames.txt",
        image_folder=("images", ""),
        url="https://image-net.org",
        paper="Russakovsky et al., IJCV 2015, arXiv:1409.0575",
        license="non-commercial research and education, terms of access",
    )
    sources = Sources(
        split_url="https://drive.google.com/file/d/1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF/view",
        by_hand=(
            "Ask for access at https://image-net.org and get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.",
            "Unpack the first to {folder}/images/train, and each of the 1000 archives in it into a folder of its name, "
            "such as {folder}/images/train/n01440764.",
            "Unpack the second to {folder}/images/val, and sort its 50 000 images into folders of the same names by "
            "the labels of the development kit, ILSVRC2012_devkit_t12.tar.gz.",
        ),
    )
    distinct_names = False  # CLIP's names hold pairs such as missile (n03773504, n04008634)

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        """In which order the images come."""

        listing: str = field(
            default="",
            metadata={"source": "CoOp's preprocessed.pkl, from the current or the dataset's folder; else sorted files"},
        )

    def read(self, split: str) -> Sequence[Item]:
        """The sorted files of the sorted class folders, or those that `listing` has, in its order."""
        if split not in _FOLDERS:
            return []
        if not self.config.listing:
            return self._sorted(split)
        listed = read_coop(self._listing, {name: self._sorted(name) for name in _FOLDERS})
        self._items |= {name: tuple(items) for name, items in listed.items()}
        return self._items[split]

    def class_id(self, item: Item) -> str:
        """The wnid, for two classes may have one name."""
        return self._class_folders[item.label]

    @property
    def _listing(self) -> Path:
        given = path_of(self.config.listing)
        return given if given.exists() else self.folder / given

    def _sorted(self, split: str) -> Sequence[Item]:
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
    def _names_file(self) -> Path:
        return self.annotation(self.info.split_file)

    @cached_property
    def _names(self) -> dict[str, str]:
        return read_class_names(self._names_file)

    def _class_name(self, folder: str) -> str:
        return name_of(folder, self._names, self._names_file)
