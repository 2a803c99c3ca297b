"""Our methods give the numbers of the official implementations: outputs, gradients, three optimiser steps.

The stored numbers and the tolerances are described in README.md beside this file.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from closeness import close, close_to_largest
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.method import show_training_images
from promptbench.training.fit import optimizer_of

FEW = {"n_ctx": 4, "ctx_init": "a photo of a"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clap_l2_v5": ("clap", {"views": 5, "constraint": "l2"}),
    "clip_adapter_r4_02": ("clip_adapter", {"reduction": 4, "ratio": 0.2}),
    "clip_lora_r2_qkv_all": ("clip_lora", {"rank": 2, "alpha": 1.0, "params": ("q", "k", "v"), "dropout": 0.0}),
    "cocoop_init4": ("cocoop", {"n_ctx": 4, "ctx_init": "a photo of a"}),
    "coop_end_init": ("coop", {"n_ctx": 4, "ctx_init": "a photo of a", "class_token_position": "end"}),
    "coop_middle_16": ("coop", {"n_ctx": 16, "ctx_init": "", "class_token_position": "middle"}),
    "kgcoop_w8": ("kgcoop", {**FEW, "weight": 8.0}),
    "locoop_k4": ("locoop", {"n_ctx": 16, "ctx_init": "", "weight": 0.25, "topk": 4}),
    "maple_d3": ("maple", {"n_ctx": 2, "ctx_init": "a photo of a", "depth": 3}),
    "mma_l34_d8": ("mma", {"first_layer": 3, "last_layer": 4, "width": 8, "scale": 0.001}),
    "prograd_agree": ("prograd", {}),
    "prograd_conflict": ("prograd", {}),
    "taskres_a05": ("taskres", {"alpha": 0.5}),
    "tcp_layer2_w8": ("tcp", {"n_ctx": 4, "ctx_init": "", "layer": 2, "weight": 8.0}),
    "vpt_d3": ("vpt", {"n_ctx": 4, "depth": 3}),
}
CASES = {case: found for case, found in CASES.items() if found[0] in registry.names("methods")}
STEPS: dict[str, dict[str, Any]] = {
    "clap_l2_v5": {"lr": 0.1, "weight_decay": 0.0},
    "clip_lora_r2_qkv_all": {"lr": 2e-4, "weight_decay": 1e-2, "optimizer": "adamw"},
    "mma_l34_d8": {"lr": 1.5e-3},
    "taskres_a05": {"optimizer": "adam"},
    "tcp_layer2_w8": {"optimizer": "adam", "eps": 1e-3},
}
"""How the optimiser of three steps differs from SGD with a learning rate of 0.002 and a weight decay of 5e-4."""
PROMPTS = ("cocoop_init4", "coop_end_init", "coop_middle_16", "maple_d3", "vpt_d3")
"""Cases whose changes of the image tower, if any, are visual prompts."""
AS_SPELLED = ("clap_l2_v5", "taskres_a05")
"""Cases whose authors leave underscores in class names."""
SHOWN = {"clap_l2_v5": (30, 5, "pool_labels")}
"""What is shown to `prepare`: tag, views, and labels of random views of 24 images."""
BLANKS = dict.fromkeys(("prograd_agree", "prograd_conflict"), " ".join(["X"] * 12 + ["a photo of a"]))
BLANKS["tcp_layer2_w8"] = "a photo of a"  # which the context replaces
"""Words around the name where they are others than those that the context starts from."""
FEATURES, LOGITS, LOSS, GRADIENT, STEP, DELTA = 1e-5, 1e-4, 2e-5, 1e-4, 1e-6, 1e-3
OF_LR, MEAN_OF_LR = 0.05, 1e-4  # of a step of Adam, which hardly depends on the size of a gradient


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def stored(case: str, golden_case: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return golden_case(case)


@pytest.fixture
def facts(case: str, golden_folder: Path) -> dict[str, Any]:
    """What `cases.json` says of the case."""
    found: dict[str, Any] = json.loads((golden_folder / "cases.json").read_text())["cases"][f"{case}-s7101"]
    return found


@pytest.fixture
def backbone(facts: dict[str, Any], golden_backbone: pb.Backbone) -> pb.Backbone:
    """The small CLIP, with the logit scale of the case where the authors' code has one of its own."""
    if "logit_scale" not in facts["hyper"]:
        return golden_backbone
    clip = copy.deepcopy(golden_backbone.clip)
    clip.logit_scale.fill_(math.log(facts["hyper"]["logit_scale"]))
    return pb.Backbone(clip, golden_backbone.tokenizer)


@pytest.fixture
def untrained(
    case: str,
    backbone: pb.Backbone,
    golden_recipe: ModuleType,
    golden_pixels: Callable[..., Tensor],
    stored: dict[str, Tensor],
) -> pb.Method:
    name, config = CASES[case]
    method = pb.create_method(name, backbone, golden_recipe.CLASS_NAMES, **config)
    if case in SHOWN:
        tag, views, labels = SHOWN[case]
        show_training_images(method, ((pixels, stored[labels]) for pixels in golden_pixels(tag, views, 24)), seed=0)
    return method


@pytest.fixture
def method(untrained: pb.Method, facts: dict[str, Any], golden_folder: Path) -> pb.Method:
    """The method with the learned tensors of the case's official checkpoint."""
    pb.load_official_checkpoint(untrained, golden_folder / facts["checkpoint"])
    return untrained


def text_features(method: Any, images: Tensor) -> Tensor:
    """(K, D), or (B, K, D) of a method whose text depends on the image; normalised."""
    if hasattr(method, "conditional_text"):
        return F.normalize(method.conditional_text(method.backbone.encode_image(images).cls), dim=-1)
    return F.normalize(method.text_features(), dim=-1)


STARTED = ("cocoop_init4", "coop_end_init", "kgcoop_w8", "maple_d3", "prograd_agree")


@pytest.mark.parametrize("case", [case for case in CASES if case in STARTED], indirect=True)
def test_context_starts_from_the_words(untrained: pb.Method, stored: dict[str, Tensor]) -> None:
    context = next(p for name, p in pb.official_parameters(untrained).items() if name.endswith("ctx"))
    assert torch.equal(context.detach(), stored["init_ctx"])


def test_official_names_are_all_there(method: pb.Method, stored: dict[str, Tensor]) -> None:
    learned = {key.removeprefix("grad/") for key in stored if key.startswith("grad/")}
    assert set(pb.official_parameters(method)) == learned


@torch.no_grad()
def test_predictions_equal_the_reference(method: pb.Method, stored: dict[str, Tensor], golden_images: Tensor) -> None:
    prediction = method(golden_images)
    close(prediction.logits, stored["logits"], LOGITS)
    text = stored["text_features"].expand(len(golden_images), -1, -1)
    close(prediction.cosines, torch.einsum("bd,bkd->bk", stored["image_features"], text), FEATURES)
    close(text_features(method, golden_images), stored["text_features"], FEATURES)


@pytest.mark.parametrize("case", [case for case in CASES if case in PROMPTS], indirect=True)
@torch.no_grad()
def test_image_features_equal_the_reference(
    case: str, method: Any, stored: dict[str, Tensor], golden_images: Tensor
) -> None:
    if hasattr(method, "visual_prompts"):
        projected = case.startswith("maple")
        prompts = method.visual_prompts() if projected else list(method.visual_prompts)
        for i, prompt in enumerate(prompts if projected else []):
            close(prompt, stored[f"visual_prompt_{i}"], FEATURES)
        features = method.backbone.encode_image(golden_images, prompts[0], dict(enumerate(prompts[1:], start=1)))
    else:
        features = method.backbone.encode_image(golden_images)
    if case.startswith("cocoop"):
        close(method.shift(features.cls), stored["meta_bias"], FEATURES)
    close(F.normalize(features.cls, dim=-1), stored["image_features"], FEATURES)


def test_loss_and_every_gradient_equal_the_reference(
    method: pb.Method, stored: dict[str, Tensor], golden_images: Tensor, golden_labels: Tensor
) -> None:
    loss = torch.stack(list(pb.backward(method, golden_images, golden_labels).values())).sum()
    close(loss, stored["losses"][0], LOSS)
    for name, parameter in pb.official_parameters(method).items():
        close_to_largest(parameter.grad, stored[f"grad/{name}"], GRADIENT)


def test_three_optimiser_steps_equal_the_reference(
    case: str, method: pb.Method, stored: dict[str, Tensor], golden_images: Tensor, golden_labels: Tensor
) -> None:
    learned = pb.official_parameters(method)
    before = {name: parameter.detach().clone() for name, parameter in learned.items()}
    recipe = pb.Recipe(epochs=1, batch=6, origin="ours", **{"lr": 0.002, **STEPS.get(case, {})})
    optimizer = optimizer_of(recipe, method.parameter_groups())
    losses = []
    for _ in range(3):
        losses.append(torch.stack(list(pb.backward(method, golden_images, golden_labels).values())).sum())
        optimizer.step()
    close(torch.stack(losses), stored["losses"], LOSS)
    for name, parameter in learned.items():
        moved = parameter.detach() - before[name]
        if recipe.optimizer != "sgd":  # near a gradient of 0 its steps follow rounding: counted in learning rates
            close(moved, stored[f"delta3/{name}"], OF_LR * recipe.lr)
            assert (moved - stored[f"delta3/{name}"]).abs().mean() < MEAN_OF_LR * recipe.lr
            continue
        close(parameter, stored[f"step3/{name}"], STEP)
        close_to_largest(moved, stored[f"delta3/{name}"], DELTA)
        close_to_largest(optimizer.state[parameter]["momentum_buffer"], stored[f"momentum3/{name}"], DELTA)
    with torch.no_grad():
        close(method(golden_images).logits, stored["logits_step3"], LOGITS)


@torch.no_grad()
def test_other_classes_equal_the_reference(
    method: pb.Method, stored: dict[str, Tensor], golden_images: Tensor, golden_recipe: ModuleType
) -> None:
    if method.transfers is not True:
        with pytest.raises(pb.UsageError, match="cannot score these classes"):
            method.set_classes(golden_recipe.NEW_CLASS_NAMES)
        return
    before = method(golden_images).logits
    method.set_classes(golden_recipe.NEW_CLASS_NAMES)
    close(method(golden_images).logits, stored["newcls_logits"], LOGITS)
    close(text_features(method, golden_images), stored["newcls_text_features"], FEATURES)
    method.set_classes(golden_recipe.CLASS_NAMES)
    assert torch.equal(method(golden_images).logits, before)


@pytest.mark.parametrize("case", [case for case in CASES if case not in AS_SPELLED], indirect=True)
@torch.no_grad()
def test_prompts_are_tokenised_as_in_the_reference(
    case: str, stored: dict[str, Tensor], golden_backbone: pb.Backbone, golden_recipe: ModuleType
) -> None:
    config = CASES[case][1]
    words = config.get("ctx_init", "a photo of a") or " ".join(["X"] * config["n_ctx"])
    words = BLANKS.get(case, words)
    names = [name.replace("_", " ") for name in golden_recipe.CLASS_NAMES]
    ids = golden_backbone.embed_text([f"{words} {name}." for name in names]).ids
    assert torch.equal(ids, stored["tokenized_prompts"][:, : ids.shape[1]])
    assert not stored["tokenized_prompts"][:, ids.shape[1] :].any()
    if "name_lens" in stored:
        assert torch.equal(golden_backbone.embed_text(names).eot - 1, stored["name_lens"])


@torch.no_grad()
def test_raw_pickle_gives_the_same_logits(
    golden_backbone: pb.Backbone,
    golden_recipe: ModuleType,
    golden_folder: Path,
    golden_images: Tensor,
    golden_case: Callable[[str], dict[str, Tensor]],
) -> None:
    method = pb.create_method("coop", golden_backbone, golden_recipe.NEW_CLASS_NAMES, ctx_init="a photo of a")
    before = method(golden_images).logits
    pb.load_official_checkpoint(method, golden_folder / "coop_end_init-s7101_rawpickle")
    after = method(golden_images).logits
    assert not torch.allclose(before, after)
    close(after, golden_case("coop_end_init")["newcls_logits"], LOGITS)
