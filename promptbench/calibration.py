"""How long a method takes on this machine, told from a few of its own steps.

What fits into a moment is measured as it is: the real training loop, the real images, a few epochs of a few steps.
What does not is run with fewer classes K and images B, and scaled by operations: those of a step are, to rounding,

    f(K, B) = a + b K + c B + d K B

which four small sizes determine, counted by torch.utils.flop_counter; so are the bytes that wait for the backward pass.
Nothing learned here is kept: each measurement has a method of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from promptbench.backbone import Backbone
from promptbench.evaluation import EVALUATION_BATCH, FEATURE_BATCH
from promptbench.loading import pixel_batches
from promptbench.method import Method, instantiate
from promptbench.planning import Run
from promptbench.selection import SelectedImages
from promptbench.trial import Clock, Pace, Size, Trial, drawn_images, made, show_drawn

MOMENT = 0.4  # seconds that one measured step may take
STEPS = 4  # of an epoch of a measured training
CLASSES, IMAGES = 4, 2  # where it begins
MANY = 20  # classes at which a method looks at drawn training images, so many of each


class Speed(NamedTuple):
    """What an evaluation takes: seconds of one class's text, and of one image for so many classes."""

    text: float
    image: float
    classes: int


@dataclass(frozen=True)
class Calibration:
    """Measures on one backbone.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        clock: Seconds; the time of the process instead of the wall's makes a busy machine count less.
    """

    backbone: Backbone
    device: str = "cpu"
    clock: Clock = time.perf_counter

    def training(self, run: Run, train: SelectedImages, features: bool) -> Pace:
        """What the training of a run takes.

        Args:
            features: Whether it reads kept features instead of images.
        """
        recipe = run.settings.recipe
        assert recipe is not None
        full = Size(len(train.class_names), min(recipe.batch, len(train.items)))
        steps = min(STEPS, max(1, len(train.items) // recipe.batch))
        trial = Trial(self.backbone, self.device, self.clock, run, train, recipe, features)
        size = first(full)
        while size != full:
            step = trial.probe(size)
            if step > MOMENT / 4:
                return trial.scaled(step, size, full)
            size = full if step * full.times(size) < MOMENT else size.doubled(full)
        return trial.pace(full, steps)

    @torch.no_grad()
    def scoring(self, run: Run, chosen: SelectedImages, features: bool, dense: bool) -> Speed:
        """What it takes to score images of an evaluation."""
        names = chosen.class_names
        images = min(len(chosen.items), FEATURE_BATCH if features else EVALUATION_BATCH)
        full = Size(len(names), images)
        size = first(full)
        while True:
            speed = self._scored(run, chosen, size, features, dense)
            if size == full or speed.text * size.classes + speed.image * size.images > MOMENT / 4:
                return speed
            size = size.doubled(full)

    def _scored(self, run: Run, chosen: SelectedImages, size: Size, features: bool, dense: bool) -> Speed:
        names = chosen.class_names.select(range(size.classes))
        method = made(run, self.backbone, names)
        own = type(method).forward is Method.forward
        taken = []
        for _ in range(3):  # the first one warms up
            method.set_classes(names)
            began = self.clock()
            if own:
                method.text_features()
            elif features:
                method(drawn_images(self.backbone, 1, dense))
            text = self._since(began)
            began = self.clock()
            if features:
                method(drawn_images(self.backbone, size.images, dense))
            else:
                for images, _ in pixel_batches(self.backbone, chosen.dataset, chosen.items[: size.images], size.images):
                    (method.encode_images if own else method)(images.to(self.backbone.device))
            taken.append((text, self._since(began)))
        text, images = (min(seconds) for seconds in zip(*taken[1:], strict=True))
        return Speed(text / size.classes, images / size.images, size.classes)

    def preparing(self, run: Run, train: SelectedImages) -> float:
        """Seconds of a method's own look at its training images, told from drawn ones; not of encoding them."""
        full = Size(len(train.class_names), len(train.items))
        size = Size(min(full.classes, MANY), min(full.images, MANY * MANY))
        names = train.class_names.select(range(size.classes))
        method = instantiate(run.method, run.settings.config, self.backbone, names, run.spec.train_seed)
        began = self.clock()
        show_drawn(method, size, run.spec.train_seed)
        return self._since(began) * full.times(size)

    @torch.no_grad()
    def encoding(self, chosen: SelectedImages, dense: bool) -> float:
        """Seconds that the frozen tower takes for one image, its decoding included."""
        images, seconds = 1, 0.0  # the first one warms up
        while images < min(len(chosen.items), EVALUATION_BATCH) and (images == 1 or seconds < MOMENT / 4):
            images = min(4 * images, len(chosen.items), EVALUATION_BATCH)
            for _ in range(1 + (images <= 4)):
                began = self.clock()
                for batch, _ in pixel_batches(self.backbone, chosen.dataset, chosen.items[:images], images):
                    self.backbone.encode_image(batch.to(self.backbone.device), local=dense)
                seconds = self._since(began)
        return seconds / images

    def _since(self, began: float) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return self.clock() - began


def first(full: Size) -> Size:
    """The smallest size that is tried."""
    return Size(min(full.classes, CLASSES), min(full.images, IMAGES))
