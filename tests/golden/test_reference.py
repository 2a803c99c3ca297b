"""The plain forward passes of `reference.py` and the recipe of `golden_clip.py` give the stored reference numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from closeness import close
from torch import Tensor, nn

from promptbench.checkpoints.official import read_official

FEATURES, LOGITS, LOSS, GRADIENT = 1e-5, 1e-4, 2e-5, 1e-4
Case = Callable[[str], dict[str, Tensor]]


def test_weights_follow_the_recipe(golden_clip: nn.Module, golden_folder: Path) -> None:
    checks = json.loads((golden_folder / "clip_small-s7101_weight_checks.json").read_text())
    state = golden_clip.state_dict()
    assert set(state) == set(checks)
    for name, check in checks.items():
        tensor = state[name].double()
        assert list(tensor.shape) == check["shape"], name
        assert tensor.sum().item() == pytest.approx(check["sum"], rel=1e-12, abs=1e-9), name
        assert tensor.abs().sum().item() == pytest.approx(check["abs_sum"], rel=1e-12), name
        assert tensor.flatten()[:3].tolist() == check["first3"], name


def test_names_and_labels_are_those_of_the_cases(golden_recipe: ModuleType, golden_folder: Path) -> None:
    cases = json.loads((golden_folder / "cases.json").read_text())
    assert list(golden_recipe.CLASS_NAMES) == cases["class_names"]
    assert list(golden_recipe.NEW_CLASS_NAMES) == cases["new_class_names"]
    assert list(golden_recipe.LABELS) == cases["labels"]


@torch.no_grad()
def test_open_clip_on_the_recipe_equals_the_stored_features(
    golden_clip: nn.Module, golden_images: Tensor, golden_case: Case, golden_recipe: ModuleType
) -> None:
    stored = golden_case("clip_small")
    tokens = golden_recipe.tokenizer()([f"a photo of a {n.replace('_', ' ')}." for n in golden_recipe.CLASS_NAMES])
    assert torch.equal(golden_images.flatten()[:8], stored["images_first8"].flatten())
    assert torch.equal(tokens, stored["tokens"])
    image, text = golden_clip.encode_image(golden_images), golden_clip.encode_text(tokens)
    close(image, stored["encode_image"], FEATURES)
    close(text, stored["encode_text"], FEATURES)
    logits = golden_clip.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    close(logits, stored["logits_per_image"], LOGITS)


def forward(
    reference: ModuleType,
    case: str,
    clip: nn.Module,
    images: Tensor,
    names: tuple[str, ...],
    learned: dict[str, Tensor],
) -> dict[str, Tensor]:
    weights = clip.state_dict()
    if case == "coop_end_init":
        return reference.coop(weights, images, names, learned["ctx"], words="a photo of a")
    if case == "coop_middle_16":
        return reference.coop(weights, images, names, learned["ctx"], position="middle")
    if case == "cocoop_init4":
        return reference.cocoop(weights, images, names, learned, words="a photo of a")
    if case == "maple_d3":
        return reference.maple(weights, images, names, learned, words="a photo of a")
    return reference.vpt(weights, images, names, list(learned.values()))


@pytest.mark.parametrize("case", ["cocoop_init4", "coop_end_init", "coop_middle_16", "maple_d3", "vpt_d3"])
def test_plain_forward_equals_the_stored_numbers(
    case: str,
    reference: ModuleType,
    golden_clip: nn.Module,
    golden_images: Tensor,
    golden_labels: Tensor,
    golden_case: Case,
    golden_recipe: ModuleType,
    golden_folder: Path,
) -> None:
    stored = golden_case(case)
    state = read_official(golden_folder / f"{case}-s7101").state
    names = [key.removeprefix("grad/") for key in stored if key.startswith("grad/")]
    learned = {name: state[name].clone().requires_grad_() for name in names}
    out = forward(reference, case, golden_clip, golden_images, golden_recipe.CLASS_NAMES, learned)
    loss = F.cross_entropy(out["logits"], golden_labels)
    loss.backward()
    for key in out:
        close(out[key], stored[key], LOGITS if key == "logits" else FEATURES)
    close(loss, stored["loss"], LOSS)
    for name in names:
        close(learned[name].grad, stored[f"grad/{name}"], GRADIENT * stored[f"grad/{name}"].abs().max().item())
    new = forward(reference, case, golden_clip, golden_images, golden_recipe.NEW_CLASS_NAMES, learned)
    close(new["logits"], stored["newcls_logits"], LOGITS)
    close(new["text_features"], stored["newcls_text_features"], FEATURES)
