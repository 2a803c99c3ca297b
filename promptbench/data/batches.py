"""Batches of images for training and evaluation.

A training image is decoded once. Its random view is drawn from a generator keyed by (seed, image, epoch), so it depends
neither on the order of loading nor on the number of workers. Where a recipe has N views of each image, epoch e sees
view e mod N, the one that would be drawn in that epoch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.data.dataset import Dataset as ImageDataset
from promptbench.data.dataset import Item
from promptbench.data.transforms import SCALE, EvaluationTransform, Scale, TrainingTransform, view_generator

if TYPE_CHECKING:
    from promptbench.data.corruptions import Corruption

SMALL = 64 * 64  # pixels; smaller images decode faster than a worker process passes them on
MAX_WORKERS = 8
MEMORY = 4 * 2**30  # bytes of decoded training images, over all workers: 16 shots of all but ImageNet


class Batches(Protocol):
    """Batches of images with their labels, of a known number; what training and evaluation iterate over."""

    def __iter__(self) -> Iterator[tuple[Images, Tensor]]: ...

    def __len__(self) -> int: ...


class Views(Dataset[Any]):
    """Images as tensors, by (index, epoch): under the evaluation transform, or a random view of that epoch.

    Args:
        keep: Bytes of decoded images to keep in memory, for training images, which are seen every epoch.
        augment_seed: Draws the random views; None for the evaluation transform.
        views: Of each image; 0 for a new one every epoch.
        scale: Of the random crops.
        corruption: Of the crop under the evaluation transform.
        known: (N, D), or (V * N, D) view by view: features that come with the images; None for pixels alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        dataset: ImageDataset,
        items: Sequence[Item],
        keep: int,
        augment_seed: int | None,
        views: int = 0,
        scale: Scale = SCALE,
        corruption: Corruption | None = None,
        known: Tensor | None = None,
    ) -> None:
        statistics = (backbone.resolution, backbone.mean, backbone.std)
        self.evaluation = EvaluationTransform(*statistics)
        self.training = TrainingTransform(*statistics, scale=scale)
        self.dataset = dataset
        self.items = items
        self.keep = keep
        self.augment_seed = augment_seed
        self.views = views
        self.corruption = corruption
        self.known = known
        self.decoded: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int] | tuple[Tensor, int, Tensor]:
        position, epoch = index if isinstance(index, tuple) else (index, 0)
        view = epoch % self.views if self.views else epoch
        seen, label = self.seen(position, view), self.items[position].label
        if self.known is None:
            return seen, label
        return seen, label, self.known[(view * len(self.items) if self.views else 0) + position]

    def seen(self, position: int, view: int) -> Tensor:
        """Pixels (3, H, W) of an image, or of a random view of it."""
        item = self.items[position]
        image = self.decoded.get(position) or self.dataset.open(item)
        size = 3 * image.width * image.height
        if position not in self.decoded and size <= self.keep:
            self.decoded[position] = image
            self.keep -= size
        if self.augment_seed is None:
            crop = self.evaluation.crop(image)
            return self.evaluation.normalise(self.corruption(crop, item.image) if self.corruption else crop)
        return self.training(image, view_generator(self.augment_seed, item.image, view))


class EpochOrder(Sampler[tuple[int, int]]):
    """A fresh permutation of the training images each epoch, from (seed, epoch) alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.begin_at(0)

    def begin_at(self, epoch: int) -> None:
        """The epoch whose order comes first, where a training that was killed goes on."""
        self.first = self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it with the number of the epoch whose order comes next, counted from the first one here."""
        self.epoch = self.first + epoch

    def permutation(self) -> list[int]:
        """The order of this epoch."""
        order: list[int] = np.random.default_rng([self.seed, self.epoch]).permutation(self.size).tolist()
        return order

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter((index, self.epoch) for index in self.permutation())

    def __len__(self) -> int:
        return self.size


class ImageLoader(DataLoader[Any]):
    """A DataLoader whose batches are (`Images`, labels (B,)).

    Attributes:
        dense: Whether the batches ask for dense features.
    """

    dense = False

    def __iter__(self) -> Iterator[tuple[Images, Tensor]]:  # type: ignore[override]
        for pixels, labels, *known in super().__iter__():
            features = ImageFeatures(known[0]) if known else None
            yield Images(pixels, features, dense=self.dense), labels


class FeatureBatches:
    """Batches of cached features of N images, in a fresh order each epoch if there is a sampler.

    Args:
        features: Of N images or, with a sampler, of V views of each, view by view: V * N.
        labels: (N,)
        rows: Of `features`, one view each, those that are the N images; None: all.
        finish: What is still to be done with the features of a batch.
        drop_last: Whether an incomplete last batch is left out, with a sampler and unless it is the only one.
    """

    def __init__(
        self,
        features: ImageFeatures,
        labels: Sequence[int],
        batch: int,
        sampler: EpochOrder | None = None,
        rows: Sequence[int] | None = None,
        finish: Callable[[ImageFeatures], ImageFeatures] | None = None,
        drop_last: bool = True,
    ) -> None:
        self.features = features
        self.labels = torch.tensor(labels)
        self.batch = batch
        self.sampler = sampler
        self.rows = torch.arange(len(features.cls)) if rows is None else torch.tensor(rows)
        self.finish = finish
        self.drop_last = drop_last and sampler is not None

    def __iter__(self) -> Iterator[tuple[Images, Tensor]]:
        order = torch.arange(len(self.labels)) if self.sampler is None else torch.tensor(self.sampler.permutation())
        size = len(self) * self.batch  # at most
        views = len(self.rows) // len(self.labels)
        first = 0 if self.sampler is None else self.sampler.epoch % views * len(self.labels)  # of this epoch's view
        for index in order[:size].split(self.batch):
            at = self.rows[first + index]
            features = self.features.map(lambda tensor, at=at: tensor[at])  # type: ignore[misc]
            features = self.finish(features) if self.finish else features
            yield Images(features=features, dense=features.local is not None), self.labels[index]

    def __len__(self) -> int:
        return count_batches(len(self.labels if self.sampler is None else self.sampler), self.batch, self.drop_last)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU copies it in its turn, from memory that it reads by itself, and nobody waits."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def count_batches(images: int, batch: int, drop_last: bool) -> int:
    """Batches of a pass over so many images; with `drop_last` an incomplete one counts only if it is all there is."""
    whole, rest = divmod(images, batch)
    return whole if (drop_last and whole > 0) or not rest else whole + 1


def pixel_batches(
    backbone: Backbone,
    dataset: ImageDataset,
    items: Sequence[Item],
    batch: int,
    dense: bool = False,
    corruption: Corruption | None = None,
    known: Tensor | None = None,
) -> ImageLoader:
    """The images under the evaluation transform, or corrupted, in order; `dense` asks for dense features of them, and
    those that are `known` (N, D) come with them."""
    views = Views(backbone, dataset, items, keep=0, augment_seed=None, corruption=corruption, known=known)
    loader = ImageLoader(
        views, batch_size=batch, num_workers=workers(backbone, dataset, views), generator=torch.Generator()
    )
    loader.dense = dense
    return loader


def view_batches(
    backbone: Backbone,
    dataset: ImageDataset,
    items: Sequence[Item],
    *,
    batch: int,
    seed: int,
    views: int,
    scale: Scale = SCALE,
) -> ImageLoader:
    """Random views of the images: the first of each, in order, then the second; no batch has two views of an image."""
    count = workers(backbone, dataset, items)
    made = Views(backbone, dataset, items, MEMORY // max(1, count), seed, scale=scale)
    order: list[list[tuple[int, int]]] = []
    for view in range(views):
        indices = [(index, view) for index in range(len(items))]
        order += [indices[start : start + batch] for start in range(0, len(items), batch)]
    return ImageLoader(made, batch_sampler=order, num_workers=count, generator=torch.Generator())


def training_batches(
    backbone: Backbone,
    dataset: ImageDataset,
    items: Sequence[Item],
    *,
    batch: int,
    seed: int,
    augment: bool,
    views: int = 0,
    scale: Scale = SCALE,
    drop_last: bool = True,
    known: Tensor | None = None,
) -> ImageLoader:
    """Shuffled training batches.

    Args:
        views: Of each image, over all epochs; 0 for a new one every epoch.
        scale: Of the random crops.
        drop_last: Whether an incomplete last batch is left out, unless it is the only one, as in Dassl.
        known: Features that come with the images, as in `Views`.
    """
    count = workers(backbone, dataset, items)
    made = Views(
        backbone, dataset, items, MEMORY // max(1, count), seed if augment else None, views, scale, known=known
    )
    return ImageLoader(
        made,
        batch_size=batch,
        sampler=EpochOrder(len(items), seed),
        drop_last=drop_last and len(items) >= batch,
        num_workers=count,
        persistent_workers=count > 0,
        generator=torch.Generator(),  # worker seeds are not drawn from the stream that a method's loss draws from
    )


def workers(backbone: Backbone, dataset: ImageDataset, images: Sized) -> int:
    """Loader processes: none for images that are in memory, small or few, else the cores that are left."""
    if dataset.in_memory or backbone.resolution**2 <= SMALL or len(images) < MAX_WORKERS * 4:
        return 0
    left = len(os.sched_getaffinity(0)) - 1 if hasattr(os, "sched_getaffinity") else 1
    return min(MAX_WORKERS, left)
