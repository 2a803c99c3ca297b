"""The sets: sizes, separate streams, and the facts in their class names."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from promptbench.mini import sets
from promptbench.mini.render import SIDE
from promptbench.mini.sets import CORE, EXTRA, OOD, PER_CLASS, SEALED_SEED, SETS, SHIFTED, enlarge, images
from promptbench.mini.sheet import contact_sheet


def _few(name: str, split: str, seed: int = sets.RENDER_SEED) -> np.ndarray:
    return images(name, split, seed)[0][:64]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fabrics", "signs", "digits", "ood_blobs"])
def test_a_split_has_the_promised_images_in_the_order_of_the_classes(name: str) -> None:
    for split, n in SETS[name].per_class.items():
        pixels, labels = images(name, split)
        assert pixels.shape == (n * len(SETS[name].class_names), SIDE, SIDE, 3) and pixels.dtype == np.uint8
        assert np.array_equal(labels, np.repeat(np.arange(len(SETS[name].class_names)), n))


@pytest.mark.slow
def test_splits_and_seeds_and_sets_have_streams_of_their_own() -> None:
    draws = [_few("fabrics", split) for split in PER_CLASS]
    draws += [_few("fabrics", "val", SEALED_SEED), _few("textures", "val")]
    assert len({image.tobytes() for draw in draws for image in draw}) == sum(map(len, draws))
    assert np.array_equal(draws[1], _few("fabrics", "val"))


def test_the_splits_of_the_scanned_digits_are_disjoint_and_fixed() -> None:
    parts = {split: {image.tobytes() for image in images("digits", split)[0]} for split in PER_CLASS}
    assert not parts["train"] & parts["test"] and not parts["train"] & parts["val"] and not parts["val"] & parts["test"]
    assert np.array_equal(images("digits", "test", 1)[0], images("digits", "test", 2)[0])


def test_class_names_are_unique_and_the_groups_cover_the_sets() -> None:
    assert (*CORE, *EXTRA, *SHIFTED, *OOD) == tuple(SETS)
    assert len(CORE) == 7
    for mini in SETS.values():
        assert len(set(mini.class_names)) == len(mini.class_names)
        assert mini.template.count("{}") == 1 and mini.template.endswith(".")


def test_shifted_sets_have_the_classes_of_the_source() -> None:
    for name in SHIFTED:
        assert SETS[name].class_names == SETS["shapes"].class_names


def test_a_missing_split_is_named() -> None:
    with pytest.raises(ValueError, match="'ood_near' has no split 'train'; it has test"):
        images("ood_near", "train")


def test_enlarging_keeps_constants_and_interpolates_between() -> None:
    assert (enlarge(np.full((1, 8, 8), 0.6)) == 153).all()
    ramp = enlarge(np.tile(np.linspace(0, 1, 8), (1, 8, 1)))[0, 0, :, 0].astype(int)
    assert ramp[0] == 0 and ramp[-1] == 255 and (np.diff(ramp) >= 0).all()


def test_importing_the_sets_imports_no_heavy_library() -> None:
    code = "import sys, promptbench.mini.sets; print(sorted({'torch', 'scipy', 'sklearn', 'PIL'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_contact_sheet_holds_every_row() -> None:
    row = np.zeros((5, SIDE, SIDE, 3), np.uint8)
    sheet = contact_sheet([("one", row), ("two\nlines", row[:3])])
    assert sheet.size[0] > 5 * SIDE and sheet.size[1] > 2 * SIDE
    assert np.asarray(sheet)[6 : 6 + SIDE, -6 - SIDE : -10].max() == 0
