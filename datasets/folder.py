"""Your own images, in folders named after the classes; no Python and no split file needed.

Either `root/train`, `root/val` and `root/test`, each with one folder per class (`val` may be missing), or one folder
per class directly in `root`, which a rule splits: each class's sorted images are shuffled by a generator of their own,
keyed by `split_seed` and the folder's name, and cut by `fractions`. Classes are the class folders in sorted order; "_"
in a name reads as a blank.

    promptbench run --method coop --dataset folder:~/birds

trains on all classes (protocol `few_shot`), unless a `--protocol` is named.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from promptbench.config import UsageError, path_of
from promptbench.data.class_names import ClassNames
from promptbench.data.dataset import Dataset, DatasetInfo, Item
from promptbench.data.splits import SPLITS, check_labels, class_folder_items, read_class_names, subfolders


class Folder(Dataset):
    """Images in class folders."""

    info = DatasetInfo(title="Folder", classes=0)
    usual_protocol = "few_shot"  # whoever brings images wants all of their classes known

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        """Where the images are and how they are split."""

        root: str = field(metadata={"source": "the folder, from the current directory or from a data root"})
        template: str = field(
            default="a photo of a {}.", metadata={"source": "CLIP; zero-shot and hand-written prompts use it"}
        )
        fractions: tuple[float, float, float] = field(
            default=(0.5, 0.2, 0.3),
            metadata={"source": "train, val, test of each class where root has no split; as CoOp splits DTD"},
        )
        split_seed: int = field(default=1, metadata={"source": "ours; which images those fractions take"})
        class_names: str = field(
            default="", metadata={"source": "a file with lines `folder class name`, from root; else the folders' names"}
        )

        def __post_init__(self) -> None:
            """Refuses fractions that are no fractions and templates without a place for the name."""
            train, val, test = self.fractions
            if not (train > 0 and val >= 0 and test > 0 and math.isclose(train + val + test, 1, abs_tol=1e-6)):
                raise UsageError(
                    f"'fractions' takes three numbers that sum to 1, train and test above 0, not {self.fractions}."
                )
            ClassNames((), template=self.template)

    @property
    def template(self) -> str:
        """The configured template."""
        return str(self.config.template)

    @cached_property
    def folder(self) -> Path:
        """The configured root: as it stands, or below the first data root that has it."""
        given = path_of(self.config.root)
        candidates = [given.absolute(), *(root / given for root in self.roots)]
        for candidate in candidates:
            if candidate.is_dir():
                return candidate
        looked = ", ".join(map(str, dict.fromkeys(candidates)))
        raise UsageError(
            f"The dataset {self.name!r} was not found: there is no folder {looked}; name the folder of its class "
            f"folders in full, as in --dataset folder:/path/to/{self.name}."
        )

    def read(self, split: str) -> Sequence[Item]:
        """All splits at once, so that they are checked against each other."""
        if not self._items:
            splits = self._from_split_folders() if self._has_splits else self._from_one_folder()
            check_labels(splits, where=f"The dataset {self.name!r} in {self.folder}")
            self._items = {key: tuple(items) for key, items in splits.items()}
        return self._items[split]

    @cached_property
    def _has_splits(self) -> bool:
        found = set(subfolders(self.folder))
        if {"train", "test"} <= found:
            return True
        if found and found <= set(SPLITS):
            raise UsageError(
                f"The dataset {self.name!r} in {self.folder} needs both a 'train' and a 'test' folder of class folders."
            )
        if not found:
            raise UsageError(
                f"The dataset {self.name!r} in {self.folder} has no class folders; make one folder of images per class."
            )
        return False

    @property
    def split_made(self) -> str:
        """How many images of a class each split was given: `10/4/6 images a class: train/val/test`."""
        if self._has_splits:
            return ""
        labels = sorted({item.label for item in self.items(SPLITS[0])})
        shares = []
        for split in SPLITS:
            count = Counter(item.label for item in self.items(split))
            shares.append(_span([count[label] for label in labels]))
        return f"{'/'.join(shares)} images a class: {'/'.join(SPLITS)}"

    def _from_split_folders(self) -> dict[str, list[Item]]:
        names = self._names(subfolders(self.folder / "train"))
        return {split: self._class_items(split, names) for split in SPLITS}

    def _from_one_folder(self) -> dict[str, list[Item]]:
        splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
        by_folder: dict[str, list[Item]] = {}
        for item in self._class_items("", self._names(subfolders(self.folder))):
            by_folder.setdefault(item.image.partition("/")[0], []).append(item)
        for folder, items in by_folder.items():
            for split, part in zip(SPLITS, self._cut(folder, items), strict=True):
                splits[split] += part
        return splits

    def _cut(self, folder: str, items: list[Item]) -> tuple[list[Item], list[Item], list[Item]]:
        """The train, val and test items of one class: rounded fractions, at least one image in train and in test."""
        if len(items) < 2:
            raise UsageError(
                f"The class folder {self.folder / folder} has one image; a split into train and test needs two."
            )
        train_share, val_share, _ = self.config.fractions
        train = min(max(round(len(items) * train_share), 1), len(items) - 1)
        val = min(round(len(items) * val_share), len(items) - train - 1)
        shuffled = random.Random(f"{self.config.split_seed}/{folder}").sample(items, len(items))
        return sorted(shuffled[:train]), sorted(shuffled[train : train + val]), sorted(shuffled[train + val :])

    def _class_items(self, prefix: str, names: Mapping[str, str]) -> list[Item]:
        labels = {folder: label for label, folder in enumerate(names)}
        return class_folder_items(self.folder, prefix, labels, names.__getitem__)

    def _names(self, folders: Sequence[str]) -> dict[str, str]:
        """Class folder to class name, in sorted order of the folders."""
        if not self.config.class_names:
            return {folder: folder for folder in folders}
        path = self.folder / path_of(self.config.class_names)
        listed = read_class_names(path)
        unnamed = [folder for folder in folders if folder not in listed]
        if unnamed:
            raise UsageError(
                f"{path} names {len(listed)} folders but not {unnamed[0]!r}; add a line for each class folder."
            )
        return {folder: listed[folder] for folder in folders}


def _span(counts: Sequence[int]) -> str:
    """The least and the most of some counts: `10`, or `8-12`."""
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least}-{most}"
