"""ProGrad's parts, equal to those of the official implementation; test_golden.py has the whole."""

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
from promptbench.training.fit import optimizer_of

LOGITS, FEATURES, TERM, GRADIENT = 1e-4, 1e-5, 2e-5, 1e-4  # the last of the largest entry
Stored = dict[str, Tensor]


@pytest.fixture(params=["prograd_agree", "prograd_conflict"])
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stored(case: str, golden_case: Callable[[str], Stored]) -> Stored:
    return golden_case(case)


@pytest.fixture
def method(case: str, golden_backbone: pb.Backbone, golden_recipe: ModuleType, golden_folder: Path) -> Any:
    made = pb.create_method("prograd", golden_backbone, golden_recipe.CLASS_NAMES)
    pb.load_official_checkpoint(made, golden_folder / f"{case}-s7101")
    return made


def test_the_teacher_and_both_terms_equal_the_reference(
    method: Any, stored: Stored, golden_images: Tensor, golden_labels: Tensor
) -> None:
    close(method.teacher.features(), stored["zero_shot_text_features"], FEATURES)
    image = method.backbone.encode_image(golden_images)
    close(method.classify(image, method.teacher.features()).logits, stored["zero_shot_logits"], LOGITS)
    terms = method.loss(golden_images, golden_labels)
    assert list(terms) == ["ce", "kl"]
    for name, term in terms.items():
        close(term, stored[f"loss_{name}"], TERM)
        (gradient,) = torch.autograd.grad(term, [method.ctx], retain_graph=True)
        expected = stored[f"grad_{name}/ctx"]
        close(gradient, expected, GRADIENT * expected.abs().max().item())


def test_three_steps_are_projected_where_those_of_the_reference_are(
    method: Any, stored: Stored, golden_images: Tensor, golden_labels: Tensor
) -> None:
    optimizer = optimizer_of(pb.Recipe(epochs=1, lr=0.002, batch=6, origin="ours"), method.parameter_groups())
    for step in range(3):
        terms = method.loss(golden_images, golden_labels)
        close(terms["kl"], stored["losses_kl"][step], TERM)
        ce, kl = (torch.autograd.grad(term, [method.ctx], retain_graph=True)[0] for term in terms.values())
        close(F.cosine_similarity(ce.flatten(), kl.flatten(), dim=0), stored["cos_ce_kl"][step], GRADIENT)
        pb.backward(method, golden_images, golden_labels)
        assert torch.equal(method.ctx.grad, ce) is not bool(stored["projected"][step])
        optimizer.step()
