"""What is there of a dataset and what is not.

It is read from folder listings; only a deep check opens images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from promptbench.config import UsageError
from promptbench.data.dataset import Dataset
from promptbench.data.listing import Listing, is_image
from promptbench.data.splits import SPLITS, Item

_SHOWN = 20  # missing images that a check names
_PARTS = 50  # steps that progress is told in
_FEWEST = 500  # images in a step, at least

Progress = Callable[[int, int], None]
"""Told how many of how many images were opened."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of one dataset.

    Attributes:
        name: Its name.
        expected: Images per split of the whole dataset, 0 where unknown.
        place: Its folder on disk; None where it was not found.
        sizes: Images per split that its split names; empty where the split cannot be read.
        present: Those of them that are there.
        source: What the split comes from.
        split_digest: SHA-256 of the split in hex.
        names_digest: SHA-256 of the class names in hex, as results store it.
        lacks: What is missing, in words; empty where the dataset is complete.
    """

    name: str
    expected: Mapping[str, int]
    place: Path | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    present: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    split_digest: str = ""
    names_digest: str = ""
    lacks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the dataset is there with all of its images and the right split."""
        return not self.lacks


def inspect(dataset: Dataset) -> Status:
    """The state of a dataset; what is wrong with it is in `lacks`, and nothing is raised."""
    found: dict[str, Any] = {"name": dataset.name, "expected": dict(zip(SPLITS, dataset.info.images, strict=True))}
    try:
        found["lacks"] = _read(dataset, found)
    except (UsageError, OSError) as error:
        found["lacks"] = (_sentence(error),)
    return Status(**found)


def _read(dataset: Dataset, found: dict[str, Any]) -> tuple[str, ...]:
    """What a dataset lacks; `found` gets all that is known, also where reading ends early."""
    if dataset.info.folder and not dataset.layout.find():
        return (_not_found(dataset),)
    if not _rendered(dataset):
        found["place"] = dataset.folder
    items = {split: dataset.items(split) for split in SPLITS}
    found["sizes"] = {split: len(items[split]) for split in SPLITS}
    found["source"] = dataset.split_source
    absent = {split: absent_items(dataset, items[split]) for split in SPLITS}
    found["present"] = {split: len(items[split]) - len(absent[split]) for split in SPLITS}
    found["split_digest"] = dataset.split_digest()
    found["names_digest"] = hashlib.sha256("\n".join(dataset.class_names).encode()).hexdigest()
    return tuple(_lacks(dataset, found, absent))


def _rendered(dataset: Dataset) -> bool:
    """Whether its images are drawn when they are first used, so that none can be missing."""
    return not dataset.info.folder and not hasattr(dataset.config, "root")


def _not_found(dataset: Dataset) -> str:
    if not dataset.roots:
        return "no data root is given, with --data-root or in PROMPTBENCH_DATA"
    roots = [str(root) if root.is_dir() else f"{root} (not a folder)" for root in dataset.roots]
    return f"not found in {', '.join(roots)}: looked for {', '.join(dataset.layout.looked_for())}"


def absent_items(dataset: Dataset, items: Iterable[Item]) -> list[Item]:
    """The items whose image is not there; one listing per folder and no look at single files that are called images.

    Raises:
        UsageError: The images' folder cannot be read.
    """
    if _rendered(dataset):
        return []
    root = dataset.image_root
    places: dict[Path, Listing] = {}
    present: dict[str, frozenset[str]] = {}
    absent = []
    for item in items:
        folder, _, name = item.image.rpartition("/")
        if folder not in present:
            path = root / folder
            if path.parent not in places:
                places[path.parent] = Listing(path.parent)
            present[folder] = frozenset(places[path.parent].images(path.name))
        if name not in present[folder] and (is_image(name) or not os.path.isfile(root / item.image)):
            absent.append(item)
    for listing in places.values():
        listing.remember()
    return absent


def _lacks(dataset: Dataset, found: Mapping[str, Any], absent: Mapping[str, Sequence[Item]]) -> list[str]:
    sentences = []
    missing = list(chain.from_iterable(absent.values()))
    if missing:
        total = sum(found["sizes"].values())
        first = missing[0].image
        sentences.append(f"{len(missing):,} of {total:,} images are not in {dataset.image_root}, first {first}")
    if found["source"].startswith("generated"):
        sentences.append(f"{dataset.info.split_file} is not there; figures on a generated split compare with no other")
        return sentences
    classes = len(dataset.class_names)
    if dataset.info.classes not in (0, classes):
        sentences.append(f"the split has {classes:,} classes where the dataset has {dataset.info.classes:,}")
    if not any(found["expected"].values()):
        return sentences
    for split, expected in found["expected"].items():
        size = found["sizes"][split]
        if size != expected:
            sentences.append(f"the split has {size:,} {split} images where the dataset has {expected:,}")
    return sentences


def check(dataset: Dataset, deep: bool, progress: Progress) -> Iterator[str]:
    """One sentence per thing that is wrong; none where the dataset is complete.

    Args:
        dataset: What to check.
        deep: Whether to open every image that is there.
        progress: Told of the images that were opened.
    """
    state = inspect(dataset)
    yield from state.lacks
    if not state.present:
        return
    items = list(dict.fromkeys(chain.from_iterable(map(dataset.items, SPLITS))))
    absent = absent_items(dataset, items)
    yield from (f"{dataset.image_root / item.image} is not there" for item in absent[:_SHOWN])
    if len(absent) > _SHOWN:
        yield f"and {len(absent) - _SHOWN:,} more are not there"
    if deep:
        known = frozenset(absent)
        yield from _damaged(dataset, [item for item in items if item not in known], progress)


def _damaged(dataset: Dataset, items: list[Item], progress: Progress) -> Iterator[str]:
    """What is wrong with each image that cannot be opened, step by step."""
    size = max(_FEWEST, -(-len(items) // _PARTS))
    for start in range(0, len(items), size):
        for bad in dataset.unreadable(items[start : start + size]):
            try:
                dataset.open(bad)
            except UsageError as error:
                yield str(error)
        progress(min(start + size, len(items)), len(items))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'The data root'} cannot be read: {error.strerror or error}"
    return " ".join(str(error).split())
