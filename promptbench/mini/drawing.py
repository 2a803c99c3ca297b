"""How the images of a set are drawn from their labels: functions (labels, generator) -> images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from promptbench.mini.render import SIDE, render
from promptbench.mini.scene import CENTRE, SIZES, STYLES, sample_scene
from promptbench.mini.shapes import EXTENT, SHAPES, TILE
from promptbench.mini.styles import blur

Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(labels (n,), generator) -> images (n, SIDE, SIDE, 3) uint8."""

_USUAL: dict[str, Any] = {
    "count": [1],
    "position": [CENTRE],
    "size": [SIZES.index("medium"), SIZES.index("large")],
    "style": [STYLES.index("photo")],
    "full": False,
}
_RENDER_ARGUMENTS = ("tiles", "tilt", "occluders", "noise")
BLOBS = 12
"""Different blobs in the set of blobs."""


def drawn(by_class: Mapping[str, Sequence[int]], **fixed: Any) -> Draw:
    """A set whose classes differ in some attributes of a scene.

    Args:
        by_class: Attribute to its number for every class.
        fixed: Attributes to the numbers they may have in all classes, or arguments of `render`. One centred
            medium-sized or large object in photo style, if nothing else is said.
    """
    options = {name: value for name, value in fixed.items() if name in _RENDER_ARGUMENTS}
    attributes = {**_USUAL, **{name: value for name, value in fixed.items() if name not in _RENDER_ARGUMENTS}}

    def draw(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        exact = {name: np.asarray(numbers)[labels] for name, numbers in by_class.items()}
        return render(sample_scene(generator, len(labels), **{**attributes, **exact}), generator, **options)

    return draw


def blob_tiles(generator: np.random.Generator, n: int) -> np.ndarray:
    """Tiles (n, TILE, TILE) of random blobs: circles with a wavy radius, which occur in no pre-training image."""
    axis = ((np.arange(TILE) + 0.5) / TILE * 2 - 1) * EXTENT
    x, y = np.meshgrid(axis, axis)
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    tiles = []
    for _ in range(n):
        edge = 0.55 + sum(
            generator.normal(0, 0.13) * np.cos(k * angle + generator.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5, 7)
        )
        tiles.append(0.7 * (radius - edge))  # the slope of a wavy edge makes radial distances too long
    return np.array(tiles, np.float32)


def draw_blobs(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Photos of random blobs."""
    tiles = blob_tiles(generator, BLOBS)
    first = len(SHAPES) + 10  # the digits come between
    return drawn({}, shape=range(first, first + BLOBS), tiles=tiles)(labels, generator)


def draw_pixel_noise(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every channel of every pixel uniform."""
    return generator.integers(0, 256, (len(labels), SIDE, SIDE, 3)).astype(np.uint8)


def draw_smooth_noise(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Coloured clouds: blurred uniform noise, brought to a standard deviation of 0.22 of full scale."""
    noise = blur(generator.random((len(labels), SIDE, SIDE, 3), dtype=np.float32), times=8)
    noise = 0.5 + 0.22 * (noise - 0.5) / noise.std(axis=(1, 2, 3), keepdims=True)
    return (np.clip(noise, 0, 1) * 255 + 0.5).astype(np.uint8)
