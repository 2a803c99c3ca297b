"""KgCoOp's parts, equal to those of the official implementation; test_golden.py has the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from closeness import close
from torch import Tensor

import promptbench as pb
from promptbench.checkpoints.official import read_official

CASE = "kgcoop_w8"
FEATURES, TERM, GRADIENT = 1e-5, 2e-5, 1e-4  # the last of the largest entry
Stored = dict[str, Tensor]


@pytest.fixture
def stored(golden_case: Callable[[str], Stored]) -> Stored:
    return golden_case(CASE)


@pytest.fixture
def method(golden_backbone: pb.Backbone, golden_recipe: ModuleType, golden_folder: Path) -> Any:
    made = pb.create_method("kgcoop", golden_backbone, golden_recipe.CLASS_NAMES)
    pb.load_official_checkpoint(made, golden_folder / f"{CASE}-s7101")
    return made


def test_every_term_equals_the_reference(
    method: Any, stored: Stored, golden_images: Tensor, golden_labels: Tensor
) -> None:
    close(method.targets.features(), stored["zero_shot_text_features"], FEATURES)
    terms = method.loss(golden_images, golden_labels)
    assert list(terms) == ["ce", "kg"]
    close(terms["ce"], stored["loss_ce"], TERM)
    close(terms["kg"] / 8, stored["loss_kg"], TERM)
    for name, weight in (("ce", 1), ("kg", 8)):
        (gradient,) = torch.autograd.grad(terms[name], [method.ctx], retain_graph=True)
        expected = weight * stored[f"grad_{name}/ctx"]
        close(gradient, expected, GRADIENT * expected.abs().max().item())


def test_tensors_that_nothing_uses_are_passed_over(method: Any, golden_folder: Path) -> None:
    state = read_official(golden_folder / f"{CASE}-s7101").state
    assert {"bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias"} <= set(state)
    assert torch.equal(method.ctx.detach(), state["ctx"])
