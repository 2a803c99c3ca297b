"""Ways of drawing: every style turns the layers of a picture into RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from promptbench.mini.scene import PALETTE


@dataclass(frozen=True)
class Layers:
    """What n pictures of R x R pixels are put together from, float32; colours and shares in [0, 1].

    Attributes:
        ground: The ground (n, R, R, 3).
        paint: The objects' surface, as if it filled the picture (n, R, R, 3).
        tint: The objects' colour (n, 3).
        distance: Signed distance to the nearest outline in pixels, negative inside (n, R, R).
        pattern: Share of the accent colour (n, R, R).
        grain: Uniform noise (n, R, R).
        height: Coordinate along the direction of the light in pixels (n, R, R).
    """

    ground: np.ndarray
    paint: np.ndarray
    tint: np.ndarray
    distance: np.ndarray
    pattern: np.ndarray
    grain: np.ndarray
    height: np.ndarray

    def take(self, index: np.ndarray) -> Layers:
        """The pictures with these numbers."""
        return Layers(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def cover(self, softness: float = 1.0) -> np.ndarray:
        """Share of each pixel inside an object (n, R, R, 1); the edge is `softness` pixels wide."""
        return np.clip(0.5 - self.distance / softness, 0, 1)[..., None]

    def outline(self, width: float) -> np.ndarray:
        """Share of each pixel on a line just inside the outline (n, R, R, 1)."""
        return np.clip(width + 0.5 - np.abs(self.distance + width / 2), 0, 1)[..., None]


Style = Callable[[Layers, np.random.Generator], np.ndarray]


def blur(image: np.ndarray, times: int) -> np.ndarray:
    """Images (n, R, R, 3) smoothed `times` times with the 1-2-1 filter in both directions."""
    for _ in range(times):
        wide = np.pad(image, ((0, 0), (1, 1), (0, 0), (0, 0)), "edge")
        image = (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 4
        wide = np.pad(image, ((0, 0), (0, 0), (1, 1), (0, 0)), "edge")
        image = (wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]) / 4
    return image


def add_clutter(
    images: np.ndarray, generator: np.random.Generator, *, most: int, opacity: float, radius: tuple[float, float]
) -> None:
    """Draw 3 to `most` random discs, bars and strokes over every image (n, R, R, 3), in place; radii in pixels."""
    side = images.shape[1]
    for image in images:
        for _ in range(generator.integers(3, most + 1)):
            x, y = generator.uniform(0, side, 2)
            r = generator.uniform(*radius)
            left, top = max(0, int(x - r - 1)), max(0, int(y - r - 1))
            patch = image[top : int(y + r + 2), left : int(x + r + 2)]
            dy, dx = np.ogrid[: patch.shape[0], : patch.shape[1]]
            dx, dy = dx + (left + 0.5 - x), dy + (top + 0.5 - y)
            slope = generator.uniform(0.3, 1.3)
            distance = (
                np.hypot(dx, dy) - r,
                np.maximum(np.abs(dx), 1.5 * np.abs(dy)) - r,
                np.abs(dx + slope * dy) - 1.1,
            )[generator.integers(3)]
            cover = (opacity * np.clip(0.5 - distance, 0, 1))[..., None].astype(np.float32)
            patch[:] = patch * (1 - cover) + PALETTE[generator.integers(len(PALETTE))] * cover


def _photo(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    """Lit from the top left, a shadow at the foot, film grain, and a dark contour that sets the object off."""
    light = 1 - 0.28 * np.clip(layers.height / layers.height.shape[1], -0.6, 0.9)
    shadow = 0.25 * np.clip(1.5 - np.abs(layers.distance - 1.5), 0, 1.5) / 1.5
    cover = layers.cover()
    image = layers.ground * (1 - shadow[..., None]) * (1 - cover) + layers.paint * light[..., None] * cover
    image = image + 0.035 * generator.standard_normal(image.shape, dtype=np.float32)
    return image * (1 - 0.6 * np.clip(1.4 - np.abs(layers.distance - 0.2), 0, 1)[..., None])


def _sketch(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    paper = np.clip(0.95 + 0.03 * (layers.grain - 0.5), 0, 1)[..., None]
    ink = np.maximum(layers.outline(0.9), 0.55 * layers.pattern[..., None] * layers.cover())
    return paper * (1 - ink) + 0.55 * layers.tint[:, None, None] * ink


def _chalk(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    board = np.array([0.13, 0.22, 0.18], np.float32) + 0.04 * (layers.grain[..., None] - 0.5)
    ink = np.maximum(layers.outline(1.3), 0.5 * layers.pattern[..., None] * layers.cover())
    ink = ink * (layers.grain > 0.25)[..., None]
    return board * (1 - ink) + (0.6 * layers.tint + 0.4)[:, None, None] * ink


def _neon(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    glow = np.exp(-np.abs(layers.distance) / 2.2)[..., None]
    tube = np.clip(1.2 - np.abs(layers.distance), 0, 1)[..., None]
    gas = (0.85 * layers.tint + 0.15)[:, None, None]
    return 0.05 + gas * (0.9 * glow + 0.25 * layers.pattern[..., None] * layers.cover()) + 0.55 * tube


def _blurry(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    return blur(_photo(layers, generator), times=3)


def _pixelated(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    image = _photo(layers, generator)
    n, side = image.shape[:2]
    blocks = image.reshape(n, 12, side // 12, 12, side // 12, 3).mean(axis=(2, 4))
    return blocks.repeat(side // 12, axis=1).repeat(side // 12, axis=2)


def _silhouette(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    cover = layers.cover()
    return (0.5 * layers.ground + 0.5) * (1 - cover) + 0.04 * cover


def _watercolor(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    wash = layers.cover(softness=3) * (0.55 + 0.35 * layers.grain)[..., None]
    return blur((0.3 * layers.ground + 0.68) * (1 - wash) + layers.paint * wash, times=1)


def _negative(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    return 1 - _photo(layers, generator)


def _clipart(layers: Layers, generator: np.random.Generator) -> np.ndarray:
    cover, line = layers.cover(), layers.outline(1.0)
    return (layers.ground * (1 - cover) + layers.paint * cover) * (1 - line) + 0.05 * line


DRAW: dict[str, Style] = {
    "photo": _photo,
    "sketch": _sketch,
    "neon": _neon,
    "blurry": _blurry,
    "pixelated": _pixelated,
    "silhouette": _silhouette,
    "chalk": _chalk,
    "watercolor": _watercolor,
    "negative": _negative,
    "clipart": _clipart,
}
"""Every style: (layers, generator) -> images (n, R, R, 3), about [0, 1], not yet clipped."""
