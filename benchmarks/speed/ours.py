"""The path of promptbench itself, through the parts that a run goes through."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptbench.clip.image_tower import Images
from promptbench.data.class_names import ClassNames
from promptbench.data.dataset import open_dataset
from promptbench.data.selection import SelectedImages, Selection
from promptbench.method import Method
from promptbench.protocol import Outcome
from promptbench.runs.evaluate import Reader
from promptbench.training.fit import loss_of

SELECTION = Selection(dataset="folder", split="test")


def our_step(method: Method, images: Images, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One training step, as `training.fit` makes it."""
    _, loss = loss_of(method, images, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def our_evaluation(method: Method, names: ClassNames, chosen: SelectedImages) -> tuple[float, Outcome]:
    """Seconds, and what the method says of all images, as `evaluate.evaluate` asks it."""
    began = time.perf_counter()
    method.set_classes(names)
    outcome = Reader(method).outcome(chosen, SELECTION, [0] * len(chosen.items), {})
    return time.perf_counter() - began, outcome


def image_files(folder: Path, images: int, resolution: int) -> SelectedImages:
    """Test images as JPEG files of random blobs, 2.2 by 1.65 times the resolution of the image tower."""
    generator = np.random.default_rng(7)
    size = (round(2.2 * resolution), round(1.65 * resolution))
    for split, count in (("train", 1), ("test", images)):
        (folder / split / "thing").mkdir(parents=True)
        for i in range(count):
            blobs = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            blobs.resize(size, Image.Resampling.BICUBIC).save(folder / split / "thing" / f"{i:05}.jpg", quality=90)
    dataset = open_dataset("folder", {"root": str(folder)})
    items = dataset.items("test")
    return SelectedImages(dataset, items, list(range(len(items))), items, dataset.class_names)


def class_names(count: int) -> ClassNames:
    """The first names of ImageNet's classes, as open_clip lists them."""
    import open_clip

    return ClassNames(open_clip.IMAGENET_CLASSNAMES[:count])


def move(parameters: Sequence[torch.nn.Parameter], seed: int) -> None:
    """Learned tensors as if training had moved them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    """SGD as the recipes have it."""
    return torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)
