"""CoCoOp gives its official numbers whatever the memory budget: in one go, images apart, classes apart.

The stored numbers and the tolerances are described in README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import promptbench as pb

CASE = "cocoop_init4"
FEATURES, LOGITS, LOSS, GRADIENT, STEP, DELTA = 1e-5, 1e-4, 2e-5, 1e-4, 1e-6, 1e-3
BUDGETS = {"whole": 2 * 2**30, "images apart": 4_000_000, "classes apart": 600_000}


def close(measured: Tensor | None, stored: Tensor, tolerance: float, of_largest: bool = False) -> None:
    assert measured is not None
    if of_largest:
        tolerance *= stored.abs().max().item()
    torch.testing.assert_close(measured.detach(), stored, atol=tolerance, rtol=0)


@pytest.fixture
def stored(golden_case: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return golden_case(CASE)


@pytest.fixture(params=BUDGETS.values(), ids=BUDGETS)
def untrained(request: pytest.FixtureRequest, golden_clip: torch.nn.Module, golden_recipe: ModuleType) -> pb.Method:
    backbone = pb.Backbone(golden_clip, tokenizer=golden_recipe.tokenizer(), memory_budget=request.param)
    return pb.create_method("cocoop", backbone, golden_recipe.CLASS_NAMES)


@pytest.fixture
def method(untrained: pb.Method, golden_folder: Path) -> pb.Method:
    pb.load_official_checkpoint(untrained, golden_folder / f"{CASE}-s7101")
    return untrained


def test_context_starts_from_the_words(untrained: pb.Method, stored: dict[str, Tensor]) -> None:
    assert torch.equal(pb.official_parameters(untrained)["ctx"].detach(), stored["init_ctx"])


@torch.no_grad()
def test_predictions_equal_the_reference(
    method: pb.Method, stored: dict[str, Tensor], golden_images: Tensor, golden_recipe: ModuleType
) -> None:
    image = method.backbone.encode_image(golden_images).cls
    close(F.normalize(image, dim=-1), stored["image_features"], FEATURES)
    close(method.meta_net(F.normalize(image, dim=-1)), stored["meta_bias"], FEATURES)
    close(F.normalize(method.conditional_text(image), dim=-1), stored["text_features"], FEATURES)
    close(method(golden_images).logits, stored["logits"], LOGITS)
    method.set_classes(golden_recipe.NEW_CLASS_NAMES)
    close(method(golden_images).logits, stored["newcls_logits"], LOGITS)
    close(F.normalize(method.conditional_text(image), dim=-1), stored["newcls_text_features"], FEATURES)


def test_loss_gradients_and_three_steps_equal_the_reference(
    method: pb.Method, stored: dict[str, Tensor], golden_images: Tensor, golden_labels: Tensor
) -> None:
    learned = pb.official_parameters(method)
    before = {name: parameter.detach().clone() for name, parameter in learned.items()}
    optimizer = torch.optim.SGD(method.parameter_groups(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    for step in range(3):
        loss = method.loss(golden_images, golden_labels)["ce"]
        close(loss, stored["losses"][step], LOSS)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            close(loss, stored["loss"], LOSS)
            close(loss, stored["loss_train_mode"], LOSS)
            assert {f"grad/{name}" for name in learned} == {name for name in stored if name.startswith("grad/")}
            for name, parameter in learned.items():
                close(parameter.grad, stored[f"grad/{name}"], GRADIENT, of_largest=True)
        optimizer.step()
    for name, parameter in learned.items():
        close(parameter, stored[f"step3/{name}"], STEP)
        close(parameter.detach() - before[name], stored[f"delta3/{name}"], DELTA, of_largest=True)
        close(optimizer.state[parameter]["momentum_buffer"], stored[f"momentum3/{name}"], DELTA, of_largest=True)
    with torch.no_grad():
        close(method(golden_images).logits, stored["logits_step3"], LOGITS)
