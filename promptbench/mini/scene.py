"""What a mini image shows, as arrays of attribute numbers, and how attributes are drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from promptbench.mini.shapes import DIGITS, SHAPES

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35), "orange": (245, 135, 25), "yellow": (250, 220, 40), "green": (40, 160, 60),
    "blue": (40, 80, 215), "purple": (125, 50, 170), "pink": (250, 150, 190), "brown": (125, 75, 35),
    "black": (20, 20, 20), "white": (245, 245, 245), "gray": (128, 128, 128), "cyan": (60, 215, 230),
    "navy": (15, 25, 95), "lime": (170, 240, 40), "maroon": (105, 10, 30), "turquoise": (35, 170, 165),
    "magenta": (230, 30, 190), "beige": (230, 210, 170), "olive": (115, 115, 25), "lavender": (190, 165, 235),
    "gold": (205, 165, 30), "coral": (250, 115, 95),
}  # fmt: skip
"""Colour words and their 8-bit RGB; the first twelve are common, the others rare."""
COMMON_COLOURS = 12
COLOUR_NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float32) / 255
TEXTURES = (
    "solid", "striped", "dotted", "checkered", "zigzag", "gridded",
    "gradient", "speckled", "wavy", "ringed", "banded", "brick",
)  # fmt: skip
BACKGROUNDS = ("plain", "gradient", "noisy", "cluttered", "striped", "dotted", "checkered")
STYLES = (
    "photo", "sketch", "neon", "blurry", "pixelated", "silhouette", "chalk", "watercolor", "negative", "clipart",
)  # fmt: skip
POSITIONS = (
    "in the top left", "at the top", "in the top right", "on the left", "in the center", "on the right",
    "in the bottom left", "at the bottom", "in the bottom right",
)  # fmt: skip
CENTRE = 4
SIZES = ("small", "medium", "large")
COUNTS = (1, 2, 3, 4, 5, 6)

Choice = Sequence[int] | np.ndarray
"""Restriction of an attribute: a sequence lists the allowed numbers, an array gives every image its own."""


@dataclass(frozen=True)
class Scene:
    """Attributes of n images; every field is an array (n,), int64 except `full`.

    Attributes:
        shape: Tile in the atlas: a shape, a digit, or a further tile handed to the renderer.
        colour: Colour of the objects.
        accent: Colour of the texture drawn on them.
        texture: Texture of the objects.
        count: How many objects, 1 to 6.
        position: Cell of a single object in a 3 x 3 grid, row by row.
        size: Small, medium or large.
        background: Kind of ground.
        ground: Colour of the ground.
        style: Way of drawing.
        full: bool; the texture fills the whole picture and there is no object.
    """

    shape: np.ndarray
    colour: np.ndarray
    accent: np.ndarray
    texture: np.ndarray
    count: np.ndarray
    position: np.ndarray
    size: np.ndarray
    background: np.ndarray
    ground: np.ndarray
    style: np.ndarray
    full: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)

    def take(self, index: np.ndarray | slice) -> Scene:
        """The images with these numbers."""
        return Scene(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def where(self, keep: np.ndarray, other: Scene) -> Scene:
        """This scene where `keep` (n,) holds, the other elsewhere."""
        return Scene(**{f.name: np.where(keep, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


def _odds(*weights: float) -> np.ndarray:
    return np.array(weights) / sum(weights)


_RARE = len(COLOURS) - COMMON_COLOURS
_SHAPE_ODDS = _odds(*[1.0] * len(SHAPES), *[0.3] * len(DIGITS))
_COLOUR_ODDS = _odds(*[6.0] * COMMON_COLOURS, *[2.0] * _RARE)
_GROUND_ODDS = _odds(*[6.0] * 8, *[9.6] * 3, 6.0, *[1.0] * _RARE)  # black, white and gray grounds are commoner
_TEXTURE_ODDS = _odds(14, *[0.85] * (len(TEXTURES) - 1))
_COUNT_ODDS = _odds(75, 7, 6, 4, 4, 4)
_POSITION_ODDS = _odds(*[4.25] * 4, 66, *[4.25] * 4)
_SIZE_ODDS = _odds(15, 45, 40)
_BACKGROUND_ODDS = _odds(70, 10, 6, 6, 3, 3, 2)
_STYLE_ODDS = _odds(40, 12, 5, 6, 5, 6, 5, 5, 2, 14)
_FULL_SHARE = 0.06
_CONTRAST = 0.55  # least sum of RGB differences between an object and its ground
_BLACK, _WHITE = COLOUR_NAMES.index("black"), COLOUR_NAMES.index("white")


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Brightness of colours (..., 3) in [0, 1]."""
    return rgb @ np.array([0.3, 0.59, 0.11], np.float32)


def _draw(generator: np.random.Generator, n: int, odds: np.ndarray, choice: Choice | None) -> np.ndarray:
    if isinstance(choice, np.ndarray):
        return choice.astype(np.int64)
    if choice is not None:
        return generator.choice(np.asarray(choice, np.int64), n)
    return generator.choice(len(odds), n, p=odds)


def _draw_ground(generator: np.random.Generator, colour: np.ndarray, choice: Choice | None) -> np.ndarray:
    """Ground colours that stand out against the objects, if a dozen tries find one."""
    ground = _draw(generator, len(colour), _GROUND_ODDS, choice)
    for _ in range(0 if isinstance(choice, np.ndarray) else 12):
        dull = np.abs(PALETTE[ground] - PALETTE[colour]).sum(1) < _CONTRAST
        if not dull.any():
            break
        ground[dull] = _draw(generator, int(dull.sum()), _GROUND_ODDS, choice)
    return ground


def sample_scene(
    generator: np.random.Generator,
    n: int,
    *,
    shape: Choice | None = None,
    colour: Choice | None = None,
    texture: Choice | None = None,
    count: Choice | None = None,
    position: Choice | None = None,
    size: Choice | None = None,
    background: Choice | None = None,
    ground: Choice | None = None,
    style: Choice | None = None,
    full: bool | None = None,
) -> Scene:
    """A random scene of n images; an attribute left out follows the distribution of the pre-training images.

    A full-frame texture is never plain: where the texture is not restricted, another one is drawn.
    """
    colours = _draw(generator, n, _COLOUR_ODDS, colour)
    filled = generator.random(n) < _FULL_SHARE if full is None else np.full(n, full)
    textures = _draw(generator, n, _TEXTURE_ODDS, texture)
    if texture is None:
        textures = np.where(filled, generator.integers(1, len(TEXTURES), n), textures)
    return Scene(
        shape=_draw(generator, n, _SHAPE_ODDS, shape),
        colour=colours,
        accent=np.where(luminance(PALETTE[colours]) > 0.5, _BLACK, _WHITE),
        texture=textures,
        count=_draw(generator, n, _COUNT_ODDS, count) + (1 if count is None else 0),
        position=_draw(generator, n, _POSITION_ODDS, position),
        size=_draw(generator, n, _SIZE_ODDS, size),
        background=_draw(generator, n, _BACKGROUND_ODDS, background),
        ground=_draw_ground(generator, colours, ground),
        style=_draw(generator, n, _STYLE_ODDS, style),
        full=filled,
    )


def is_held_out(shape: np.ndarray | int, colour: np.ndarray | int) -> np.ndarray | bool:
    """Whether a pair of shape and colour is kept out of pre-training: one pair in thirteen."""
    return (7 * shape + 3 * colour) % 13 == 0


HELD_OUT = tuple((s, c) for s in range(len(SHAPES)) for c in range(COMMON_COLOURS) if is_held_out(s, c))
"""Held-out pairs (shape, colour) of the named shapes and the common colours."""


def pretraining_scene(generator: np.random.Generator, n: int) -> Scene:
    """A random scene without any object of a held-out pair."""
    scene = sample_scene(generator, n)
    while True:
        seen = scene.full | ~np.asarray(is_held_out(scene.shape, scene.colour))
        if seen.all():
            return scene
        scene = scene.where(seen, sample_scene(generator, n))
