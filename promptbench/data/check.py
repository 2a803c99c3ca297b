"""Whether every image that a dataset's splits name is there and, if asked, can be opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from promptbench.config import UsageError
from promptbench.data.status import absent_items, inspect
from promptbench.dataset import Dataset
from promptbench.splits import SPLITS, Item

_SHOWN = 20  # missing images that are named
_PARTS = 50  # steps that progress is told in
_FEWEST = 500  # images in a step, at least

Progress = Callable[[int, int], None]
"""Told how many of how many images were opened."""


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
    items = list(dict.fromkeys(item for split in SPLITS for item in dataset.items(split)))
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
