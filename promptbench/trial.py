"""The training of a run in small: a few real steps, or fewer classes and images and a count of operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from promptbench.backbone import Backbone
from promptbench.classnames import ClassNames
from promptbench.dataset import Item
from promptbench.images import ImageFeatures, Images
from promptbench.loading import Batches, EpochOrder, FeatureBatches, training_batches
from promptbench.method import Method, instantiate, show_training_images
from promptbench.planning import Run
from promptbench.recipe import Recipe
from promptbench.selection import SelectedImages
from promptbench.training import fit

EPOCHS = 3  # of a measured training

Clock = Callable[[], float]


class Size(NamedTuple):
    """Classes and images of a step."""

    classes: int
    images: int

    def times(self, other: Size) -> float:
        """How many times the other one it is, at most."""
        return self.classes / other.classes * self.images / other.images

    def doubled(self, most: Size) -> Size:
        """Twice as many of both, as far as there are."""
        return Size(min(most.classes, 2 * self.classes), min(most.images, 2 * self.images))


class Pace(NamedTuple):
    """What a training of some size takes: seconds before its first step, of a step, more of an epoch; bytes kept."""

    start: float
    step: float
    epoch: float
    kept: float = 0.0

    def training(self, epochs: int, steps: int) -> float:
        """Seconds of a whole training."""
        return self.start + epochs * (self.epoch + steps * self.step)


@dataclass(frozen=True)
class Trial:
    """The training of a run in small."""

    backbone: Backbone
    device: str
    clock: Clock
    run: Run
    train: SelectedImages
    recipe: Recipe
    features: bool

    def pace(self, size: Size, steps: int) -> Pace:
        """What a training with steps of that size takes."""
        at: list[float] = []
        clock = self.clock
        began = clock()
        self.fit(size, EPOCHS, steps, lambda *_: at.append(clock()))
        whole = clock() - began
        gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
        between = [gap for number, gap in enumerate(gaps, start=1) if number % steps == 0]
        within = [gap for number, gap in enumerate(gaps, start=1) if number % steps]
        step = median(within) if within else median(between)
        start = max(0.0, whole - sum(gaps) - step)
        return Pace(start, step, max(0.0, median(between) - step))

    def probe(self, size: Size) -> float:
        """Seconds of a step of that size."""
        at: list[float] = []
        self.fit(size, 1, 3, lambda *_: at.append(self.clock()))
        return min(later - earlier for earlier, later in itertools.pairwise(at))

    def scaled(self, step: float, size: Size, full: Size) -> Pace:
        """The pace at full size, from a step of a small one, the operations of both and what they keep."""
        if size.classes < 2:
            return Pace(0.0, step * full.times(size), 0.0)
        k, b = size.classes // 2, max(1, size.images // 2)
        corners = [Size(k, b), Size(2 * k, b), Size(k, 2 * b), Size(2 * k, 2 * b)]
        counted = {corner: self.counted(corner) for corner in dict.fromkeys((*corners, size))}
        operations, kept = ([float(counted[corner][part]) for corner in corners] for part in (0, 1))
        ratio = bilinear(operations, k, b, full) / max(1.0, counted[size][0])
        waiting = bilinear(kept, k, b, full)
        most = self.backbone.memory_budget + bilinear(kept, k, b, Size(size.classes, full.images))
        return Pace(0.0, step * max(1.0, ratio), 0.0, max(0.0, min(waiting, most) - counted[size][1]))

    def counted(self, size: Size) -> tuple[int, int]:
        """Operations of a step, and bytes that its backward pass waits for."""
        with FlopCounterMode(display=False) as counter, saved_bytes() as saved:
            self.fit(size, 1, 1, None)
        return counter.get_total_flops(), sum(saved.values())

    def fit(self, size: Size, epochs: int, steps: int, progress: Any) -> None:
        """Train a method of its own."""
        run, seed = self.run, self.run.spec.train_seed
        names = self.train.class_names.select(range(size.classes))
        method = made(run, self.backbone, names)
        recipe = replace(self.recipe, epochs=epochs, batch=size.images, train_views=0)
        few = Few(self.batches(method, size, steps), steps)
        where = self.device
        fit(method, recipe, few, steps, seed=seed, precision=run.spec.precision, device=where, progress=progress)

    def batches(self, method: Method, size: Size, steps: int) -> Batches:
        """Batches of that size: of the images of the run, or of as many drawn features."""
        count = max(size.images, min(len(self.train.items), steps * size.images))
        own = [item for item in self.train.items if item.label < size.classes]
        items: list[Item] = list(itertools.islice(itertools.cycle(own), count))
        seed = self.run.spec.train_seed
        if self.features:
            drawn = drawn_features(self.backbone, count, method.reads_dense)
            return FeatureBatches(drawn, [item.label for item in items], size.images, EpochOrder(count, seed))
        dataset, augment = self.train.dataset, self.recipe.augment
        return training_batches(method.backbone, dataset, items, batch=size.images, seed=seed, augment=augment)


class Few:
    """The first of some batches."""

    def __init__(self, batches: Batches, most: int) -> None:
        self.batches, self.most = batches, most
        self.sampler = getattr(batches, "sampler", None)

    def __iter__(self) -> Iterator[tuple[Images, Tensor]]:
        return itertools.islice(iter(self.batches), self.most)

    def __len__(self) -> int:
        return self.most


def bilinear(values: Sequence[float], k: int, b: int, at: Size) -> float:
    """f(K, B) = a + b K + c B + d K B at another place, from its values at (k, b), (2k, b), (k, 2b), (2k, 2b)."""
    one, wide, tall, both = values
    x, y = at.classes / k - 1, at.images / b - 1
    return one + (wide - one) * x + (tall - one) * y + (both - wide - tall + one) * x * y


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Within it, bytes by storage of what waits for a backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def made(run: Run, backbone: Backbone, names: ClassNames) -> Method:
    """The method of a run for some classes; where it looks at training images first, it has seen drawn ones."""
    method = instantiate(run.method, run.settings.config, backbone, names, run.spec.train_seed)
    if run.method.prepare is not Method.prepare:
        show_drawn(method, Size(len(names), 2 * len(names)), run.spec.train_seed)
    return method


def show_drawn(method: Method, size: Size, seed: int) -> None:
    """Show a method drawn training images."""
    labels = torch.arange(size.images) % size.classes
    R = method.backbone.resolution
    images = (
        drawn_images(method.backbone, size.images, method.reads_dense)
        if method.frozen_image_tower
        else Images(torch.randn(size.images, 3, R, R, generator=torch.Generator().manual_seed(seed)))
    )
    show_training_images(method, [(images, labels)], seed)


def drawn_images(backbone: Backbone, images: int, dense: bool) -> Images:
    """A batch with features of no images."""
    return Images(features=drawn_features(backbone, images, dense), dense=dense).to(backbone.device)


def drawn_features(backbone: Backbone, images: int, dense: bool) -> ImageFeatures:
    """Features of no images, on the CPU."""
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(images, *shape, generator=draws)

    P, D = backbone.patches, backbone.embed_dim
    if not dense:
        return ImageFeatures(drawn(D))
    return ImageFeatures(drawn(D), drawn(P, D), None, drawn(P, backbone.local_width))
