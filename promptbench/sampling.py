"""Few-shot samples and base/new halves, drawn as CoOp draws them.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022; code: https://github.com/KaiyangZhou/CoOp on
https://github.com/KaiyangZhou/Dassl.pytorch. Both seed Python's global generator and use it first for the sample; here
the same stream is private, so that the same seed gives the same images, in the same order, whatever else runs.

Works on any named tuple with `label` and `image`; nothing here reads an image.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

VAL_SHOTS = 4
"""CoOp draws at most this many validation images per class."""


class Labelled(Protocol):
    """A named tuple with the fields that sampling needs."""

    @property
    def image(self) -> str:
        """The image's path inside its dataset."""

    @property
    def label(self) -> int:
        """The image's class."""

    @property
    def _replace(self) -> Callable[..., Any]:
        """A copy with other field values."""


L = TypeVar("L", bound=Labelled)


def sample_few_shot(items: Sequence[L], shots: int, generator: random.Random) -> list[L]:
    """Exactly `shots` items of each class, classes in order of their first appearance in `items`.

    A class that has fewer is taken whole, in list order, without a draw.
    """
    if shots < 1:
        raise ValueError(f"A few-shot sample takes at least 1 shot per class, not {shots}.")
    by_label: dict[int, list[L]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    sample: list[L] = []
    for members in by_label.values():
        sample += generator.sample(members, shots) if len(members) >= shots else members
    return sample


def coop_sample(train: Sequence[L], val: Sequence[L], shots: int, seed: int) -> tuple[list[L], list[L]]:
    """CoOp's few-shot train and validation items at a seed: train first, then `min(shots, 4)` of val from the same
    stream.

    It draws over all classes; base and new classes are selected afterwards. A 1-shot sample is not part of the 16-shot
    one.
    """
    generator = random.Random(seed)
    few_train = sample_few_shot(train, shots, generator)
    return few_train, sample_few_shot(val, min(shots, VAL_SHOTS), generator)


def split_base_new(labels: Iterable[int]) -> tuple[list[int], list[int]]:
    """The distinct labels, sorted, in two halves: base, the first `ceil(n / 2)`, and new, the rest."""
    ordered = sorted(set(labels))
    middle = (len(ordered) + 1) // 2
    return ordered[:middle], ordered[middle:]


def select(items: Iterable[L], labels: Iterable[int]) -> list[L]:
    """The items of the given labels, in order, relabelled from 0 in sorted order of the labels."""
    relabelled = {label: index for index, label in enumerate(sorted(set(labels)))}
    return [item._replace(label=relabelled[item.label]) for item in items if item.label in relabelled]


def digest(items: Iterable[Labelled]) -> str:
    """SHA-256, in hex, of the image paths in order, joined by newlines."""
    return hashlib.sha256("\n".join(item.image for item in items).encode()).hexdigest()
