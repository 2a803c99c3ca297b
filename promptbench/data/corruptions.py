"""Corruptions of test images: fifteen kinds at five severities, drawn after the crop, the same for the same image.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
arXiv:1903.12261. Code by the authors: https://github.com/hendrycks/robustness
The kinds and the numbers of each severity are theirs. These are not the files of ImageNet-C, and figures on them are no
figures on those: images are corrupted here, as a model gets them, and not stored as JPEG in between. Differs besides:

- What is random is drawn from a generator keyed by (kind, severity, image), so it depends on nothing else.
- Lengths, which the authors give in pixels of an image of 224 (they write 244 for `elastic_transform`), are scaled to
  the side of the crop, so that a severity looks alike in a small image. Noise is that of a pixel; `pixelate` keeps a
  share of the image's own pixels, and JPEG has its blocks of 8.
- `frost` lays drawn crystals over the image, where the authors lay photographs of frost.
- `glass_blur` shuffles pixels by sorting jittered positions, whose moves are as long as those of the authors' swaps.
- `motion_blur` and `defocus_blur` spread points of their kernels over the neighbouring pixels; image borders reflect.

Severities 1 and 2 of `elastic_transform` are large smooth distortions, 3 to 5 small rough ones, as with the authors: it
is the only kind whose images do not change more and more.

Images are (R, R, 3), on the scale 0 to 1, float64; what is laid over them is made at the authors' size.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptbench.config import UsageError, unknown

CORRUPTIONS = "corruptions/1"
"""Part of what keeps features of corrupted images apart; counts up where a corruption gives other pixels."""
SEVERITIES = (1, 2, 3, 4, 5)

AUTHORS_SIDE = 224  # pixels
LUMA = (0.299, 0.587, 0.114)

Pixels = NDArray[np.floating[Any]]
Draw = np.random.Generator


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption at a severity; called with a square image, it gives the corrupted one.

    Attributes:
        kind: A name in `KINDS`.
        severity: 1, the mildest, to 5.
    """

    kind: str
    severity: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.severity}"

    @property
    def identity(self) -> str:
        """What decides its pixels, besides the image."""
        import scipy

        return f"{CORRUPTIONS} {self} scipy {scipy.__version__}"

    def __call__(self, image: Image.Image, name: str) -> Image.Image:
        """The image corrupted, in RGB.

        Args:
            image: In RGB, square.
            name: What it is known by in its dataset; with kind and severity it decides all that is drawn.
        """
        apply, levels = KINDS[self.kind]
        level = levels[self.severity - 1]
        key = hashlib.sha256(f"{self}/{name}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(key, "little"))
        return _picture(apply(np.asarray(image) / 255.0, generator, *(level if isinstance(level, tuple) else (level,))))


def corruptions_of(texts: Iterable[str], where: str) -> tuple[Corruption, ...]:
    """Corruptions from words such as `fog:3`; a kind alone stands for all its severities.

    Args:
        where: What begins the sentence of an error, such as the flag.

    Raises:
        UsageError: There is no such kind or severity, or one is named twice.
    """
    found: list[Corruption] = []
    for text in texts:
        kind, colon, severity = text.partition(":")
        if kind not in KINDS:
            raise UsageError(f"{where} {text}: {unknown('corruption', kind, KINDS)}")
        if colon and not re.fullmatch("[1-5]", severity):
            raise UsageError(f"{where} {text}: a severity is 1, 2, 3, 4 or 5; write {kind}:3, for instance.")
        found += [Corruption(kind, one) for one in SEVERITIES if not colon or one == int(severity)]
    twice = next((one for one in found if found.count(one) > 1), None)
    if twice:
        raise UsageError(f"{where}: {twice} is named twice; leave one out.")
    return tuple(found)


def _gaussian_noise(x: Pixels, draw: Draw, deviation: float) -> Pixels:
    return x + draw.normal(scale=deviation, size=x.shape)


def _shot_noise(x: Pixels, draw: Draw, photons: float) -> Pixels:
    return draw.poisson(x * photons) / photons


def _impulse_noise(x: Pixels, draw: Draw, share: float) -> Pixels:
    hit, white = draw.random(x.shape) < share, draw.random(x.shape) < 0.5
    return np.where(hit, white, x)


def _defocus_blur(x: Pixels, draw: Draw, radius: int, soft: float) -> Pixels:
    """A disk for every point, softened by a Gaussian."""
    side = np.arange(-radius, radius + 1)
    rows, columns = np.nonzero(side[:, None] ** 2 + side**2 <= radius**2)
    scale = _scale(x)
    disk = _kernel((rows - radius) * scale, (columns - radius) * scale, np.ones(len(rows)))
    return _blurred(_convolved(x, disk), soft * scale)


def _glass_blur(x: Pixels, draw: Draw, sigma: float, farthest: int, passes: int) -> Pixels:
    """Pixels change places with near ones, between two blurs.

    Uniform jitter of 1.4 d + 0.5 pixels to both sides moves pixels as far as swaps within d do, by the root of the mean
    square, for the five severities.
    """
    scale = _scale(x)
    jitter = (1.4 * farthest + 0.5) * scale
    x = _blurred(x, sigma * scale)
    for _ in range(passes):
        for axis in (0, 1):
            places = np.indices(x.shape[:2])[axis] + draw.uniform(-jitter, jitter, x.shape[:2])
            x = np.take_along_axis(x, np.argsort(places, axis=axis)[..., None], axis=axis)
    return _blurred(x, sigma * scale)


def _motion_blur(x: Pixels, draw: Draw, radius: int, sigma: float) -> Pixels:
    return _convolved(x, _streak(radius, sigma, draw.uniform(-45, 45), _scale(x)))


def _zoom_blur(x: Pixels, draw: Draw, end: float, step: float) -> Pixels:
    """The mean of the image and of crops of it, each smaller than the last."""
    image, side = _picture(x), len(x)
    zooms = np.arange(1, end, step)
    total = x.copy()
    for zoom in zooms:
        margin = side * (1 - 1 / zoom) / 2
        box = (margin, margin, side - margin, side - margin)
        total += np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box)) / 255.0
    return total / (len(zooms) + 1)


def _snow(
    x: Pixels,
    draw: Draw,
    mean: float,
    deviation: float,
    zoom: float,
    least: float,
    radius: int,
    sigma: float,
    kept: float,
) -> Pixels:
    """Flakes that fall in one direction, and the same upside down, over a paler image."""
    count = math.ceil(AUTHORS_SIDE / zoom)
    flakes = _resized(draw.normal(mean, deviation, (count, count)), AUTHORS_SIDE)
    flakes = np.where(flakes < least, 0, flakes).clip(0, 1)
    flakes = _resized(_convolved(flakes, _streak(radius, sigma, draw.uniform(-135, -45))), len(x))[..., None]
    grey = (x @ LUMA)[..., None]
    pale = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def _frost(x: Pixels, draw: Draw, kept: float, laid: float) -> Pixels:
    return kept * x + laid * _resized(_crystals(draw), len(x))[..., None] * FROST


def _fog(x: Pixels, draw: Draw, thickness: float, decay: float) -> Pixels:
    brightest = x.max()
    fog = _resized(_plasma(draw, decay)[:AUTHORS_SIDE, :AUTHORS_SIDE], len(x))[..., None]
    return (x + thickness * fog) * brightest / (brightest + thickness)


def _brightness(x: Pixels, draw: Draw, added: float) -> Pixels:
    """More of V in HSV, hue and saturation kept."""
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + added, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _contrast(x: Pixels, draw: Draw, kept: float) -> Pixels:
    mean = x.mean(axis=(0, 1))
    return (x - mean) * kept + mean


def _elastic_transform(x: Pixels, draw: Draw, alpha: float, sigma: float, pulled: float) -> Pixels:
    """An affine map that pulls three points by so many pixels at most, and a random field under so wide a Gaussian."""
    side, scale = len(x), _scale(x)
    third, middle = side // 3, side / 2
    points = np.array([[1, 1], [1, -1], [-1, -1]]) * third + middle
    moved = points + draw.uniform(-pulled, pulled, points.shape) * scale
    noise = draw.uniform(-1, 1, (AUTHORS_SIDE, AUTHORS_SIDE, 2))
    field = _blurred(noise, sigma) * alpha * scale
    rows, columns = (place + _resized(field[..., axis], side) for axis, place in enumerate(np.indices((side, side))))
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # (3, 2)
    return _sampled(x, np.stack([rows, columns, np.ones_like(rows)], axis=-1) @ back)


def _pixelate(x: Pixels, draw: Draw, kept: float) -> Pixels:
    small = max(1, int(len(x) * kept))
    coarse = _picture(x).resize((small, small), Image.Resampling.BOX)
    return np.asarray(coarse.resize((len(x), len(x)), Image.Resampling.BOX)) / 255.0


def _jpeg_compression(x: Pixels, draw: Draw, quality: int) -> Pixels:
    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255.0


class Kind(NamedTuple):
    """What a kind does to an image, and its number or numbers at each severity."""

    apply: Callable[..., Pixels]
    levels: tuple[Any, ...]


KINDS: Mapping[str, Kind] = {
    "gaussian_noise": Kind(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Kind(_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": Kind(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Kind(_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": Kind(_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": Kind(_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": Kind(_zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": Kind(
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Kind(_frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": Kind(_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": Kind(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Kind(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Kind(
        _elastic_transform,
        (
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
    ),
    "pixelate": Kind(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": Kind(_jpeg_compression, (25, 18, 15, 10, 7)),
}
"""The kinds by name, in the authors' order: noise, blur, weather, digital."""

FROST = (0.86, 0.95, 1.0)  # the colour of crystals, a little blue


def _scale(x: Pixels) -> float:
    """Pixels of this image in one of the authors' size."""
    return len(x) / AUTHORS_SIDE


def _picture(x: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(x.clip(0, 1) * 255).astype(np.uint8))


def _resized(values: Pixels, side: int) -> Pixels:
    """A square field (n, n) at another side, bilinear, averaged where it shrinks."""
    if len(values) == side:
        return values
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).astype(np.float64)


def _blurred(x: Pixels, sigma: float) -> Pixels:
    """A Gaussian blur of the first two axes, borders reflected: a product in the basis of cosines, however wide."""
    from scipy.fft import dctn, idctn

    waves = [np.exp(-0.5 * (sigma * np.pi * np.arange(n) / n) ** 2) for n in x.shape[:2]]
    kept = np.outer(*waves).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    blurred: Pixels = idctn(dctn(x, axes=(0, 1)) * kept, axes=(0, 1))
    return blurred


def _kernel(rows: Pixels, columns: Pixels, weights: Pixels) -> Pixels:
    """Weighted points about the middle of a square kernel (2 h + 1, 2 h + 1), each spread over its four pixels."""
    half = math.ceil(max(abs(rows).max(), abs(columns).max())) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, right = rows - top, columns - left
    for row, of_row in ((top, 1 - below), (top + 1, below)):
        for column, of_column in ((left, 1 - right), (left + 1, right)):
            np.add.at(kernel, (row + half, column + half), weights * of_row * of_column)
    return kernel / kernel.sum()


def _streak(radius: int, sigma: float, degrees: float, scale: float = 1.0) -> Pixels:
    """The kernel of a movement: half a Gaussian in one direction, 2 r + 1 points long."""
    along, angle = np.arange(2 * radius + 1), math.radians(degrees)
    weights = np.exp(-0.5 * (along / sigma) ** 2)
    return _kernel(along * math.sin(angle) * scale, along * math.cos(angle) * scale, weights)


def _convolved(x: Pixels, kernel: Pixels) -> Pixels:
    """The first two axes under a square kernel of odd side, borders reflected."""
    side, half = x.shape[:2], len(kernel) // 2
    padded = np.pad(x, [(half, half)] * 2 + [(0, 0)] * (x.ndim - 2), mode="symmetric")
    size = padded.shape[:2]
    waves = np.fft.rfft2(kernel, size).reshape(size[0], -1, *[1] * (x.ndim - 2))
    whole = np.fft.irfft2(np.fft.rfft2(padded, axes=(0, 1)) * waves, size, axes=(0, 1))
    return whole[2 * half : 2 * half + side[0], 2 * half : 2 * half + side[1]]


def _sampled(x: Pixels, places: Pixels) -> Pixels:
    """The image at other places, rows and columns (R, R, 2), bilinear, borders reflected."""
    from scipy.ndimage import map_coordinates

    where = np.moveaxis(places, -1, 0)
    channels = [map_coordinates(x[..., channel], where, order=1, mode="reflect") for channel in range(x.shape[2])]
    return np.stack(channels, axis=-1)


def _plasma(draw: Draw, decay: float, side: int = 256) -> Pixels:
    """A cloud (side, side) from 0 to 1 by the diamond-square rule on a torus; the roughness falls with `decay`."""
    cloud = np.zeros((side, side))
    step, rough = side, 1.0
    while step > 1:
        half = step // 2
        corners = cloud[::step, ::step]
        middles = corners + np.roll(corners, -1, 0)
        middles = (middles + np.roll(middles, -1, 1)) / 4 + draw.uniform(-rough, rough, corners.shape)
        cloud[half::step, half::step] = middles
        for axis, edges in ((1, cloud[::step, half::step]), (0, cloud[half::step, ::step])):
            mean = (corners + np.roll(corners, -1, axis) + middles + np.roll(middles, 1, 1 - axis)) / 4
            edges[...] = mean + draw.uniform(-rough, rough, corners.shape)
        step, rough = half, rough / decay**2
    cloud -= cloud.min()
    return cloud / cloud.max()


def _crystals(draw: Draw) -> Pixels:
    """Frost on a pane (224, 224), 0 to 1: veins of four sizes and rime between them, thick where a cloud is."""
    side = AUTHORS_SIDE
    cloud = _plasma(draw, 1.6)[:side, :side]
    frost = 0.5 * _blurred(draw.random((side, side)), 0.7)
    for width in (8, 4, 2, 1):
        waves = _blurred(draw.normal(size=(side, side)), width)
        frost += 0.45 * np.exp(-((waves / waves.std() / 0.35) ** 2))
    thick = np.tanh(3 * (cloud - cloud.mean())) / 2 + 0.5
    return (frost * (0.35 + 0.85 * thick)).clip(0, 1)
