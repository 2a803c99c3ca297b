"""From a protocol's words to images: the few-shot sample, the base or new half, their labels and names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from promptbench import sampling
from promptbench.classnames import ClassNames
from promptbench.config import UsageError
from promptbench.dataset import Dataset, Item
from promptbench.protocol import Selection


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
    pool = dataset.items(selection.split)
    if selection.shots is not None:
        pool, _ = sampling.coop_sample(pool, [], selection.shots, seed)
    labels = class_labels(dataset, selection)
    wanted = set(labels)
    chosen = [index for index, item in enumerate(pool) if item.label in wanted]
    if not chosen:
        raise UsageError(
            f"The dataset '{dataset.name}' has no {selection.split} images of its {selection.classes} classes."
        )
    items = sampling.select(pool, labels)
    return SelectedImages(dataset, pool, chosen, items, dataset.class_names.select(labels))


def class_labels(dataset: Dataset, selection: Selection) -> list[int]:
    """The dataset's labels that the selection's classes stand for."""
    everything = list(range(len(dataset.class_names)))
    if selection.classes == "all":
        return everything
    base, new = sampling.split_base_new(everything)
    return base if selection.classes == "base" else new
