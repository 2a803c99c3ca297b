"""Image files: any mode becomes RGB, nothing of PIL's talk reaches the user, damaged files are named or found."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import make_fake
import numpy as np
import pytest
from PIL import Image

from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, Item, open_dataset
from promptbench.data.decode import open_image


def test_rgb_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another copy of a large photograph would be 4 bytes for each of its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("the pixels are copied"))
    loaded = open_image(tmp_path / "image.png")
    loaded.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(loaded)[1:], pixels[1:])
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "image.png")), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_any_mode_becomes_rgb_as_pil_converts_it(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    image.save(path)
    try:
        with Image.open(path) as stored:
            expected = np.asarray(stored.convert("RGB"))
    except OSError:
        pytest.skip("this version of Pillow cannot read what it wrote")  # YCbCr before 12.1
    loaded = open_image(path)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), expected)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind: Any, tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=kind)  # 257 * (0, 1, 128, 255)
    Image.fromarray(values).save(tmp_path / "grey.tif")
    loaded = np.asarray(open_image(tmp_path / "grey.tif"))
    np.testing.assert_array_equal(loaded[0, :, 0], [0, 1, 128, 255])


def test_exif_never_rotates(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 10)


def test_damaged_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "good.png"
    make_fake.write_image(path, size=(200, 200))
    whole = path.read_bytes()
    for name, content in {
        "cut.png": whole[: len(whole) // 2],
        "noise.jpg": b"\xff\xd8\xff noise",
        "empty.png": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=re.escape(str(tmp_path / name))):
            open_image(tmp_path / name)
    with pytest.raises(UsageError, match="absent.png: No such file"):
        open_image(tmp_path / "absent.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match=r"good\.png: .*bomb"):
        open_image(path)


def test_cmyk_jpegs_are_read_by_their_ink(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)  # no cyan: red
    red, green, blue = np.asarray(open_image(tmp_path / "red.jpg")).mean((0, 1))
    assert red > 250 and green < 5 and blue < 5


def with_palette(path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=b"\x00\x80")


def test_transparency_of_a_palette_is_dropped(tmp_path: Path) -> None:
    with_palette(tmp_path / "palette.png")
    assert np.asarray(open_image(tmp_path / "palette.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def with_cut_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description of some length"
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    start = content.index(b"a description")
    content[start - 12 : start] = b"\xff" * 12  # the directory points beyond the file
    path.write_bytes(content)


@pytest.mark.parametrize("make", [with_cut_exif, with_palette])
def test_warnings_of_the_decoder_do_not_reach_the_user(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("image.jpg" if make is with_cut_exif else "image.png")
    make(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.warns(Warning), Image.open(path) as image:
        image.convert("RGB")
        image.getexif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_image(path)


def test_more_pixels_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    Image.new("L", (60, 30)).save(path)  # PIL itself only warns below twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1799)
    with pytest.raises(UsageError, match="image.png: it has 60 x 30 pixels, more than the 1799"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1800)
    assert open_image(path).size == (60, 30)


# --- which images of a dataset cannot be read


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    make_fake.make("oxford_pets", tmp_path / "data")
    return open_dataset("oxford_pets", roots=[tmp_path / "data"])


def opened(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the images that the dataset opens from now on."""
    paths: list[str] = []
    original = type(dataset).open

    def note(self: Dataset, item: Item) -> Image.Image:
        paths.append(item.image)
        return original(self, item)

    monkeypatch.setattr(type(dataset), "open", note)
    return paths


def test_unreadable_images_are_found_in_order(pets: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    items = pets.items("train")
    bad = [items[2], items[7], items[11]]
    (pets.image_root / bad[0].image).write_bytes(b"no image")
    path = pets.image_root / bad[1].image
    path.write_bytes(path.read_bytes()[:-60])  # opens, and fails only when all is decoded
    (pets.image_root / bad[2].image).unlink()
    assert pets.unreadable(items) == bad
    again = opened(pets, monkeypatch)
    assert pets.unreadable(items) == bad
    assert sorted(again) == sorted(item.image for item in bad)  # the others are remembered


def test_verdicts_last_until_the_file_changes(pets: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    items = pets.items("train")
    paths = opened(pets, monkeypatch)
    assert pets.unreadable(items[:10]) == [] and len(paths) == 10
    assert pets.unreadable(items) == [] and len(paths) == 15
    (pets.image_root / items[3].image).write_bytes(b"damaged since")
    assert pets.unreadable(items) == [items[3]] and paths[15:] == [items[3].image]
    make_fake.write_image(pets.image_root / items[3].image)
    assert pets.unreadable(items) == [] and paths[16:] == [items[3].image]


def test_a_damaged_memory_is_made_again(pets: Dataset) -> None:
    assert pets.unreadable(pets.items("val")) == []
    (memory,) = Path(os.environ["PROMPTBENCH_CACHE"]).rglob("oxford_pets.txt")
    assert len(memory.read_text().split()) == len(pets.items("val"))
    memory.write_bytes(b"\xff\x00")
    assert pets.unreadable(pets.items("val")) == []
    assert len(memory.read_text().split()) == len(pets.items("val"))
