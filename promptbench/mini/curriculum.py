"""Pre-training images and the order in which they are met: plain drawings first, then everything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from promptbench.mini.render import render
from promptbench.mini.scene import BACKGROUNDS, CENTRE, SIZES, STYLES, Scene, pretraining_scene

_SHARD = 1024


def _shard(seed: int, number: int) -> tuple[Scene, np.ndarray]:
    generator = np.random.default_rng([seed, 0, number])
    scene = pretraining_scene(generator, _SHARD)
    return scene, render(scene, generator)


def render_pool(seed: int, shards: int, *, workers: int = 2) -> tuple[Scene, np.ndarray]:
    """Scene and images (1024 * shards, R, R, 3) uint8; every shard has its own stream of numbers."""
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda number: _shard(seed, number), range(shards)))
    scenes = [scene for scene, _ in parts]
    joined = {}
    for name in Scene.__dataclass_fields__:
        joined[name] = np.concatenate([getattr(scene, name) for scene in scenes])
    return Scene(**joined), np.concatenate([images for _, images in parts])


def _is_style(scene: Scene, *names: str) -> np.ndarray:
    return np.isin(scene.style, [STYLES.index(name) for name in names])


def easy_odds(scene: Scene) -> np.ndarray:
    """How likely the images (n,) are at the start: large single centred line drawings, hardly anything else."""
    odds = np.where(_is_style(scene, "sketch", "neon", "silhouette", "chalk"), 1.0, 0.0)
    odds += np.where(_is_style(scene, "clipart"), 0.12, 0.0)
    odds *= (scene.count == 1) & ~scene.full
    odds *= np.where(scene.size == SIZES.index("small"), 0.15, 1)
    odds *= np.where(scene.position == CENTRE, 1, 0.12)
    odds *= np.where(scene.texture == 0, 1, 0.3)
    odds *= np.where(np.isin(scene.background, [BACKGROUNDS.index("plain"), BACKGROUNDS.index("gradient")]), 1, 0.2)
    return odds / odds.sum()


def final_odds(scene: Scene) -> np.ndarray:
    """How likely the images (n,) are once all of them take part."""
    odds = np.where(_is_style(scene, "photo", "clipart"), 1.3, 1.0)
    odds *= np.where(_is_style(scene, "sketch"), 1.6, 1)
    odds *= np.where(np.isin(scene.background, [BACKGROUNDS.index("plain"), BACKGROUNDS.index("gradient")]), 1, 0.7)
    odds *= np.where(scene.count == 1, 1, 0.8)
    odds *= np.where(scene.size == SIZES.index("small"), 0.8, 1)
    odds *= np.where(scene.position == CENTRE, 1, 1.3)
    odds *= np.where(scene.full, 1.5, 1)
    return odds / odds.sum()


class Sampler:
    """Draws the images of a step.

    Args:
        scene: The pool.
        first: Share of the horizon before the mixture begins to change; until then a tenth comes from everything.
        last: Share of the horizon after which everything takes part.
    """

    def __init__(self, scene: Scene, *, first: float, last: float) -> None:
        self._easy = easy_odds(scene)
        self._final = final_odds(scene)
        self._first = first
        self._last = last

    def draw(self, generator: np.random.Generator, n: int, *, progress: float) -> np.ndarray:
        """Numbers (n,) of images for a step at this share of the horizon."""
        share = float(np.clip((progress - self._first) / (self._last - self._first), 0.1, 1))
        odds = share * self._final + (1 - share) * self._easy
        return generator.choice(len(odds), n, p=odds)
