"""From a protocol's words to images: the few-shot sample, the base or new half, their labels and names."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from promptbench import sampling
from promptbench.classnames import ClassNames
from promptbench.config import UsageError
from promptbench.dataset import Dataset, Item
from promptbench.protocol import Evaluation, Selection

HELD_OUT_SHOTS = 16  # drawn per class where a dataset has no validation images


@dataclass(frozen=True)
class SelectedImages:
    """Images of a dataset that belong to a `Selection`.

    Attributes:
        dataset: Where they are.
        pool: What they were chosen from: the whole split, or the few-shot sample over all classes.
        chosen: Positions in `pool`.
        items: The chosen ones, labels counted from 0 within the selection.
        class_names: Names of those labels, with the dataset's template.
    """

    dataset: Dataset
    pool: list[Item]
    chosen: list[int]
    items: list[Item]
    class_names: ClassNames

    @property
    def labels(self) -> list[int]:
        """Label of each chosen image, from 0 within the selection."""
        return [item.label for item in self.items]

    def sample_digest(self) -> str:
        """SHA-256 over the paths of the pool: for training, of the few-shot sample over all classes."""
        return sampling.digest(self.pool)


def open_selection(open_dataset: Callable[[str], Dataset], selection: Selection, seed: int) -> SelectedImages:
    """The images of a selection; `seed` draws the few-shot sample, over all classes, before a half is taken.

    Raises:
        UsageError: If the dataset cannot be read, or nothing is left.
    """
    dataset = open_dataset(selection.dataset)
    pool = images_of(dataset, selection, seed)
    labels = class_labels(dataset, selection.classes)
    wanted = set(labels)
    chosen = [index for index, item in enumerate(pool) if item.label in wanted]
    if not chosen:
        raise UsageError(
            f"The dataset '{dataset.name}' has no {selection.split} images of its {selection.classes} classes."
        )
    items = sampling.select(pool, labels)
    return SelectedImages(dataset, pool, chosen, items, dataset.class_names.select(labels))


def images_of(dataset: Dataset, selection: Selection, seed: int) -> list[Item]:
    """The images of a split, or a few-shot sample of them, over all classes."""
    if selection.split == "held_out":
        return held_out(dataset, selection.shots or HELD_OUT_SHOTS, seed)
    items = dataset.items(selection.split)
    return items if selection.shots is None else sampling.coop_sample(items, [], selection.shots, seed)[0]


def held_out(dataset: Dataset, shots: int, seed: int) -> list[Item]:
    """Images to choose settings by: the validation split, or a draw of training images outside the few-shot sample."""
    validation = dataset.items("val")
    if validation:
        return validation
    train = dataset.items("train")
    used = {item.image for item in sampling.coop_sample(train, [], shots, seed)[0]}
    unused = [item for item in train if item.image not in used]
    return sampling.sample_few_shot(unused, HELD_OUT_SHOTS, random.Random(seed))


def class_labels(dataset: Dataset, classes: str) -> list[int]:
    """The dataset's labels that `all`, `base`, `new` or a half of a half, such as `base.new`, stands for."""
    labels = list(range(len(dataset.class_names)))
    for half in classes.split("."):
        if half not in ("all", "base", "new"):
            raise ValueError(
                f"classes are 'all', 'base', 'new' or halves of halves such as 'base.new', not {classes!r}"
            )
        base, new = sampling.split_base_new(labels)
        labels = {"all": labels, "base": base, "new": new}[half]
    return labels


def shown_names(
    open_dataset: Callable[[str], Dataset], evaluation: Evaluation, chosen: SelectedImages, seed: int
) -> ClassNames:
    """The class names that an evaluation's images, `chosen`, are scored against."""
    if evaluation.names is None:
        return chosen.class_names
    return open_selection(open_dataset, evaluation.names, seed).class_names
