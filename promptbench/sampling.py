"""Few-shot samples, drawn as CoOp or as GalLoP draws them, and base/new halves as in CoOp.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022; code: https://github.com/KaiyangZhou/CoOp on
https://github.com/KaiyangZhou/Dassl.pytorch. Both seed Python's global generator and use it first for the sample; here
the same stream is private, so that the same seed gives the same images, in the same order, whatever else runs.

Lafon et al., "GalLoP: Learning Global and Local Prompts for Vision-Language Models", ECCV 2024; code:
https://github.com/MarcLafon/gallop. Its sample is stratified, not `shots` per class, so its figures are not on CoOp's
images.

Works on any named tuple with `label` and `image`; nothing here reads an image.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
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
    _refuse_no_shots(shots)
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


def stratified_sample(items: Sequence[L], shots: int, seed: int) -> list[L]:
    """GalLoP's few-shot items: `shots` times the number of classes in all, in proportion to the sizes of the classes.

    A class has more or fewer than `shots` of them: 6 to 155 on Caltech101 at 16 shots. They are the training indices,
    in their shuffled order, of scikit-learn's `StratifiedShuffleSplit`, classes numbered by their first appearance in
    `items`. Where so many images, or more, are asked for as there are, it is all of them, in list order and without a
    word (at exactly as many, GalLoP itself fails).

    Raises:
        ValueError: A class has a single image, or fewer images than classes would be left over.
    """
    _refuse_no_shots(shots)
    numbers: dict[int, int] = {}
    classes = [numbers.setdefault(item.label, len(numbers)) for item in items]
    wanted = shots * len(numbers)
    if wanted >= len(items):
        return list(items)
    from sklearn.model_selection import StratifiedShuffleSplit

    splitter = StratifiedShuffleSplit(n_splits=1, train_size=wanted, random_state=seed)
    try:
        chosen, _ = next(splitter.split(classes, classes))
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"A stratified sample of {wanted} of {len(items)} images cannot be drawn: {reason}; take other shots."
        ) from error
    return [items[index] for index in chosen]


def _refuse_no_shots(shots: int) -> None:
    if shots < 1:
        raise ValueError(f"A few-shot sample takes at least 1 shot per class, not {shots}.")


def _coop_train(items: Sequence[L], shots: int, seed: int) -> list[L]:
    return coop_sample(items, [], shots, seed)[0]


SAMPLERS: Mapping[str, Callable[[Sequence[Any], int, int], list[Any]]] = MappingProxyType(
    {"coop": _coop_train, "stratified": stratified_sample}
)
"""Rules that draw few-shot training items, by name; each takes the items, the shots and the seed."""


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
