"""From a protocol's words to images: the few-shot sample, the base or new half, their labels and names."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from promptbench.config import UsageError
from promptbench.data import sampling
from promptbench.data.class_names import ClassNames

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset, Item

FILE = "file:"  # what names a stored sample among the samplers
HELD_OUT_SHOTS = 16  # drawn per class where a dataset has no validation images

Split = Literal["train", "val", "test", "held_out"]


@dataclass(frozen=True)
class SelectedImages:
    """Images of a dataset that belong to a `Selection`.

    Attributes:
        dataset: Where they are.
        pool: What they were chosen from: the whole split, or the few-shot sample over all classes.
        chosen: Positions in `pool`.
        items: The chosen ones, labels counted from 0 within the selection.
        class_names: Names of those labels, with the dataset's template.
        skipped: Images that would be in the pool but cannot be read, where the dataset leaves such out.
    """

    dataset: Dataset
    pool: list[Item]
    chosen: list[int]
    items: list[Item]
    class_names: ClassNames
    skipped: tuple[str, ...] = ()

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
    skipped = [item.image for item in dataset.unreadable(pool)] if dataset.skip_unreadable else []
    if skipped:
        left_out = set(skipped)
        pool = [item for item in pool if item.image not in left_out]
    labels = class_labels(dataset, selection.classes)
    wanted = set(labels)
    chosen = [index for index, item in enumerate(pool) if item.label in wanted]
    if not chosen:
        raise UsageError(
            f"The dataset '{dataset.name}' has no {selection.split} images of its {selection.classes} classes."
        )
    items = sampling.select(pool, labels)
    return SelectedImages(dataset, pool, chosen, items, dataset.class_names.select(labels), tuple(skipped))


def images_of(dataset: Dataset, selection: Selection, seed: int) -> list[Item]:
    """The images of a split, or a few-shot sample of them, over all classes."""
    if selection.split == "held_out":
        return held_out(dataset, selection, seed)
    if selection.shots is None:
        return dataset.items(selection.split)
    return few_shot_sample(dataset, selection.split, selection.shots, selection.sampler, seed)


def few_shot_sample(dataset: Dataset, split: str, shots: int, sampler: str, seed: int) -> list[Item]:
    """A few-shot sample over all classes, drawn by a sampler or read from `file:PATH`."""
    if sampler.startswith(FILE):
        return stored_sample(Path(sampler.removeprefix(FILE)), dataset, split, shots, seed)
    try:
        return sampling.SAMPLERS[sampler](dataset.few_shot_pool(split, sampler), shots, seed)
    except ValueError as error:
        raise UsageError(f"The dataset '{dataset.name}', {shots} shots: {error}") from error


def stored_sample(path: Path, dataset: Dataset, split: str, shots: int, seed: int) -> list[Item]:
    """A few-shot sample from a file, in its order.

    Raises:
        UsageError: The file is no sample of this dataset, or says that it has other shots or another seed.
    """
    header = sampling.read_header(path)
    for name, wanted in (("shots", shots), ("seed", seed)):
        if header.get(name, wanted) != wanted:
            raise UsageError(f"{path} is a sample with {name} {header[name]}, not {wanted}; name it with {{{name}}}.")
    sample = sampling.read_sample(path, dataset.few_shot_pool(split, str(header.get("sampler", "coop"))))
    most = max(Counter(item.label for item in sample).values(), default=0)
    if most > shots and header.get("sampler", "coop") == "coop":
        raise UsageError(f"{path} has {most} images of a class, more than {shots} shots.")
    return sample


def held_out(dataset: Dataset, selection: Selection, seed: int) -> list[Item]:
    """Images to choose settings by: the validation split, or a draw of training images outside the few-shot sample."""
    sample = few_shot_sample(dataset, "train", selection.shots or HELD_OUT_SHOTS, selection.sampler, seed)
    used = {item.image for item in sample}  # validation images too, where the sampler draws from them
    validation = [item for item in dataset.items("val") if item.image not in used]
    if validation:
        return validation
    unused = [item for item in dataset.items("train") if item.image not in used]
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


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Images of one dataset.

    Attributes:
        dataset: Name of an entry of the suite.
        split: One of the dataset's splits; `held_out` is its validation images or, where it has none, training images
            that the few-shot sample leaves over.
        classes: `all` classes, or the first (`base`) or second (`new`) half of the sorted labels, or a half of a half
            (`base.new`). The labels of the images selected count from 0 in that order.
        shots: Images drawn per class, over all classes before `classes` is applied; None takes the whole split.
        sampler: How they are drawn: a name in `sampling.SAMPLERS`, or `file:PATH`.
    """

    dataset: str
    split: Split
    classes: str = "all"
    shots: int | None = None
    sampler: str = "coop"
