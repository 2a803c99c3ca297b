"""Floating-point operations of training steps and scores, counted at four small sizes and computed for others.

What a step does is once + a K + b B + c K B for K classes and B images: so many operations once, for each class, for
each image and for each pair. torch counts them at two numbers of each, on both sides. It counts matrix products and
convolutions, which are not computed for it; solving linear systems is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import Images
from promptbench.method import Method, create_method, show_training_images
from promptbench.sweep.estimate import drawn_images

from .memory import class_names
from .ours import optimizer_of, our_step
from .plain import PLAIN, Plain, plain_step
from .steps import shown_to

CLASSES, IMAGES = (4, 8), (1, 2)  # at which it is counted


@dataclass(frozen=True)
class Work:
    """Operations: once, for each class, for each image, for each pair of both."""

    once: float
    of_class: float
    of_image: float
    of_pair: float

    def at(self, classes: float, images: float) -> float:
        """For so many classes and images."""
        return self.once + self.of_class * classes + self.of_image * images + self.of_pair * classes * images


@dataclass(frozen=True)
class Counts:
    """What a method does, on one side.

    Attributes:
        step: A training step, from pixels or from kept features; None where nothing is trained.
        text: The texts of the classes, once.
        image: The image tower, from pixels to features.
        scores: Scores of images whose features are known, the texts apart where they do not depend on images.
    """

    step: Work | None
    text: Work
    image: Work
    scores: Work


def fitted(count: Callable[[int, int], float]) -> Work:
    """The one that has these counts."""
    (k, more), (b, others) = CLASSES, IMAGES
    low, of_classes, of_images, of_both = (count(*size) for size in ((k, b), (more, b), (k, others), (more, others)))
    pair = (of_both - of_classes - of_images + low) / ((more - k) * (others - b))
    a = (of_classes - low) / (more - k) - pair * b
    c = (of_images - low) / (others - b) - pair * k
    return Work(low - a * k - c * b - pair * k * b, a, c, pair)


class Uncomputed(TorchDispatchMode):
    """Within it, products of matrices and convolutions are not computed: they are zeros of the right shape. What
    decides shapes, such as the lengths of texts, is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in flop_registry:
            return func(*args, **(kwargs or {}))
        shaped = tree_map_only(torch.Tensor, lambda x: torch.empty_like(x, device="meta"), (args, kwargs or {}))
        found = func(*shaped[0], **shaped[1])
        return tree_map_only(torch.Tensor, lambda x: torch.zeros_like(x, device="cpu"), found)


def operations(do: Callable[[], object]) -> float:
    """Of one call, after another one: what is computed once, is."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation, which is not counted
    try:
        with Uncomputed():
            do()
            with FlopCounterMode(display=False) as counter:
                do()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())


def made(label: str, backbone: Backbone, classes: int, **config: object) -> Method:
    """A method that has seen training images, if it looks at any."""
    with Uncomputed():
        method = create_method(label, backbone, class_names(classes), **config)
        if method.prepares:
            show_training_images(method, shown_to(method, classes), seed=4)
    return method


def pixels(backbone: Backbone, images: int) -> torch.Tensor:
    """(B, 3, H, W) of noise."""
    side = backbone.resolution
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(2))


def count_ours(label: str, backbone: Backbone, cached: bool, **config: object) -> Counts:
    """Of our side; `cached`: whether training reads kept features of images."""
    methods = {classes: made(label, backbone, classes, **config) for classes in CLASSES}
    apart = methods[CLASSES[0]].encodes_images_apart

    def step(classes: int, images: int) -> float:
        method = methods[classes].train()
        optimizer = optimizer_of(method.parameters())
        seen = drawn_images(method, images, method.reads_dense) if cached else Images(pixels(backbone, images))
        return operations(lambda: our_step(method, seen, torch.arange(images) % classes, optimizer))

    @torch.no_grad()
    def text(classes: int, images: int) -> float:
        method = methods[classes].eval()

        def do() -> None:
            method.set_classes(method.class_names)
            if apart:
                method.text_features()
            else:
                method(drawn_images(method, 1, method.reads_dense))

        return operations(do)

    @torch.no_grad()
    def image(classes: int, images: int) -> float:
        method = methods[classes].eval()
        encode = backbone.encode_image if method.frozen_image_tower else method.encode_images
        return operations(lambda: encode(Images(pixels(backbone, images), dense=method.reads_dense)))

    @torch.no_grad()
    def scores(classes: int, images: int) -> float:
        method = methods[classes].eval()
        return operations(lambda: method(drawn_images(method, images, method.reads_dense)))

    trains = methods[CLASSES[0]].trains
    scoring = Work(0, 0, 0, 0) if apart else fitted(scores)
    return Counts(fitted(step) if trains else None, fitted(text), fitted(image), scoring)


def count_plain(label: str, backbone: Backbone, **config: object) -> Counts | None:
    """Of the plain path, which reads pixels in training; None where there is none."""
    if label not in PLAIN:
        return None
    sides: dict[int, Plain] = {}
    for classes in CLASSES:
        sides[classes] = PLAIN[label](made(label, backbone, classes, **config))
        with torch.no_grad(), Uncomputed():
            sides[classes].start()

    def step(classes: int, images: int) -> float:
        plain = sides[classes]
        optimizer = optimizer_of(plain.learned.values())
        seen, labels = pixels(backbone, images), torch.arange(images) % classes
        return operations(lambda: plain_step(plain, seen, None, labels, optimizer))

    @torch.no_grad()
    def image(classes: int, images: int) -> float:
        return operations(lambda: sides[classes].features(pixels(backbone, images)))

    @torch.no_grad()
    def scores(classes: int, images: int) -> float:
        plain = sides[classes]
        with Uncomputed():
            features: Any = plain.features(pixels(backbone, images))
        return operations(lambda: plain.logits(features))

    trained = fitted(step) if sides[CLASSES[0]].learned else None
    for plain in sides.values():
        for tensor in plain.learned.values():
            tensor.requires_grad_(False)  # torch's counter waits for gradients of whatever may have some
    return Counts(trained, Work(0, 0, 0, 0), fitted(image), fitted(scores))
