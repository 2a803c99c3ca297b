"""Corruptions: the same bytes for the same image, whoever asks, more damage with the severity, and never unasked."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import promptbench as pb
from promptbench.config import UsageError
from promptbench.data import batches, features
from promptbench.data.batches import pixel_batches, training_batches
from promptbench.data.corruptions import KINDS, SEVERITIES, Corruption, corruptions_of
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.data.features import Kept
from promptbench.data.selection import Selection, open_selection
from promptbench.runs.evaluate import Reader

SIDE = 64
FOG = Corruption("fog", 3)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Large patches and small ones, as a photograph has."""
    generator = np.random.default_rng(5)
    large, small = (generator.integers(0, 256, (n, n, 3), dtype=np.uint8) for n in (7, 29))
    return Image.blend(*(Image.fromarray(one).resize((SIDE, SIDE)) for one in (large, small)), 0.4)


@pytest.fixture
def pets(birds: Path) -> Dataset:
    return open_dataset("folder", {"root": str(birds)}, alias="pets")


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_alike_and_another_one_otherwise(kind: str, photo: Image.Image) -> None:
    before = np.random.get_state()[1].copy()
    first, again = (Corruption(kind, 3)(photo.copy(), "a.jpg") for _ in range(2))
    other = Corruption(kind, 3)(photo, "b.jpg")
    assert first.size == photo.size and first.mode == "RGB" and first.tobytes() == again.tobytes() != photo.tobytes()
    drawn = kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert (first.tobytes() != other.tobytes()) == drawn
    assert (np.random.get_state()[1] == before).all()  # the global generator is nobody's


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"elastic_transform"}))
def test_damage_grows_with_the_severity(kind: str, photo: Image.Image) -> None:
    """By the mean absolute difference; frost, which darkens the image as well, by the image's share in what is seen."""

    def damage(severity: int) -> float:
        found = np.stack([pixels(Corruption(kind, severity)(photo, str(number))) for number in range(8)])
        if kind == "frost":
            return 1 - float(np.mean([np.corrcoef(one.ravel(), pixels(photo).ravel())[0, 1] for one in found]))
        return float(np.abs(found - pixels(photo)).mean())

    damages = list(map(damage, SEVERITIES))
    slack = 0.95 if kind in ("snow", "frost", "fog") else 1  # whose veils differ from draw to draw
    assert all(more > slack * less for less, more in pairwise(damages)), damages
    assert damages[4] > 1.2 * damages[0] > 0 and damages[3] > damages[1], damages


def test_elastic_transform_is_smooth_and_large_then_rough_and_small(photo: Image.Image) -> None:
    """The authors' own numbers: 1 and 2 pull three points by up to 24 and 49 of 224 pixels, 3 to 5 by up to 5."""
    found = [np.abs(pixels(Corruption("elastic_transform", s)(photo, "a")) - pixels(photo)).mean() for s in SEVERITIES]
    assert min(found[:2]) > max(found[2:]) > 0


def test_noise_has_the_published_strength(photo: Image.Image) -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    assert pixels(Corruption("gaussian_noise", 1)(grey, "a")).std() / 255 == pytest.approx(0.08, rel=0.02)
    shot = pixels(Corruption("shot_noise", 1)(grey, "a")).std() / 255
    assert shot == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.02)  # Poisson: the variance of n / 60 at mean x
    changed = pixels(Corruption("impulse_noise", 5)(grey, "a")) != 128
    assert changed.mean() == pytest.approx(0.27, rel=0.02)
    flat = pixels(Corruption("contrast", 3)(photo, "a")).std(axis=(0, 1)) / pixels(photo).std(axis=(0, 1))
    assert flat == pytest.approx(0.2, rel=0.03)
    bright = Corruption("brightness", 2)(Image.new("RGB", (8, 8), (25, 100, 0)), "a")
    assert bright.getpixel((0, 0)) == (38, 151, 0)  # V is 51 / 255 more, hue and saturation as they were


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur"])
def test_a_blur_of_a_small_image_is_that_of_a_large_one(kind: str) -> None:
    """Of an edge: as wide, in shares of the side, at 48 pixels as at 224, where the lengths are the authors'."""

    def edge(side: int) -> np.ndarray[Any, Any]:
        half = np.zeros((side, side, 3), np.uint8)
        half[:, side // 2 :] = 255
        row = pixels(Corruption(kind, 5)(Image.fromarray(half), "a"))[side // 2, :, 0]
        return np.interp(np.linspace(0, 1, 100), (np.arange(side) + 0.5) / side, row / 255)

    assert np.abs(edge(48) - edge(224)).max() < 0.12
    sharp = edge(224)
    assert 0.02 < ((sharp > 0.05) & (sharp < 0.95)).mean() < 0.2


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["fogg:3"], "Unknown corruption 'fogg'. Did you mean 'fog'?"),
        (["fog:0"], "a severity is 1, 2, 3, 4 or 5; write fog:3, for instance."),
        (["fog:six"], "a severity is 1, 2, 3, 4 or 5"),
        (["fog:"], "a severity is 1, 2, 3, 4 or 5"),
        (["fog", "fog:2"], "fog:2 is named twice"),
    ],
)
def test_what_is_no_corruption_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(UsageError, match="^--corrupt") as raised:
        corruptions_of(texts, "--corrupt")
    assert says in str(raised.value)


def test_a_kind_alone_is_all_its_severities() -> None:
    assert list(map(str, corruptions_of(["snow:2", "fog"], "x"))) == ["snow:2", *(f"fog:{one}" for one in SEVERITIES)]


def loaded(tiny: pb.Backbone, dataset: Dataset, items: Any, batch: int, corruption: Corruption | None) -> torch.Tensor:
    found = pixel_batches(tiny, dataset, items, batch=batch, corruption=corruption)
    return torch.cat([images.pixels for images, _ in found])


@pytest.mark.parametrize("kind", ["gaussian_noise", "elastic_transform"])
def test_images_are_corrupted_alike_in_any_order_and_batch(kind: str, tiny: pb.Backbone, pets: Dataset) -> None:
    items, one = pets.items("test"), Corruption(kind, 3)
    whole = loaded(tiny, pets, items, 100, one)
    assert torch.equal(loaded(tiny, pets, items[::-1], 2, one).flip(0), whole)
    assert torch.equal(loaded(tiny, pets, items[3:4], 1, one), whole[3:4])
    assert not torch.equal(loaded(tiny, pets, items, 100, None), whole)
    crop = batches.Views(tiny, pets, items, keep=0, augment_seed=None).evaluation
    seen = one(crop.crop(pets.open(items[0])), items[0].image)  # after the crop, before the normalisation
    assert torch.equal(crop.normalise(seen), whole[0])


@pytest.mark.slow
def test_images_are_corrupted_alike_by_other_processes(
    tiny: pb.Backbone, pets: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, one = pets.items("test"), Corruption("snow", 4)
    whole = loaded(tiny, pets, items, 3, one)
    monkeypatch.setattr(batches, "workers", lambda *_: 2)
    assert torch.equal(loaded(tiny, pets, items, 3, one), whole)


def test_training_images_are_never_corrupted(tiny: pb.Backbone, pets: Dataset) -> None:
    chosen = open_selection(lambda _: pets, Selection(dataset="pets", split="train", shots=2), 1)
    assert chosen.corruption is None
    ((images, _),) = training_batches(tiny, pets, chosen.items, batch=9, seed=1, augment=False, drop_last=False)
    clean = loaded(tiny, pets, chosen.items, 9, None)
    assert sorted(map(float, images.pixels.sum(dim=(1, 2, 3)))) == sorted(map(float, clean.sum(dim=(1, 2, 3))))


def test_kept_features_of_corrupted_and_clean_images_are_never_mixed_up(tiny: pb.Backbone, pets: Dataset) -> None:
    items = pets.items("test")
    kept = [Kept(), *(Kept(corruption=Corruption(*one)) for one in (("fog", 3), ("fog", 4), ("snow", 3)))]
    names = {features.key(tiny, pets, items, kept=one) for one in kept}
    assert len(names) == 4
    assert features.key(tiny, pets, items) == features.key(tiny, pets, items, kept=Kept())
    moved = [item._replace(image=f"./{item.image}") for item in items]  # the same files, and other draws
    assert features.key(tiny, pets, moved) == features.key(tiny, pets, items)
    assert features.key(tiny, pets, moved, kept=kept[1]) != features.key(tiny, pets, items, kept=kept[1])
    encoded = [features.encode(tiny, pets, items, one).cls for one in kept]
    for one, fresh in [*zip(kept, encoded, strict=True)] * 2:  # made, and read
        assert torch.equal(features.kept_features(tiny, pets, items, one).cls, fresh)


@pytest.mark.parametrize("label", ["zeroshot", "coop", "vpt"])  # kept features, and a tower of one's own
def test_a_reader_tells_corrupted_images_from_clean_ones(label: str, tiny: pb.Backbone, pets: Dataset) -> None:
    selection = Selection(dataset="pets", split="test")
    chosen = open_selection(lambda _: pets, selection, 1)
    method = pb.create_method(label, tiny, chosen.class_names)

    def logits(reader: Reader, corruption: Corruption | None) -> torch.Tensor:
        return reader.outcome(replace(chosen, corruption=corruption), selection, chosen.labels, {}).logits

    one = Reader(method)
    clean, foggy, back = (logits(one, corruption) for corruption in (None, FOG, None))
    assert torch.equal(clean, back) and not torch.allclose(clean, foggy, atol=1e-3)
    with torch.no_grad():
        seen = method(loaded(tiny, pets, chosen.items, 100, FOG)).logits
    assert torch.allclose(foggy, seen, atol=1e-4)
