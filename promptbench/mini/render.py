"""The renderer: scenes to 48 x 48 RGB images, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promptbench.mini.scene import BACKGROUNDS, CENTRE, PALETTE, STYLES, TEXTURES, Scene, luminance
from promptbench.mini.shapes import EXTENT, TILE, load_atlas
from promptbench.mini.styles import DRAW, Layers, add_clutter
from promptbench.mini.textures import FIELDS

SIDE = 48
"""Side of an image in pixels."""
_CHUNK = 64  # images at a time: more of them fall out of the cache and render at half the speed
_RADIUS = np.array([0.38, 0.56, 0.76], np.float32) * SIDE / 2  # of small, medium and large objects
_JITTER = 0.03  # spread of a colour around its word, in [0, 1]


@dataclass(frozen=True)
class _Objects:
    """Placed objects (m,) and the image each belongs to; objects of one image are neighbours."""

    image: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


def _place(scene: Scene, generator: np.random.Generator) -> _Objects:
    """One object in its cell of the grid, or several in cells drawn at random."""
    n = len(scene)
    radius = _RADIUS[scene.size] * generator.uniform(0.9, 1.12, n)
    cells = generator.permuted(np.tile(np.arange(9), (n, 1)), axis=1)
    image = np.repeat(np.arange(n), scene.count)
    m = len(image)
    slot = np.arange(m) - (np.cumsum(scene.count) - scene.count)[image]
    single = scene.count[image] == 1
    centred = scene.position[image] == CENTRE
    cell = np.where(single, scene.position[image], cells[image, slot])
    alone = np.where(centred, radius[image], np.minimum(radius[image], 0.27 * SIDE))
    several = np.minimum(0.55 * radius[image], 0.165 * SIDE) * generator.uniform(0.9, 1.1, m)
    size = np.where(single, alone, several)
    step = np.where(single, SIDE / 2 - 0.95 * size - 1, 0.31 * SIDE)
    spread = np.where(single, np.where(centred, 1.5, 0.6), 0.8)
    x = SIDE / 2 + (cell % 3 - 1) * step + spread * generator.standard_normal(m)
    y = SIDE / 2 + (cell // 3 - 1) * step + spread * generator.standard_normal(m)
    return _Objects(image, x.astype(np.float32), y.astype(np.float32), size.astype(np.float32))


def _look_up(atlas: np.ndarray, tile: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distances (m, R, R) from tiles (m,) at shape coordinates u, v (m, R, R), bilinear, continued outside the tile."""
    x = (u / EXTENT + 1) * (TILE / 2) - 0.5
    y = (v / EXTENT + 1) * (TILE / 2) - 0.5
    inner_x, inner_y = np.clip(x, 0, TILE - 1.001), np.clip(y, 0, TILE - 1.001)
    outside = (np.abs(x - inner_x) + np.abs(y - inner_y)) * np.float32(2 * EXTENT / TILE)
    left, top = inner_x.astype(np.int32), inner_y.astype(np.int32)
    right_share, low_share = inner_x - left, inner_y - top
    flat = atlas.reshape(-1)
    corner = (tile.astype(np.int32) * (TILE * TILE))[:, None, None] + top * TILE + left
    upper = flat[corner] * (1 - right_share) + flat[corner + 1] * right_share
    lower = flat[corner + TILE] * (1 - right_share) + flat[corner + TILE + 1] * right_share
    return upper * (1 - low_share) + lower * low_share + outside


def _outlines(
    scene: Scene, generator: np.random.Generator, atlas: np.ndarray, tilt: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to the nearest outline and the first object's coordinates, each (n, R, R) in pixels."""
    objects = _place(scene, generator)
    angle = np.deg2rad(generator.uniform(-tilt, tilt, len(objects.image))).astype(np.float32)[:, None, None]
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    dx = axis[None, None, :] - objects.x[:, None, None]
    dy = axis[None, :, None] - objects.y[:, None, None]
    u = dx * np.cos(angle) + dy * np.sin(angle)
    v = dy * np.cos(angle) - dx * np.sin(angle)
    radius = objects.radius[:, None, None]
    distance = _look_up(atlas, scene.shape[objects.image], u / radius, v / radius) * radius
    first = np.searchsorted(objects.image, np.arange(len(scene)))
    nearest = np.minimum.reduceat(distance, first, axis=0)
    nearest[scene.full] = -SIDE
    return nearest, u[first], v[first]


def _ground_mix(name: str, phase: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Share of the second shade (k, R, R) on grounds with these phases (k, 1, 1)."""
    shape = (len(phase), SIDE, SIDE)
    if name == "noisy":
        return generator.random(shape, dtype=np.float32)
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    x, y = np.broadcast_to(axis[None, None, :], shape), np.broadcast_to(axis[None, :, None], shape)
    return y / SIDE if name == "gradient" else FIELDS[name](x, y, phase, x)


def _grounds(scene: Scene, colour: np.ndarray, phase: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Grounds (n, R, R, 3) of colours (n, 3): plain, strewn with things, or mixed with a lighter or darker shade."""
    out = np.broadcast_to(colour[:, None, None], (len(scene), SIDE, SIDE, 3)).copy()
    for kind in np.unique(scene.background):
        name = BACKGROUNDS[kind]
        rows = np.flatnonzero(scene.background == kind)
        ground = out[rows]
        if name == "cluttered":
            add_clutter(ground, generator, most=7, opacity=0.6, radius=(2.5, 9))
        elif name != "plain":
            mix = _ground_mix(name, phase[rows], generator)[..., None]
            depth = np.float32(0.45 if name == "gradient" else 0.22)
            shade = np.where(luminance(colour[rows]) > 0.5, -depth, depth)[:, None]
            ground = ground * (1 - mix) + np.clip(colour[rows] + shade, 0, 1)[:, None, None] * mix
        out[rows] = ground
    return out


def _jittered(colour: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    rgb = PALETTE[colour]
    return np.clip(rgb + _JITTER * generator.standard_normal(rgb.shape, dtype=np.float32), 0, 1)


def _compose(scene: Scene, generator: np.random.Generator, atlas: np.ndarray, tilt: float) -> np.ndarray:
    n = len(scene)
    distance, u, v = _outlines(scene, generator, atlas, tilt)
    phase = generator.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
    grain = generator.random((n, SIDE, SIDE), dtype=np.float32)
    pattern = np.zeros((n, SIDE, SIDE), np.float32)
    for kind in np.unique(scene.texture):
        if TEXTURES[kind] in FIELDS:
            rows = np.flatnonzero(scene.texture == kind)
            pattern[rows] = FIELDS[TEXTURES[kind]](u[rows], v[rows], phase[rows], grain[rows])
    tint, accent, ground = (_jittered(c, generator) for c in (scene.colour, scene.accent, scene.ground))
    share = pattern[..., None]
    layers = Layers(
        ground=_grounds(scene, ground, phase, generator),
        paint=tint[:, None, None] * (1 - share) + accent[:, None, None] * share,
        tint=tint,
        distance=distance,
        pattern=pattern,
        grain=grain,
        height=u + v,
    )
    image = np.empty((n, SIDE, SIDE, 3), np.float32)
    for kind in np.unique(scene.style):
        rows = np.flatnonzero(scene.style == kind)
        image[rows] = DRAW[STYLES[kind]](layers.take(rows), generator)
    return image


def render(
    scene: Scene,
    generator: np.random.Generator,
    *,
    tiles: np.ndarray | None = None,
    tilt: float = 8.0,
    occluders: int = 0,
    noise: float = 0.0,
) -> np.ndarray:
    """Images (n, SIDE, SIDE, 3) uint8 of a scene.

    Args:
        scene: What to draw; `scene.shape` may count on past the atlas into `tiles`.
        generator: Source of everything the scene leaves open: places within a cell, angles, grain, shades.
        tiles: Further tiles of signed distances (t, TILE, TILE), drawn as shapes that no one has seen.
        tilt: Largest rotation of an object, in degrees.
        occluders: If positive, 3 to this many small things lie in front of the objects.
        noise: Standard deviation of noise on the finished image, as a share of full scale.
    """
    atlas = load_atlas() if tiles is None else np.concatenate([load_atlas(), tiles.astype(np.float32)])
    out = np.empty((len(scene), SIDE, SIDE, 3), np.uint8)
    for start in range(0, len(scene), _CHUNK):
        rows = slice(start, start + _CHUNK)
        image = _compose(scene.take(rows), generator, atlas, tilt)
        if occluders:
            add_clutter(image, generator, most=occluders, opacity=1.0, radius=(1.5, 4))
        if noise:
            image = image + noise * generator.standard_normal(image.shape, dtype=np.float32)
        out[rows] = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return out
