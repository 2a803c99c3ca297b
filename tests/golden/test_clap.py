"""CLAP and ZS-LP give the numbers of the authors' code: the pool, the multipliers, both losses, three steps."""

from __future__ import annotations

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
from promptbench.method import ImageFeatures, Images, show_training_images
from promptbench.training.fit import optimizer_of

CHECKPOINT = Path("clap_l2_v5-s7101/adapter/model.pth.tar-300")
LOGITS, LOSS, STEP, OF_LARGEST = 1e-4, 2e-5, 1e-6, 1e-4
DISTANCE = 1e-5  # relative; text that is cut at the longest prompt has other last digits, which a difference enlarges
Pool = list[tuple[Images, Tensor]]


@pytest.fixture
def stored(golden_case: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return golden_case("clap_l2_v5")


@pytest.fixture
def pool(
    golden_backbone: pb.Backbone, golden_pixels: Callable[..., Tensor], stored: dict[str, Tensor]
) -> list[tuple[Images, Tensor]]:
    """Features of five views of 24 images, view by view, and their labels."""
    with torch.no_grad():
        features = golden_backbone.encode_image(golden_pixels(30, 5, 24).flatten(0, 1)).cls
    close(features, stored["pool_features"], 5e-5)
    return [(Images(features=ImageFeatures(view)), stored["pool_labels"]) for view in features.split(24)]


def made(backbone: pb.Backbone, recipe: ModuleType, pool: Pool, label: str = "clap") -> Any:
    method = pb.create_method(label, backbone, recipe.CLASS_NAMES, views=5)
    show_training_images(method, pool, seed=0)
    return method


@torch.no_grad()
def test_it_starts_at_zero_shot_clip_with_the_multipliers_of_the_reference(
    golden_backbone: pb.Backbone,
    golden_recipe: ModuleType,
    pool: Pool,
    stored: dict[str, Tensor],
    golden_images: Tensor,
) -> None:
    method = made(golden_backbone, golden_recipe, pool)
    close(method.prototypes, stored["base_text_features"], 5e-5)
    close(method(golden_images).logits, stored["zeroshot_logits"], LOGITS)
    close(torch.cat([method(view).logits for view, _ in pool]), stored["pool_logits_zs"], LOGITS)
    close(method.multipliers, stored["multipliers"], 1e-6)
    assert not method.distances().any()
    method = pb.create_method("clap", golden_backbone, golden_recipe.NEW_CLASS_NAMES, constraint="none")
    method.prepare(())
    close(method.text_features(), stored["newcls_base_text_features"], 5e-5)
    close(method(golden_images).logits, stored["newcls_zeroshot_logits"], LOGITS)


@pytest.mark.parametrize(("ending", "label"), [("", "clap"), ("_pool", "clap"), ("_none", "clap@zs_lp")])
def test_losses_and_steps_equal_the_reference(
    ending: str,
    label: str,
    golden_backbone: pb.Backbone,
    golden_recipe: ModuleType,
    golden_folder: Path,
    pool: Pool,
    stored: dict[str, Tensor],
    golden_images: Tensor,
    golden_labels: Tensor,
) -> None:
    method = made(golden_backbone, golden_recipe, pool, label)
    pb.load_official_checkpoint(method, golden_folder / CHECKPOINT)
    before = method.prototypes.detach().clone()
    close(F.normalize(method.text_features(), dim=-1), stored["text_features"], 1e-5)
    close(method.distances(), stored["distances"], 0, relative=DISTANCE)
    images, labels = Images(golden_images), golden_labels
    if ending == "_pool":
        features = torch.cat([view.features.cls for view, _ in pool if view.features is not None])
        images, labels = Images(features=ImageFeatures(features)), stored["pool_labels"].repeat(5)
    recipe = type(method).recipes["few_shot", "*"]
    optimizer = optimizer_of(recipe, [{"params": [method.prototypes], "lr": recipe.lr}])
    losses = []
    for step in range(3):
        terms = pb.backward(method, images, labels)
        losses.append(torch.stack(list(terms.values())).sum())
        if step == 0:
            if not ending:
                close(terms["ce"], stored["loss_ce"], LOSS)
                close(terms["constraint"], stored["loss_constraint"], 0, relative=DISTANCE)
            assert set(terms) == ({"ce"} if ending == "_none" else {"ce", "constraint"})
            gradient = stored[f"grad{ending}/prototypes"]
            close(method.prototypes.grad, gradient, OF_LARGEST * float(gradient.abs().max()))
        optimizer.step()
    close(torch.stack(losses), stored[f"losses{ending}"], LOSS)
    close(method.prototypes, stored[f"step3{ending}/prototypes"], STEP)
    moved = stored[f"delta3{ending}/prototypes"]
    close(method.prototypes - before, moved, 1e-3 * float(moved.abs().max()))
    with torch.no_grad():
        close(method(golden_images).logits, stored[f"logits_step3{ending}"], LOGITS)


@torch.no_grad()
def test_a_checkpoint_may_come_before_the_images(
    golden_backbone: pb.Backbone, golden_recipe: ModuleType, golden_folder: Path, pool: Pool, golden_images: Tensor
) -> None:
    late = made(golden_backbone, golden_recipe, pool)
    early = pb.create_method("clap", golden_backbone, golden_recipe.CLASS_NAMES, views=5)
    for method in (late, early):
        pb.load_official_checkpoint(method, golden_folder / CHECKPOINT)
    show_training_images(early, pool, seed=0)
    assert torch.equal(early(golden_images).logits, late(golden_images).logits)
    assert torch.equal(early.multipliers, late.multipliers)
