"""TCP's parts, equal to those of the official implementation; test_golden.py has the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from closeness import close, close_to_largest
from torch import Tensor

import promptbench as pb
from promptbench.training.fit import optimizer_of

CASE = "tcp_layer2_w8"
FEATURES, TERM, GRADIENT, MOMENT = 1e-5, 2e-5, 1e-4, 1e-3  # the last two of the largest entry
Stored = dict[str, Tensor]


@pytest.fixture
def stored(golden_case: Callable[[str], Stored]) -> Stored:
    return golden_case(CASE)


@pytest.fixture
def method(golden_backbone: pb.Backbone, golden_recipe: ModuleType, golden_folder: Path) -> Any:
    made = pb.create_method("tcp", golden_backbone, golden_recipe.CLASS_NAMES, layer=2)
    pb.load_official_checkpoint(made, golden_folder / f"{CASE}-s7101")
    return made


@torch.no_grad()
def test_class_prompts_equal_the_reference(method: Any, stored: Stored, golden_recipe: ModuleType) -> None:
    close(method.targets.features(), stored["zero_shot_text_features"], FEATURES)
    close(method.class_prompts(), stored["class_prompts"], FEATURES)
    method.set_classes(golden_recipe.NEW_CLASS_NAMES)
    close(method.targets.features(), stored["newcls_zero_shot_text_features"], FEATURES)
    close(method.class_prompts(), stored["newcls_class_prompts"], FEATURES)


def test_every_term_equals_the_reference(
    method: Any, stored: Stored, golden_images: Tensor, golden_labels: Tensor
) -> None:
    terms = method.loss(golden_images, golden_labels)
    assert list(terms) == ["ce", "kg"]
    close(terms["ce"] + terms["kg"], stored["loss_train_mode"], TERM)
    for name, weight in (("ce", 1), ("kg", 8)):
        close(terms[name] / weight, stored[f"loss_{name}"], TERM)
        gradients = torch.autograd.grad(terms[name], list(method.parameters()), retain_graph=True)
        for (key, _), gradient in zip(method.named_parameters(), gradients, strict=True):
            close_to_largest(gradient / weight, stored[f"grad_{name}/{key}"], GRADIENT)


def test_moments_of_adam_after_three_steps_equal_the_reference(
    method: Any, stored: Stored, golden_images: Tensor, golden_labels: Tensor
) -> None:
    recipe = type(method).recipes[("base2new", "*")]
    assert (recipe.optimizer, recipe.lr, recipe.betas, recipe.eps) == ("adam", 0.002, (0.9, 0.999), 1e-3)
    optimizer = optimizer_of(recipe, method.parameter_groups())
    for _ in range(3):
        pb.backward(method, golden_images, golden_labels)
        optimizer.step()
    for name, parameter in method.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            close_to_largest(optimizer.state[parameter][moment], stored[f"{moment}3/{name}"], MOMENT)
        close(parameter, stored[f"step3/{name}"], 5e-6)  # as README.md beside this file has it for Adam
