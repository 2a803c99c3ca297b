"""Splits from the annotations of a dataset's makers, for where there is no split file.

The rules are those by which the authors of CoOp made their split files (KaiyangZhou/CoOp, `datasets/dtd.py` and
`datasets/oxford_pets.py`). They drew with Python's global generator in a state that was not kept, so the files cannot
be made again: a generated split has the same classes and sizes, and other images. Figures on it do not compare with
published ones.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from promptbench.config import UsageError
from promptbench.layout import GUIDE
from promptbench.splits import Item, check_labels

log = logging.getLogger(__name__)

SPLIT_SEED = 1
"""Seeds the one generator that shuffles the classes, in the order of their labels."""

TRAIN_SHARE, VAL_SHARE = 0.5, 0.2

Splits: TypeAlias = "dict[str, list[Item]]"
Annotated: TypeAlias = "tuple[Sequence[Item], Sequence[Item] | None]"
"""Labelled images, and the makers' test set apart, or None if they have none."""


class GeneratedSplit(NamedTuple):
    """Three splits, and what made them, in words."""

    splits: Splits
    source: str


def generate_split(annotated: Callable[[], Annotated], where: str, split_file: str) -> GeneratedSplit:
    """The splits of a dataset that has no split file, by the rule that fits what its makers give; warns of it.

    Args:
        annotated: Reads what they give.
        where: The dataset and its folder, to begin a sentence with.
        split_file: The name of the file that is not there.

    Raises:
        UsageError: The annotations are not as expected, or a class has too few images.
    """
    try:
        items, test = annotated()
    except UsageError:
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:  # lists that do not fit each other
        raise UsageError(
            f"{where}: the makers' annotations are not as expected ({type(error).__name__}: {error}); "
            f"get them again, or {split_file}."
        ) from error
    if test is None:
        splits, rule = cut_classes(items, where), "50/20/30 % of each class"
    else:
        splits, rule = cut_val(items, test, where), "makers' test set, 20 % of each training class as val"
    check_labels(splits, where=where)
    source = f"generated ({rule}, seed {SPLIT_SEED})"
    log.warning(
        "%s has no %s: its split is %s, and figures on it do not compare with published ones. The file: %s",
        where,
        split_file,
        source,
        GUIDE,
    )
    return GeneratedSplit(splits, source)


def cut_classes(items: Sequence[Item], where: str) -> Splits:
    """50 % train, 20 % val and 30 % test of each class, shuffled; shares are rounded, half to even."""
    splits: Splits = {"train": [], "val": [], "test": []}
    for members in _shuffled(items):
        train, val = round(len(members) * TRAIN_SHARE), round(len(members) * VAL_SHARE)
        if not train or train + val >= len(members):
            raise _too_few(members, where)
        splits["train"] += members[:train]
        splits["val"] += members[train : train + val]
        splits["test"] += members[train + val :]
    return splits


def cut_val(items: Sequence[Item], test: Sequence[Item], where: str) -> Splits:
    """The first fifth of each class, shuffled and rounded half to even, as val; the test set as it is."""
    splits: Splits = {"train": [], "val": [], "test": list(test)}
    for members in _shuffled(items):
        val = round(len(members) * VAL_SHARE)
        if not val:
            raise _too_few(members, where)
        splits["val"] += members[:val]
        splits["train"] += members[val:]
    return splits


def _shuffled(items: Sequence[Item]) -> list[list[Item]]:
    """The items of each class, in label order; the order within a class is drawn."""
    generator = random.Random(SPLIT_SEED)
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return [generator.sample(groups[label], len(groups[label])) for label in sorted(groups)]


def _too_few(members: Sequence[Item], where: str) -> UsageError:
    return UsageError(
        f"{where}: the class {members[0].class_name!r} has {len(members)} images, too few to be split; "
        "complete the dataset or get its split file."
    )
