"""The renderer draws the same picture twice, keeps held-out pairs out, and shows what the scene says."""

from __future__ import annotations

import numpy as np
import pytest

from promptbench.mini.render import SIDE, render
from promptbench.mini.scene import (
    COLOUR_NAMES,
    COMMON_COLOURS,
    HELD_OUT,
    PALETTE,
    STYLES,
    is_held_out,
    pretraining_scene,
    sample_scene,
)
from promptbench.mini.shapes import DIGITS, SHAPES, TILE, disc, distances, load_atlas


def test_rendering_is_deterministic() -> None:
    first, second = (np.random.default_rng(4) for _ in range(2))
    one, two = (render(pretraining_scene(g, 130), g) for g in (first, second))
    assert one.shape == (130, SIDE, SIDE, 3) and one.dtype == np.uint8
    assert np.array_equal(one, two)


def test_held_out_pairs_never_occur_in_pretraining_scenes() -> None:
    scene = pretraining_scene(np.random.default_rng(0), 20_000)
    assert not (is_held_out(scene.shape, scene.colour) & ~scene.full).any()
    assert np.isin(np.arange(len(SHAPES) + len(DIGITS)), scene.shape).all()


def test_held_out_pairs_follow_the_rule_and_every_shape_keeps_most_colours() -> None:
    assert len(HELD_OUT) == sum((7 * s + 3 * c) % 13 == 0 for s in range(50) for c in range(12))
    for s in range(len(SHAPES)):
        assert sum(pair[0] == s for pair in HELD_OUT) <= 1 < COMMON_COLOURS


def test_array_constraints_are_exact_and_sequences_list_what_is_allowed() -> None:
    labels = np.arange(40) % 10
    scene = sample_scene(np.random.default_rng(0), 40, shape=labels, style=[1, 2], count=[3])
    assert np.array_equal(scene.shape, labels)
    assert set(scene.style) == {1, 2} and set(scene.count) == {3}


def test_the_ground_contrasts_with_the_objects() -> None:
    scene = sample_scene(np.random.default_rng(0), 5000)
    contrast = np.abs(PALETTE[scene.colour] - PALETTE[scene.ground]).sum(1)
    assert (contrast >= 0.55).mean() > 0.999


def test_the_centre_of_a_full_circle_shows_its_colour() -> None:
    red = COLOUR_NAMES.index("red")
    scene = sample_scene(
        np.random.default_rng(0), 20, shape=[SHAPES.index("circle")], colour=[red], texture=[0], count=[1], size=[2],
        position=[4], style=[STYLES.index("clipart")], background=[0], full=False,
    )  # fmt: skip
    centre = render(scene, np.random.default_rng(1))[:, SIDE // 2, SIDE // 2] / 255
    assert np.abs(centre - PALETTE[red]).max() < 0.2


@pytest.mark.parametrize("count", [1, 2, 6])
def test_several_objects_cover_several_places(count: int) -> None:
    scene = sample_scene(
        np.random.default_rng(0), 4, shape=[0], colour=[8], texture=[0], count=[count], size=[0],
        style=[STYLES.index("silhouette")], background=[0], ground=[9], full=False,
    )  # fmt: skip
    from scipy.ndimage import label

    dark = render(scene, np.random.default_rng(1)).mean(-1) < 100
    assert [label(image)[1] for image in dark] == [count] * 4


def test_further_tiles_are_drawn_without_touching_the_atlas() -> None:
    before = load_atlas().copy()
    tile = np.full((1, TILE, TILE), -0.5, np.float32)
    scene = sample_scene(np.random.default_rng(0), 3, shape=[len(before)], count=[1], full=False)
    render(scene, np.random.default_rng(0), tiles=tile)
    assert np.array_equal(before, load_atlas()) and not load_atlas().flags.writeable


def test_signed_distances_of_a_disc_are_its_radius_minus_the_distance_from_the_centre() -> None:
    tile = distances(([disc(0, 0, 0.8)], []))
    axis = ((np.arange(TILE) + 0.5) / TILE * 2 - 1) * 1.5
    exact = np.hypot(*np.meshgrid(axis, axis)) - 0.8
    assert np.abs(tile - exact).max() < 0.02


def test_the_shipped_atlas_is_small_and_has_a_tile_per_shape() -> None:
    from promptbench.mini.shapes import ATLAS_FILE

    assert load_atlas().shape == (len(SHAPES) + len(DIGITS), TILE, TILE)
    assert ATLAS_FILE.stat().st_size < 200_000
    assert (load_atlas()[:, TILE // 2 - 20 : TILE // 2 + 20].min(axis=(1, 2)) < -0.04).all()


def test_rendering_keeps_up_with_a_modest_pace() -> None:
    from time import perf_counter

    generator = np.random.default_rng(0)
    scene = pretraining_scene(generator, 256)
    start = perf_counter()
    render(scene, generator)
    assert 256 / (perf_counter() - start) > 30  # images per second; an idle core does over 700
