"""Datasets against what is known of them: images and classes per split, and the few-shot samples of three seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from promptbench.checks.installation.report import Check, could_not, equality
from promptbench.data.dataset import Dataset
from promptbench.data.get.status import Status
from promptbench.data.selection import SAMPLERS, digest, split_base_new
from promptbench.data.splits import SPLITS, Item

SHOTS = 16
SEEDS = (1, 2, 3)
_DIGITS = 16  # of a SHA-256, in hex

NO_SPLIT_FILE = "not comparable: no split file, so the split is generated"


class Known(NamedTuple):
    """What follows from a split file of CoOp's authors.

    Attributes:
        per_class: Fewest and most training images of a class.
        test: Test images of the base and of the new classes.
        samples: Of seeds 1, 2 and 3, at 16 shots: the first digits of the SHA-256 over the paths of the training
            images, in the order drawn.
    """

    per_class: tuple[int, int]
    test: tuple[int, int]
    samples: tuple[str, str, str]


KNOWN: Mapping[str, Known] = {
    "caltech101": Known((16, 400), (1549, 916), ("e60a836bd33cbba3", "62be9f804c23dea9", "8c465c68bff43c6e")),
    "oxford_pets": Known((74, 80), (1881, 1788), ("711e62ca7ba4bf69", "3ecc09fd23ef3845", "45933e694768aaab")),
    "stanford_cars": Known((19, 54), (4002, 4039), ("f7d56096c7921e7a", "c8392ec0f0d4a698", "d5d533f8b5c5caf8")),
    "oxford_flowers": Known((20, 129), (1053, 1410), ("ea366f552e24a82b", "3966d8c7701959cc", "d027071e2f771db1")),
    "dtd": Known((60, 60), (864, 828), ("daf3b28e531fbc4b", "a34259006a2af32a", "d4a9dc52a372cccc")),
    "eurosat": Known((1000, 1500), (4200, 3900), ("ad260707da9107f1", "212e6c8813227418", "9dad8ac018414f09")),
    "ucf101": Known((58, 97), (1934, 1849), ("b88bd6d2db741f87", "a510bb0001f043a5", "6bfebd6fbe0806ac")),
}


def check_splits(dataset: Dataset, plugin: str, state: Status) -> Iterator[Check]:
    """The facts of one dataset; nothing where it is not there.

    Args:
        dataset: Opened.
        plugin: Name of its plugin, whatever the suite calls it.
        state: As `inspect` gives it.
    """
    name = dataset.name
    if not state.sizes:
        if state.place is not None:
            yield could_not("data", name, state.lacks[0])
        return
    if state.source.startswith("generated"):
        yield could_not("data", name, NO_SPLIT_FILE)
        return
    if any(dataset.info.images):
        measured = _joined(state.sizes[split] for split in SPLITS)
        yield equality("data", f"{name}, images of train, val, test", measured, _joined(dataset.info.images))
    if dataset.info.classes:
        yield equality("data", f"{name}, classes", len(dataset.class_names), dataset.info.classes)
    if plugin in KNOWN:
        yield from _check_known(dataset, KNOWN[plugin])
    missing = sum(state.sizes.values()) - sum(state.present.values())
    if missing:
        yield could_not("data", f"{name}, images", state.lacks[0])


def check_absent(states: Sequence[Status], roots: Sequence[Path]) -> Iterator[Check]:
    """One line for all datasets that were not found."""
    absent = [state for state in states if state.place is None and not state.sizes]
    if absent:
        why = "not found below the data roots; `promptbench data status` says where they may lie"
        yield could_not("data", " ".join(state.name for state in absent), why if roots else absent[0].lacks[0])


def _check_known(dataset: Dataset, known: Known) -> Iterator[Check]:
    """The facts that are known of a split file: its extremes, its halves and its few-shot samples."""
    name = dataset.name
    train = dataset.items("train")
    test = dataset.items("test")
    counts = Counter(item.label for item in train).values()
    extremes = _joined((min(counts), max(counts)))
    yield equality("data", f"{name}, fewest and most training images of a class", extremes, _joined(known.per_class))
    base, new = map(frozenset, split_base_new(item.label for item in train))
    of_base = sum(item.label in base for item in test)
    of_new = sum(item.label in new for item in test)
    of_halves = _joined((of_base, of_new))
    yield equality("data", f"{name}, test images of base and new classes", of_halves, _joined(known.test))
    for seed, expected in zip(SEEDS, known.samples, strict=True):
        yield equality("sample", f"{name}, {SHOTS} shots, seed {seed}", fingerprint(train, seed), expected)


def fingerprint(train: Iterable[Item], seed: int) -> str:
    """The first 16 hex digits of the SHA-256 over the few-shot sample that CoOp draws at a seed."""
    return digest(SAMPLERS["coop"](list(train), SHOTS, seed))[:_DIGITS]


def _joined(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)
