"""The shapes of the mini suite and their atlas of signed distances.

A shape is a set of solids minus a set of holes, drawn over the square [-1, 1] x [-1, 1] with y pointing down. The atlas
stores for every shape a tile of signed distances (negative inside, in the same units) over [-1.5, 1.5] x [-1.5, 1.5].
The atlas ships as `shapes.npz`; `python -m promptbench.mini.shapes` computes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

TILE = 64
"""Side of a tile in cells."""
EXTENT = 1.5
"""Half the side of a tile in shape units."""
ATLAS_FILE = Path(__file__).with_name("shapes.npz")
_REACH = 0.8  # distances are clipped here: farther ones change no pixel that can be seen

Point = tuple[float, float]
Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]
Figure = tuple[list[Mask], list[Mask]]


def arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float) -> list[Point]:
    """Points along an elliptical arc; angles in degrees, 0 to the right, 90 down."""
    angles = np.deg2rad(np.linspace(start, stop, 33))
    return [(cx + rx * float(np.cos(a)), cy + ry * float(np.sin(a))) for a in angles]


def polar(radii: list[float], turn: float = -90.0) -> list[Point]:
    """Corners at equal angles around the origin, one per radius."""
    angles = np.deg2rad(turn + np.arange(len(radii)) * 360 / len(radii))
    return [(r * float(np.cos(a)), r * float(np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def rotated(points: list[Point], degrees: float) -> list[Point]:
    """The points turned around the origin."""
    c, s = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    return [(x * c - y * s, x * s + y * c) for x, y in points]


def disc(cx: float, cy: float, rx: float, ry: float | None = None) -> Mask:
    """A filled ellipse."""
    return lambda x, y: ((x - cx) / rx) ** 2 + ((y - cy) / (ry or rx)) ** 2 <= 1


def box(left: float, top: float, right: float, bottom: float) -> Mask:
    """A filled rectangle."""
    return lambda x, y: (x >= left) & (x <= right) & (y >= top) & (y <= bottom)


def polygon(points: list[Point]) -> Mask:
    """A filled polygon, by the even-odd rule."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        odd = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
            if ay != by:
                odd ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
        return odd

    return inside


def stroke(width: float, points: list[Point]) -> Mask:
    """A line through the points with round joints and ends."""

    def near(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        hit = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(points, points[1:], strict=False):
            dx, dy = bx - ax, by - ay
            along = np.clip(((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
            hit |= np.hypot(x - ax - along * dx, y - ay - along * dy) <= width / 2
        return hit

    return near


def _geometric() -> dict[str, Figure]:
    star = polar([0.95, 0.4] * 5)
    tooth = [(-0.17, -0.95), (0.17, -0.95), (0.22, -0.5), (-0.22, -0.5)]
    return {
        "circle": ([disc(0, 0, 0.88)], []),
        "square": ([box(-0.78, -0.78, 0.78, 0.78)], []),
        "triangle": ([polygon([(0, -0.9), (0.93, 0.76), (-0.93, 0.76)])], []),
        "star": ([polygon(star)], []),
        "diamond": ([polygon([(0, -0.95), (0.64, 0), (0, 0.95), (-0.64, 0)])], []),
        "pentagon": ([polygon(polar([0.92] * 5))], []),
        "hexagon": ([polygon(polar([0.92] * 6, 0))], []),
        "cross": ([box(-0.29, -0.9, 0.29, 0.9), box(-0.9, -0.29, 0.9, 0.29)], []),
        "ring": ([disc(0, 0, 0.9)], [disc(0, 0, 0.5)]),
        "oval": ([disc(0, 0, 0.95, 0.54)], []),
        "rectangle": ([box(-0.95, -0.48, 0.95, 0.48)], []),
        "trapezoid": ([polygon([(-0.45, -0.6), (0.45, -0.6), (0.95, 0.6), (-0.95, 0.6)])], []),
        "crescent": ([disc(-0.1, 0, 0.88)], [disc(0.38, -0.14, 0.74)]),
        "heart": ([disc(-0.43, -0.36, 0.46), disc(0.43, -0.36, 0.46),
            polygon([(-0.85, -0.17), (0, -0.4), (0.85, -0.17), (0, 0.92)])], []),
        "arrow": ([box(-0.92, -0.24, 0.2, 0.24), polygon([(0.1, -0.76), (0.95, 0), (0.1, 0.76)])], []),
        "semicircle": ([polygon(arc(0, 0.45, 0.95, 0.95, 180, 360))], []),
        "teardrop": ([disc(0, 0.34, 0.58), polygon([(0, -0.95), (0.52, 0.1), (-0.52, 0.1)])], []),
        "lightning": ([polygon([(0.16, -0.95), (-0.6, 0.16), (-0.06, 0.16), (-0.26, 0.95), (0.6, -0.26),
            (0.06, -0.26), (0.5, -0.95)])], []),
        "parallelogram": ([polygon([(-0.42, -0.55), (0.95, -0.55), (0.42, 0.55), (-0.95, 0.55)])], []),
        "gear": ([disc(0, 0, 0.68)] + [polygon(rotated(tooth, 45 * k)) for k in range(8)], [disc(0, 0, 0.28)]),
    }  # fmt: skip


def _things() -> dict[str, Figure]:
    petals = [disc(x, y, 0.36) for x, y in polar([0.56] * 6)]
    rungs = [box(-0.4, y - 0.08, 0.4, y + 0.08) for y in (-0.6, -0.2, 0.2, 0.6)]
    return {
        "cloud": ([disc(-0.5, 0.16, 0.42), disc(0.52, 0.16, 0.4), disc(-0.12, -0.16, 0.5), disc(0.28, 0.1, 0.44),
            box(-0.5, 0.2, 0.52, 0.56)], []),
        "flower": (petals, [disc(0, 0, 0.22)]),
        "house": ([polygon([(0, -0.95), (0.95, -0.1), (-0.95, -0.1)]), box(-0.7, -0.12, 0.7, 0.9)],
            [box(-0.18, 0.3, 0.18, 0.95)]),
        "tree": ([polygon([(0, -0.95), (0.6, -0.1), (-0.6, -0.1)]), polygon([(0, -0.5), (0.82, 0.5), (-0.82, 0.5)]),
            box(-0.16, 0.45, 0.16, 0.95)], []),
        "fish": ([disc(-0.22, 0, 0.68, 0.45), polygon([(0.24, 0), (0.95, -0.56), (0.95, 0.56)])],
            [disc(-0.56, -0.1, 0.09)]),
        "key": ([disc(-0.55, 0, 0.4), box(-0.3, -0.11, 0.95, 0.11), box(0.44, 0, 0.6, 0.44),
            box(0.78, 0, 0.94, 0.44)], [disc(-0.57, 0, 0.18)]),
        "mug": ([box(-0.78, -0.72, 0.42, 0.75), stroke(0.2, arc(0.42, 0.02, 0.42, 0.4, -90, 90))], []),
        "flag": ([box(-0.78, -0.95, -0.58, 0.95), box(-0.7, -0.9, 0.86, 0.14)], []),
        "mushroom": ([polygon(arc(0, 0.1, 0.92, 0.95, 180, 360)), box(-0.27, 0.05, 0.27, 0.88)], []),
        "boat": ([polygon([(-0.95, 0.35), (0.95, 0.35), (0.6, 0.86), (-0.6, 0.86)]), box(-0.07, -0.95, 0.07, 0.4),
            polygon([(0.13, -0.9), (0.82, 0.2), (0.13, 0.2)])], []),
        "car": ([box(-0.95, -0.1, 0.95, 0.4), polygon([(-0.62, -0.08), (-0.36, -0.6), (0.36, -0.6), (0.62, -0.08)]),
            disc(-0.5, 0.42, 0.26), disc(0.5, 0.42, 0.26)], [disc(-0.5, 0.42, 0.1), disc(0.5, 0.42, 0.1)]),
        "rocket": ([disc(0, -0.1, 0.36, 0.85), polygon([(-0.3, 0.2), (-0.76, 0.88), (-0.2, 0.66)]),
            polygon([(0.3, 0.2), (0.76, 0.88), (0.2, 0.66)])], [disc(0, -0.3, 0.14)]),
        "umbrella": ([polygon(arc(0, 0, 0.94, 0.86, 180, 360)),
            stroke(0.14, [(0, -0.05), (0, 0.68)] + arc(0.17, 0.68, 0.17, 0.2, 180, 10))], []),
        "hammer": ([box(-0.6, -0.9, 0.6, -0.42), box(-0.14, -0.5, 0.14, 0.95),
            polygon([(0.58, -0.9), (0.92, -0.62), (0.58, -0.42)])], []),
        "ladder": ([box(-0.52, -0.95, -0.3, 0.95), box(0.3, -0.95, 0.52, 0.95), *rungs], []),
        "bottle": ([box(-0.16, -0.95, 0.16, -0.2), disc(0, -0.14, 0.42, 0.32), box(-0.42, -0.14, 0.42, 0.92)], []),
        "bell": ([disc(0, -0.15, 0.55, 0.7), polygon([(-0.55, -0.12), (0.55, -0.12), (0.9, 0.6), (-0.9, 0.6)]),
            disc(0, 0.68, 0.2)], []),
        "hat": ([box(-0.95, 0.4, 0.95, 0.66), box(-0.52, -0.72, 0.52, 0.45)], []),
        "crown": ([polygon([(-0.9, 0.7), (-0.9, -0.6), (-0.45, 0), (0, -0.82), (0.45, 0), (0.9, -0.6), (0.9, 0.7)])],
            []),
        "anchor": ([disc(0, -0.7, 0.24), box(-0.1, -0.5, 0.1, 0.85), box(-0.42, -0.36, 0.42, -0.18),
            stroke(0.19, arc(0, 0.1, 0.8, 0.74, 5, 175))], [disc(0, -0.7, 0.1)]),
        "apple": ([disc(-0.3, 0.2, 0.55, 0.66), disc(0.3, 0.2, 0.55, 0.66), stroke(0.13, [(0, -0.3), (0.12, -0.86)]),
            disc(0.4, -0.68, 0.26, 0.13)], []),
        "leaf": ([polygon(arc(0, 0.62, 1.12, 1.12, 214, 326) + arc(0, -0.62, 1.12, 1.12, 34, 146))],
            [stroke(0.08, [(-0.68, 0), (0.6, 0)])]),
        "lamp": ([polygon([(-0.36, -0.9), (0.36, -0.9), (0.78, -0.1), (-0.78, -0.1)]), box(-0.08, -0.12, 0.08, 0.75),
            box(-0.46, 0.72, 0.46, 0.92)], []),
        "chair": ([box(-0.62, -0.95, -0.38, 0.95), box(-0.6, -0.05, 0.6, 0.2), box(0.38, 0.05, 0.62, 0.95)], []),
        "table": ([box(-0.95, -0.46, 0.95, -0.2), box(-0.77, -0.3, -0.55, 0.8), box(0.55, -0.3, 0.77, 0.8)], []),
        "glasses": ([disc(-0.52, 0, 0.43), disc(0.52, 0, 0.43), box(-0.16, -0.08, 0.16, 0.08)], [disc(-0.52, 0, 0.27),
            disc(0.52, 0, 0.27)]),
        "butterfly": ([disc(-0.5, -0.36, 0.44, 0.5), disc(0.5, -0.36, 0.44, 0.5), disc(-0.42, 0.46, 0.34, 0.4),
            disc(0.42, 0.46, 0.34, 0.4), disc(0, 0, 0.1, 0.78)], []),
        "snowman": ([disc(0, 0.42, 0.52), disc(0, -0.3, 0.37), box(-0.32, -0.74, 0.32, -0.6),
            box(-0.19, -0.98, 0.19, -0.65)], []),
        "cactus": ([stroke(0.4, [(0, -0.72), (0, 0.75)]), stroke(0.24, [(0, 0.32), (-0.62, 0.32), (-0.62, -0.3)]),
            stroke(0.24, [(0, 0.05), (0.62, 0.05), (0.62, -0.5)])], []),
        "spoon": ([disc(-0.55, 0, 0.42, 0.3), box(-0.3, -0.09, 0.95, 0.09)], []),
    }  # fmt: skip


def _digits() -> dict[str, Figure]:
    loop = arc(0, 0.36, 0.44, 0.42, 0, 360)
    tail = [(0.28, -0.84), (-0.16, -0.42), (-0.43, 0.28)]
    lines: dict[str, list[list[Point]]] = {
        "zero": [arc(0, 0, 0.48, 0.78, 0, 360)],
        "one": [[(-0.32, -0.46), (0.06, -0.8), (0.06, 0.82)]],
        "two": [arc(0, -0.36, 0.44, 0.42, 180, 385) + [(-0.5, 0.78), (0.52, 0.78)]],
        "three": [arc(-0.06, -0.4, 0.45, 0.38, -155, 90), arc(-0.06, 0.38, 0.5, 0.41, -90, 155)],
        "four": [[(0.24, 0.84), (0.24, -0.8), (-0.52, 0.3), (0.56, 0.3)]],
        "five": [[(0.44, -0.78), (-0.36, -0.78), (-0.4, -0.1)], arc(-0.02, 0.3, 0.46, 0.48, -145, 145)],
        "six": [loop, tail],
        "seven": [[(-0.5, -0.78), (0.5, -0.78), (-0.12, 0.84)]],
        "eight": [arc(0, -0.41, 0.36, 0.36, 0, 360), arc(0, 0.39, 0.44, 0.4, 0, 360)],
        "nine": [rotated(loop, 180), rotated(tail, 180)],
    }
    return {name: ([stroke(0.27, points) for points in strokes], []) for name, strokes in lines.items()}


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = (
    "circle", "square", "triangle", "star", "diamond", "pentagon", "hexagon", "cross", "ring", "oval", "rectangle",
    "trapezoid", "crescent", "heart", "arrow", "semicircle", "teardrop", "lightning", "parallelogram", "gear", "cloud",
    "flower", "house", "tree", "fish", "key", "mug", "flag", "mushroom", "boat", "car", "rocket", "umbrella", "hammer",
    "ladder", "bottle", "bell", "hat", "crown", "anchor", "apple", "leaf", "lamp", "chair", "table", "glasses",
    "butterfly", "snowman", "cactus", "spoon",
)  # fmt: skip
"""Named shapes; their place is their number. The tiles of the ten digits follow them in the atlas."""


def distances(figure: Figure, *, side: int = 512) -> np.ndarray:
    """Tile of signed distances of a figure, (TILE, TILE) float32 in shape units, measured on a fine grid.

    The mask is drawn on side x side points over the whole tile; its Euclidean distance transform is averaged per cell.
    """
    from scipy.ndimage import distance_transform_edt

    axis = ((np.arange(side) + 0.5) / side * 2 - 1) * EXTENT
    x, y = np.meshgrid(axis, axis)
    solids, holes = figure
    mask = np.any([m(x, y) for m in solids], axis=0)
    for hole in holes:
        mask &= ~hole(x, y)
    signed = (distance_transform_edt(~mask) - distance_transform_edt(mask)) * (2 * EXTENT / side)
    cell = side // TILE
    return signed.reshape(TILE, cell, TILE, cell).mean(axis=(1, 3)).astype(np.float32)


def draw_atlas() -> np.ndarray:
    """Tiles of all shapes and digits, computed from the drawings: (60, TILE, TILE) float32."""
    figures = {**_geometric(), **_things(), **_digits()}
    return np.stack([distances(figures[name]) for name in (*SHAPES, *DIGITS)])


@cache
def load_atlas() -> np.ndarray:
    """Tiles of all shapes and digits as shipped: (60, TILE, TILE) float32, shape units, clipped at +-0.8."""
    with np.load(ATLAS_FILE) as file:
        tiles = file["tiles"]
    atlas = tiles.astype(np.float32) * np.float32(_REACH / 127)
    atlas.flags.writeable = False
    return atlas


def save_atlas(path: Path = ATLAS_FILE) -> None:
    """Write the atlas with 8 bits per distance, clipped where it no longer matters."""
    tiles = np.rint(np.clip(draw_atlas() / _REACH, -1, 1) * 127).astype(np.int8)
    np.savez_compressed(path, tiles=tiles)


if __name__ == "__main__":
    save_atlas()
