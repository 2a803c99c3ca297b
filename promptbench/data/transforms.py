"""From a PIL image to the tensor that CLIP takes: for evaluation as every peer does it, for training with its own
randomness.

Evaluation: shorter side to R, bicubic with antialiasing on the PIL image, centre crop R, CLIP's mean and standard
deviation (the test transform of Dassl.pytorch and of openai/CLIP). Training: a random crop of 8 to 100 % of the area
with an aspect ratio of 3/4 to 4/3, resized to R, mirrored with probability 1/2 (the training transform of CoOp). What
is random is drawn from a generator that the caller keys by (seed, image, epoch), so a view does not depend on loading
order or on workers.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

EVALUATION_TRANSFORM = "resize-bicubic-pil+center-crop/1"
"""Recorded in results; changes when the pixels of `EvaluationTransform` do."""
SCALE = (0.08, 1.0)
"""Smallest and largest share of an image's area that a random crop takes, unless a recipe says otherwise."""
RATIO = (3 / 4, 4 / 3)
_TRIES = 10

Statistics = tuple[float, float, float]
Scale = tuple[float, float]


def training_transform(scale: Scale = SCALE) -> str:
    """What results record of `TrainingTransform`; changes when its pixels or its draws do."""
    smallest, largest = scale
    return f"random-resized-crop-{smallest:g}-{largest:g}-bicubic-pil+flip/1"


class Crop(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class EvaluationTransform:
    """The transform of every image that is scored: resize, centre crop, normalise, the same each time.

    Attributes:
        resolution: R, the input side of the image tower in pixels.
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.
    """

    resolution: int
    mean: Statistics
    std: Statistics

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An RGB image of any size as float32 (3, R, R)."""
        return self.normalise(self.crop(image))

    def crop(self, image: Image.Image) -> Image.Image:
        """The part of an RGB image that is scored, (R, R)."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        resized = F.resize(image, [self.resolution], interpolation=InterpolationMode.BICUBIC, antialias=True)
        cropped: Image.Image = F.center_crop(resized, [self.resolution])
        return cropped

    def normalise(self, crop: Image.Image) -> torch.Tensor:
        """What `crop` gave, or what became of it, as float32 (3, R, R)."""
        return _normalise(crop, self.mean, self.std)


@dataclass(frozen=True)
class TrainingTransform:
    """The transform of a training image: random resized crop, flip, normalise; attributes as in evaluation.

    Attributes:
        scale: Smallest and largest share of the image's area.
    """

    resolution: int
    mean: Statistics
    std: Statistics
    scale: Scale = SCALE

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> torch.Tensor:
        """A random view of an RGB image of any size as float32 (3, R, R)."""
        from PIL import Image as pil

        crop = random_crop(image.width, image.height, generator=generator, scale=self.scale)
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        view = image.crop(box).resize((self.resolution, self.resolution), pil.Resampling.BICUBIC)
        if generator.random() < 0.5:
            view = view.transpose(pil.Transpose.FLIP_LEFT_RIGHT)
        return _normalise(view, self.mean, self.std)


def view_generator(seed: int, image_key: str, epoch: int) -> np.random.Generator:
    """The generator of one view: the same for the same seed, image and epoch, independent for any other."""
    import numpy as np  # as late as an image is, since recipes name this module

    key = hashlib.sha256(f"{seed}/{epoch}/{image_key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key, "little"))


def random_crop(width: int, height: int, generator: np.random.Generator, scale: Scale = SCALE) -> Crop:
    """A crop as torchvision's RandomResizedCrop draws it.

    Area: uniform in `scale` of the image. Aspect ratio: log-uniform in `RATIO`. Ten tries; if none fits, the largest
    centred crop whose ratio lies within `RATIO`.
    """
    lowest, highest = (math.log(ratio) for ratio in RATIO)
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(lowest, highest))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = generator.integers((height - h, width - w), endpoint=True)
            return Crop(int(top), int(left), h, w)
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def _normalise(image: Image.Image, mean: Statistics, std: Statistics) -> torch.Tensor:
    from torchvision.transforms import functional as F

    return F.normalize(F.to_tensor(image), mean=list(mean), std=list(std), inplace=True)
