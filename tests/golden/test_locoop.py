"""LoCoOp's parts, equal to those of the official implementation; test_golden.py has the whole."""

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
from promptbench.metrics.ood import open_scores, scores_of

CASE = "locoop_k4"
LOGITS, FEATURES, TERM, GRADIENT, SCORE = 1e-4, 1e-5, 2e-5, 1e-4, 1e-6  # the gradient's of the largest entry
Stored = dict[str, Tensor]


@pytest.fixture
def stored(golden_case: Callable[[str], Stored]) -> Stored:
    return golden_case(CASE)


@pytest.fixture
def make(golden_backbone: pb.Backbone, golden_recipe: ModuleType, golden_folder: Path) -> Callable[..., Any]:
    def create(topk: int | float) -> Any:
        method = pb.create_method("locoop", golden_backbone, golden_recipe.CLASS_NAMES, topk=topk)
        pb.load_official_checkpoint(method, golden_folder / f"{CASE}-s7101")
        return method

    return create


@torch.no_grad()
def test_patches_and_their_choice_equal_the_reference(
    make: Callable[..., Any], stored: Stored, golden_images: Tensor, golden_labels: Tensor
) -> None:
    method = make(4)
    close(F.normalize(method.encode_images(golden_images).local, dim=-1), stored["local_features"], FEATURES)
    of_patches = method.backbone.logit_scale * method(golden_images).local
    close(of_patches, stored["local_logits"], LOGITS)
    assert torch.equal(method.beside_the_label(of_patches, golden_labels), stored["selected"].bool())
    for k in range(12):  # the label is not among k likeliest where it is k-th or later, from 0 on
        chosen = make(k + 1).beside_the_label(of_patches, golden_labels)
        assert torch.equal(chosen, stored["label_rank"] >= k + 1)


def test_every_term_equals_the_reference(
    make: Callable[..., Any], stored: Stored, golden_images: Tensor, golden_labels: Tensor
) -> None:
    method = make(4)
    terms = method.loss(golden_images, golden_labels)
    assert list(terms) == ["ce", "en"]
    for name, weight in (("ce", 1), ("en", 0.25)):
        close(terms[name] / weight, stored[f"loss_{name}"], TERM)
        (gradient,) = torch.autograd.grad(terms[name], [method.ctx], retain_graph=True)
        expected = weight * stored[f"grad_{name}/ctx"]
        close(gradient, expected, GRADIENT * expected.abs().max().item())


@pytest.mark.slow
@torch.no_grad()
def test_the_term_equals_the_reference_for_every_number_of_classes(
    make: Callable[..., Any], stored: Stored, golden_images: Tensor, golden_labels: Tensor
) -> None:
    for k in range(1, 13):
        term = make(k).loss(golden_images, golden_labels)["en"] / 0.25
        close(term, stored["loss_en_by_k"][k - 1], TERM)


@torch.no_grad()
def test_scores_equal_the_reference_with_the_other_sign(
    make: Callable[..., Any], stored: Stored, golden_images: Tensor
) -> None:
    scores = scores_of(make(4)(golden_images), open_scores(["mcm", "gl_mcm"]))
    close(-scores["mcm"], stored["score_MCM"], SCORE)
    close(-scores["gl_mcm"], stored["score_GL-MCM"], SCORE)
