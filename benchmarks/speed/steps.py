"""Training steps of both sides on the same images, checked against each other and timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.method import Method, create_method, show_training_images

from .limit import CACHED, KNOWN, gflop
from .operations import shares
from .ours import class_names, move, optimizer_of, our_step
from .plain import PLAIN, Plain, plain_step
from .timing import Turns

# Tolerances for independent float32 code on one checkpoint, as for the reference numbers in `tests/golden`.
LOGITS = 1e-4
GRADIENTS = 1e-4  # of a tensor's largest entry
TIMED_WITH = {"promptsrc": {"teacher": "dataset"}}
"""What changes no step, and spares 60 sentences a class, which are read once before training."""
WITHOUT_DRAWS = {"clip_lora": {"dropout": 0.0}}  # to be compared: masks have other shapes on both sides
CHECKED_BATCH = 4  # the most images that both paths are compared on
SHOTS = 16  # images of a class that a method is shown before training


class Pair:
    """A method and its plain path with the same learned tensors, and images for both.

    Attributes:
        pixels: (B, 3, R, R) of the largest batch asked for.
        features: (B, D), as if the image tower had said them, for steps on cached features.
    """

    def __init__(self, label: str, backbone: Backbone, classes: int, batch: int, **config: object) -> None:
        self.label = label
        self.method: Method = create_method(label, backbone, class_names(classes), **config)
        show_training_images(self.method, shown_to(self.method, classes), seed=4)
        self.parameters = [p for p in self.method.parameters() if p.requires_grad]
        move(self.parameters, seed=1)
        self.method.train()
        self.plain: Plain | None = PLAIN[label](self.method) if label in PLAIN else None
        generator = torch.Generator().manual_seed(2)
        device, size = backbone.device, backbone.resolution
        self.pixels = torch.randn(batch, 3, size, size, generator=generator).to(device)
        self.labels = (torch.arange(batch) % classes).to(device)
        self.features = torch.randn(batch, backbone.embed_dim, generator=generator).to(device)

    @cached_property
    def started(self) -> Plain:
        """The plain path, once it has computed what it computes once."""
        assert self.plain is not None
        with torch.no_grad():
            self.plain.start()
        return self.plain

    def images(self, batch: int, cached: bool, known: bool = False) -> Images:
        """The first images as the method gets them: pixels, what the image tower said, or if that is `known` both."""
        features = ImageFeatures(self.features[:batch]) if cached or known else None
        return Images(None if cached else self.pixels[:batch], features)

    def plain_piece(self, batch: int, cached: bool) -> Callable[[], Tensor]:
        """A plain step on the first images."""
        plain, labels = self.started, self.labels[:batch]
        optimizer = optimizer_of(plain.learned.values())
        pixels = None if cached else self.pixels[:batch]
        return lambda: plain_step(plain, pixels, self.features[:batch], labels, optimizer)

    def our_piece(self, batch: int, cached: bool, known: bool = False) -> Callable[[], None]:
        """Our step on the first images, as `images` gives them."""
        optimizer, labels = optimizer_of(self.parameters), self.labels[:batch]
        images = self.images(batch, cached, known)
        return lambda: our_step(self.method, images, labels, optimizer)

    def piece(self, name: str) -> Callable[[], Any]:
        """The step that a name such as `plain-images-32` or `ours-cached-32` stands for."""
        side, source, batch = name.split("-")
        if side == "plain":
            return self.plain_piece(int(batch), source == CACHED)
        return self.our_piece(int(batch), source == CACHED, source == KNOWN)


def shown_to(method: Method, classes: int) -> list[tuple[Images, Tensor]]:
    """As many views as a method asks for, all the same, of some images of each class, as features of a frozen tower."""
    generator, labels = torch.Generator().manual_seed(5), torch.arange(SHOTS * classes) % classes
    features = ImageFeatures(torch.randn(len(labels), method.backbone.embed_dim, generator=generator))
    return [(Images(features=features), labels)] * max(1, method.shown_views)


def check_equal(label: str, backbone: Backbone, classes: int, batch: int) -> dict[str, float]:
    """The largest differences between the two paths on one batch: logits, and gradients over their largest entry.

    Raises:
        AssertionError: They are not equal to rounding.
    """
    pair = Pair(label, backbone, classes, batch, **WITHOUT_DRAWS.get(label, {}))
    with torch.no_grad():
        ours = pair.method.eval()(pair.images(batch, cached=False)).logits
        plain = pair.started.logits(pair.started.features(pair.pixels))
    torch.manual_seed(3)  # a loss may draw at random
    pair.plain_piece(batch, cached=False)()
    found = {"logits": float((ours - plain).abs().max()), "gradients": 0.0}
    torch.manual_seed(3)
    pair.our_piece(batch, cached=False)()
    for name, parameter in pair.method.named_parameters():
        expected, gradient = pair.started.learned[name].grad, parameter.grad
        assert expected is not None and gradient is not None, f"{label}: {name} has no gradient"
        largest = float(expected.abs().max())
        if largest:
            found["gradients"] = max(found["gradients"], float((gradient - expected).abs().max()) / largest)
    assert found["logits"] <= LOGITS, f"{label}: logits differ by {found['logits']}"
    assert found["gradients"] <= GRADIENTS, f"{label}: gradients differ by {found['gradients']} of the largest"
    return found


def time_group(
    label: str, backbone: Backbone, classes: int, names: list[str], turns: Turns, checked: int, explained: bool = False
) -> dict[str, Any]:
    """The named steps of one method, in turns.

    Args:
        label: The method.
        backbone: For both paths.
        classes: How many are scored.
        names: As `Pair.piece` reads them.
        turns: How they are taken.
        checked: With how many classes both paths are compared before; 0: they are not.
        explained: Whether each of our steps is called once more for what it spends its time on.
    """
    group: dict[str, Any] = {"method": label, "classes": classes}
    batches = {name: int(name.split("-")[2]) for name in names}
    plain = [batch for name, batch in batches.items() if name.startswith("plain")]
    if plain and checked:
        group["differences"] = check_equal(label, backbone, checked, min(*plain, CHECKED_BATCH))
    pair = Pair(label, backbone, classes, max(batches.values()), **TIMED_WITH.get(label, {}))
    steps = {name: pair.piece(name) for name in names}
    group |= turns.take(steps)
    for name, batch in batches.items():
        if name.startswith("ours"):
            piece = group["pieces"][name]
            piece["gflop"] = gflop(label, pair.method, batch, name.split("-")[1])
            if explained:
                piece["operations"] = shares(steps[name])
    return group
