"""Tip-Adapter and Tip-Adapter-F give the numbers of the authors' code: keys, logits, the search, three steps of AdamW.

README.md beside this file describes the fields. The authors multiply by 100, so that the small CLIP has that scale
here; the fields that end in `_scale30` are of its own scale.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from closeness import close
from torch import Tensor

import promptbench as pb
from promptbench.method import ImageFeatures, Images
from promptbench.training.fit import optimizer_of

FEATURES, LOGITS, LOGITS_30, LOSS, LOSS_30, GRADIENT = 1e-5, 3e-4, 1e-4, 1e-4, 2e-5, 1e-4
METHODS = {"tip_adapter": "tip_adapter_v10_shots2", "tip_adapter_f": "tip_adapter_f_v10_shots2"}
TRAINED = Path("tip_adapter_f_v10_shots2-s7101/caches/caltech101")


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def stored(name: str, golden_case: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return golden_case(METHODS[name])


@pytest.fixture(scope="module")
def views(
    golden_clip: torch.nn.Module, golden_recipe: ModuleType, golden_pixels: Callable[..., Tensor]
) -> list[ImageFeatures]:
    """Features (24, 32) of the training images, view by view."""
    backbone = pb.Backbone(golden_clip, tokenizer=golden_recipe.tokenizer())
    with torch.no_grad():
        return [backbone.encode_image(pixels) for pixels in golden_pixels(20, 10, 24)]


@pytest.fixture
def make(
    golden_backbone: pb.Backbone,
    golden_recipe: ModuleType,
    golden_folder: Path,
    views: list[ImageFeatures],
    stored: dict[str, Tensor],
) -> Callable[..., Any]:
    """The method after it has seen the views of the case; -F with the keys that the authors' code learned."""

    def create(name: str, scale: float = 100.0, **config: object) -> Any:
        clip = copy.deepcopy(golden_backbone.clip)
        clip.logit_scale.fill_(math.log(scale))
        backbone = pb.Backbone(clip, golden_backbone.tokenizer)
        names = pb.ClassNames(golden_recipe.CLASS_NAMES, dataset="sun397")  # whose search ends where the case's does
        method = pb.create_method(name, backbone, names, **config)
        with torch.no_grad():
            method.prepare((Images(features=features), stored["cache_labels"]) for features in views)
        if name == "tip_adapter_f":
            close(method.keys, stored["cache_keys"], FEATURES)
            pb.load_official_checkpoint(method, golden_folder / TRAINED / "best_F_2shots.pt")
        return method

    return create


def test_the_views_are_those_of_the_reference(views: list[ImageFeatures], stored: dict[str, Tensor]) -> None:
    close(torch.stack([features.cls for features in views]), stored["cache_view_features"], 5e-5)


@torch.no_grad()
def test_the_cache_and_its_scores_equal_the_reference(
    name: str, make: Callable[..., Any], stored: dict[str, Tensor], golden_images: Tensor
) -> None:
    method = make(name)
    close(method.values, stored["cache_values"], 0)
    if name == "tip_adapter":
        close(method.keys, stored["cache_keys"], FEATURES)
    image = method.backbone.encode_image(golden_images).cls
    close(F.normalize(method.text_features(), dim=-1), stored["text_features"], FEATURES)
    close(method.classify(image, method.text_features()).logits, stored["zeroshot_logits"], LOGITS)
    close(method.affinity(image), stored["affinity"], FEATURES)
    prediction = method(golden_images)
    close(prediction.logits, stored["logits"], LOGITS)
    close(prediction.cosines, stored["logits"] / 100, LOGITS / 100)
    close((prediction.logits - stored["zeroshot_logits"]) / 1.17, stored["cache_logits"], LOGITS)
    close(make(name, scale=30.0)(golden_images).logits, stored["logits_scale30"], LOGITS_30)


def test_the_keys_are_those_of_the_file(golden_folder: Path, make: Callable[..., Any]) -> None:
    learned = torch.load(golden_folder / TRAINED / "best_F_2shots.pt", weights_only=True)
    assert torch.equal(make("tip_adapter_f").keys, learned)


@torch.no_grad()
def test_the_search_equals_the_reference(
    name: str,
    make: Callable[..., Any],
    stored: dict[str, Tensor],
    golden_images: Tensor,
    golden_pixels: Callable[..., Tensor],
) -> None:
    method = make(name, search="all")
    assert method.validates == "all"
    pixels, labels = golden_pixels(22, 60), stored["val_labels"]
    close(F.normalize(method.backbone.encode_image(pixels).cls, dim=-1), stored["val_features"], FEATURES)
    before = accuracy(method, pixels, labels)
    method.choose((Images(pixels[start : start + 25]), labels[start : start + 25]) for start in (0, 25, 50))
    close(torch.stack([method.beta, method.alpha]), stored["search_beta_alpha"], 1e-6)
    close(method(golden_images).logits, stored["logits_searched"], LOGITS)
    found = torch.stack([before, accuracy(method, pixels, labels)])
    close(found, stored["val_accuracy_init_and_searched"], 1e-4)


def accuracy(method: Any, pixels: Tensor, labels: Tensor) -> Tensor:
    return 100 * (method(pixels).logits.argmax(dim=-1) == labels).float().mean()


@pytest.mark.parametrize("name", ["tip_adapter_f"], indirect=True)
@pytest.mark.parametrize(("scale", "ending"), [(100.0, ""), (30.0, "_scale30")])
def test_three_steps_equal_the_reference(
    scale: float,
    ending: str,
    make: Callable[..., Any],
    stored: dict[str, Tensor],
    golden_images: Tensor,
    golden_labels: Tensor,
) -> None:
    method = make("tip_adapter_f", scale=scale)
    recipe = type(method).recipes["few_shot", "*"]
    before = method.keys.detach().clone()
    optimizer = optimizer_of(recipe, [{"params": [method.keys], "lr": recipe.lr}])
    losses = []
    for step in range(3):
        losses.append(pb.backward(method, golden_images, golden_labels)["ce"])
        if step == 0:
            gradient = stored[f"grad{ending}/adapter.weight"]
            close(method.keys.grad, gradient, GRADIENT * float(gradient.abs().max()))
        optimizer.step()
    close(torch.stack(losses), stored[f"losses{ending}"], LOSS if scale == 100.0 else LOSS_30)
    moved = method.keys.detach() - before - stored[f"delta3{ending}/adapter.weight"]
    assert moved.abs().max() < 0.05 * recipe.lr and moved.abs().mean() < 1e-4 * recipe.lr
    if not ending:
        close(method(golden_images).logits, stored["logits_step3"], LOGITS)


@pytest.mark.parametrize("name", ["tip_adapter_f"], indirect=True)
def test_a_file_of_keys_in_the_other_orientation_is_refused(make: Callable[..., Any], golden_folder: Path) -> None:
    fresh = make("tip_adapter_f")
    with pytest.raises(pb.UsageError, match=r"is \(32, 24\) in the file, \(24, 32\) here"):
        pb.load_official_checkpoint(fresh, golden_folder / TRAINED / "keys_2shots.pt")
    empty = pb.create_method("tip_adapter_f", fresh.backbone, ["cat", "dog"])
    with pytest.raises(pb.UsageError, match=r"is \(32, 24\) in the file, \(0, 32\) here"):
        pb.load_official_checkpoint(empty, golden_folder / TRAINED / "keys_2shots.pt")


@torch.no_grad()
@pytest.mark.parametrize("name", ["tip_adapter_f"], indirect=True)
def test_learned_keys_may_come_before_the_images(
    make: Callable[..., Any],
    golden_recipe: ModuleType,
    golden_folder: Path,
    views: list[ImageFeatures],
    stored: dict[str, Tensor],
    golden_images: Tensor,
) -> None:
    late = make("tip_adapter_f")
    early = pb.create_method("tip_adapter_f", late.backbone, golden_recipe.CLASS_NAMES)
    pb.load_official_checkpoint(early, golden_folder / TRAINED / "best_F_2shots.pt")
    early.prepare((Images(features=features), stored["cache_labels"]) for features in views)
    assert torch.equal(early(golden_images).logits, late(golden_images).logits)
