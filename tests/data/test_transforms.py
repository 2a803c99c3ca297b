"""The evaluation transform is Dassl's; the training transform is torchvision's with draws of our own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from shared_paths import GOLDEN
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from promptbench.data.transforms import (
    RATIO,
    SCALE,
    Crop,
    EvaluationTransform,
    TrainingTransform,
    random_crop,
    view_generator,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_evaluation_transform_equals_the_reference() -> None:
    golden = np.load(GOLDEN / "transform_50x37.npz")
    tensor = EvaluationTransform(32, mean=MEAN, std=STD)(Image.fromarray(golden["image_uint8"]))
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), golden["tensor"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (20, 31), (500, 33), (7, 300)])
def test_evaluation_transform_takes_any_size(size: tuple[int, int]) -> None:
    tensor = EvaluationTransform(32, mean=MEAN, std=STD)(noise(*size))
    assert tensor.shape == (3, 32, 32)
    assert torch.isfinite(tensor).all()


def test_training_view_equals_torchvision_on_the_same_crop() -> None:
    image = noise(50, 37)
    crop = random_crop(37, 50, generator=view_generator(1, "a.jpg", epoch=0))
    generator = view_generator(1, "a.jpg", epoch=0)
    view = TrainingTransform(32, mean=MEAN, std=STD)(image, generator)
    expected = F.to_tensor(F.resized_crop(image, *crop, size=[32, 32], interpolation=InterpolationMode.BICUBIC))
    expected = F.normalize(expected, list(MEAN), list(STD))
    assert torch.equal(view, expected) or torch.equal(view, expected.flip(2))


def test_the_same_key_gives_the_same_view_and_any_other_key_another() -> None:
    image, transform = noise(50, 37), TrainingTransform(32, mean=MEAN, std=STD)

    def view(seed: int, key: str, epoch: int) -> torch.Tensor:
        return transform(image, view_generator(seed, key, epoch=epoch))

    first = view(1, "a.jpg", 0)
    assert torch.equal(first, view(1, "a.jpg", 0))
    others = [view(2, "a.jpg", 0), view(1, "b.jpg", 0), view(1, "a.jpg", 1)]
    assert all(not torch.equal(first, other) for other in others)


def test_views_do_not_touch_the_global_generators() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    TrainingTransform(32, mean=MEAN, std=STD)(noise(50, 37), view_generator(1, "a", epoch=0))
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def crops(width: int, height: int, n: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.array([random_crop(width, height, generator=generator) for _ in range(n)])


def test_crops_lie_inside_and_within_scale_and_ratio() -> None:
    top, left, height, width = crops(640, 480, n=2000).T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 480).all() and (left + width <= 640).all()
    scale, ratio = height * width / (640 * 480), width / height
    assert scale.min() >= SCALE[0] - 0.01 and scale.max() <= SCALE[1]
    assert ratio.min() >= RATIO[0] - 0.02 and ratio.max() <= RATIO[1] + 0.02
    assert scale.min() < 0.1 and scale.max() > 0.9  # the whole range is used
    assert ratio.min() < 0.78 and ratio.max() > 1.29


@pytest.mark.parametrize("size", [(640, 480), (100, 100), (300, 90)])
def test_crops_are_distributed_as_torchvision_draws_them(size: tuple[int, int]) -> None:
    ours = crops(*size, n=3000).astype(float)
    torch.manual_seed(0)
    image = Image.new("RGB", size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(3000)], dtype=float)
    spread = theirs.std(axis=0) + 1e-9
    # Means of 3000 draws differ by about 0.026 standard deviations; five times that is far outside chance.
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / spread < 0.13).all()
    assert (np.abs(ours.std(axis=0) / spread - 1) < 0.1).all()


def test_half_of_the_views_are_mirrored() -> None:
    gradient = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    transform = TrainingTransform(8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    mirrored = 0
    for index in range(400):
        view = transform(gradient, view_generator(1, str(index), epoch=0))
        mirrored += bool(view[0, 0, 0] > view[0, 0, -1])
    assert 160 <= mirrored <= 240  # 4 standard deviations around 200


@pytest.mark.parametrize(
    ("size", "expected"),
    # By hand: the largest centred crop with a ratio of 3/4 to 4/3.
    [((1000, 10), Crop(0, 493, 10, 13)), ((10, 1000), Crop(493, 0, 13, 10))],
)
def test_an_extreme_image_falls_back_to_a_centred_crop(size: tuple[int, int], expected: Crop) -> None:
    class Never:
        """Draws areas that never fit."""

        def uniform(self, low: float, high: float) -> float:
            return high

    assert random_crop(*size, generator=Never()) == expected  # type: ignore[arg-type]
