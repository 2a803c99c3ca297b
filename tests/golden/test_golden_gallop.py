"""GalLoP gives the numbers of the official implementation: its dense features, prompts, dropout, losses and steps.

The stored numbers and the tolerances are described in README.md beside this file. There the prompt axis comes last.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from closeness import close, close_to_largest
from torch import Tensor, nn

import promptbench as pb
from promptbench import registry
from promptbench.checkpoints.official import read_official
from promptbench.recipe import find_recipe
from promptbench.training.fit import learning_rate

CASE = "gallop_g4l4"
CONFIG = {"n_global": 4, "n_local": 4, "topk": (2, 4, 6, 8)}
FEATURES, LOGITS, LOSS, GRADIENT, STEP, DELTA, SCORE = 1e-5, 1e-4, 2e-5, 1e-4, 1e-6, 1e-3, 1e-5
Stored = dict[str, Tensor]


def by_variant(stored: Stored, field: str, variant: str, name: str) -> Tensor:
    """The dropout does not reach the local tensors: these are stored once, with the plain mean."""
    return stored.get(f"{field}_{variant}/{name}", stored[f"{field}_mean/{name}"])


@pytest.fixture(scope="module")
def stored(golden_case: Callable[[str], Stored]) -> Stored:
    return golden_case(CASE)


@pytest.fixture
def make(golden_backbone: pb.Backbone, golden_recipe: ModuleType) -> Callable[..., Any]:
    return lambda **config: pb.create_method("gallop", golden_backbone, golden_recipe.CLASS_NAMES, **CONFIG | config)


@pytest.fixture(params=[f"{CASE}-s7101", f"{CASE}-s7101_rawpickle"], ids=["plain", "rawpickle"])
def checkpoint(request: pytest.FixtureRequest, golden_folder: Path) -> Path:
    return golden_folder / request.param


@pytest.fixture
def method(make: Callable[..., Any], golden_folder: Path) -> Any:
    """GalLoP with the learned tensors of the official checkpoint."""
    method = make()
    pb.load_official_checkpoint(method, golden_folder / f"{CASE}-s7101")
    return method


@pytest.fixture(scope="module")
def gallop() -> Any:
    """The method's module, for its functions."""
    return sys.modules[registry.load("methods", "gallop").__module__]


# Where it starts, and what it is given --------------------------------------------------------------------------------


def test_prompts_start_as_the_template_and_the_map_as_the_identity(make: Callable[..., Any], stored: Stored) -> None:
    method = make()
    assert torch.equal(method.global_prompt, stored["init_global_prompt"])
    assert torch.equal(method.local_prompts, stored["init_global_prompt"])
    assert torch.equal(method.local_proj.weight, torch.eye(128))
    plain = make(learn_local_proj=False)
    assert set(pb.official_parameters(plain)) == {"global_prompt", "local_prompts"}


def test_official_names_and_values_are_all_there(make: Callable[..., Any], checkpoint: Path, stored: Stored) -> None:
    method = make()
    pb.load_official_checkpoint(method, checkpoint)
    state, ours = read_official(checkpoint).state, pb.official_parameters(method)
    assert set(ours) == set(state) == {key.removeprefix("grad_mean/") for key in stored if "grad_mean/" in key}
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def test_class_names_are_tokenised_as_if_alone(method: Any, stored: Stored) -> None:
    length = method.tokens.ids.shape[1]
    assert torch.equal(method.tokens.ids, stored["tokenized_class_names"][:, 1 : 1 + length])
    assert not stored["tokenized_class_names"][:, 1 + length :].any()
    assert torch.equal(method.tokens.eot + 1 + 4, stored["eot_index_used"])


# Features and predictions ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_equal_the_reference(method: Any, stored: Stored, golden_images: Tensor) -> None:
    cls, dense = method.dense_features(golden_images)
    close(cls, stored["image_features_unnormalized"], FEATURES)
    close(dense, stored["local_features_unnormalized"], FEATURES)
    close(F.normalize(cls, dim=-1), stored["image_features"], FEATURES)
    close(F.normalize(dense, dim=-1), stored["local_features"], FEATURES)
    features = method.backbone.encode_image(golden_images, local=True)
    close(features.local_unprojected, stored["visual_local_preproj"], FEATURES)
    close(method.backbone.project_local(stored["visual_global_preproj"]), features.cls, FEATURES)
    of_image, of_patches = method.text_features().split(4)
    for measured, name in ((of_image, "text_features"), (of_patches, "local_text_features")):
        close(measured.transpose(0, 1), stored[f"{name}_unnormalized"], FEATURES)
        close(F.normalize(measured, dim=-1).transpose(0, 1), stored[name], FEATURES)


@torch.no_grad()
def test_cosines_and_predictions_equal_the_reference(method: Any, stored: Stored, golden_images: Tensor) -> None:
    of_image, of_patches = method.cosines(golden_images)
    close(of_image.transpose(1, 2), stored["global_logits"], FEATURES)
    close(of_patches.permute(0, 3, 2, 1), stored["local_logits"], FEATURES)
    close(method.backbone.logit_scale, stored["logit_scale_exp"], LOGITS)
    prediction = method(golden_images)
    close(prediction.cosines, stored["global_logits"].mean(dim=-1), FEATURES)
    close(prediction.local, stored["local_logits"].mean(dim=-1), FEATURES)
    best = stored["topk_reduce"].mean(dim=-1)
    scale = stored["logit_scale_exp"]
    close(prediction.logits, scale * (stored["global_logits"].mean(dim=-1) + best) / 2, LOGITS)
    close(prediction.logits.softmax(dim=-1), stored["gl_probs"], SCORE)
    close((scale * prediction.cosines).softmax(dim=-1), stored["global_probs"], SCORE)
    close((2 * prediction.logits - scale * prediction.cosines).softmax(dim=-1), stored["local_probs"], SCORE)


def test_the_largest_patches_are_averaged_as_in_the_reference(gallop: Any, stored: Stored) -> None:
    cosines = stored["local_logits"].permute(0, 3, 2, 1)  # (B, m, K, P)
    for topk, field in (((2, 4, 6, 8), ""), ((5,), "_k5"), ((20,), "_k20_clipped")):
        measured = gallop.mean_of_largest(cosines, topk)
        close(measured.transpose(1, 2), stored[f"topk_reduce{field}"], FEATURES)
    same = gallop.mean_of_largest(cosines, (5, 5, 5, 5))
    close(same.transpose(1, 2), stored["topk_reduce_k5"], FEATURES)
    clipped = gallop.mean_of_largest(cosines, (2, 4, 20, 99))
    close(clipped[:, :2].transpose(1, 2), stored["topk_reduce"][..., :2], FEATURES)
    close(clipped[:, 2:].transpose(1, 2), stored["topk_reduce_k20_clipped"][..., 2:], FEATURES)


@torch.no_grad()
def test_scores_of_the_unfamiliar_follow_from_the_prediction(
    method: Any, stored: Stored, golden_images: Tensor
) -> None:
    prediction = method(golden_images)
    of_image = -prediction.cosines.softmax(dim=-1).amax(dim=-1)
    of_patches = -prediction.local.softmax(dim=-1).amax(dim=(1, 2))
    close(of_image, stored["score_MCM"], SCORE)
    close(of_patches, stored["score_L-MCM"], SCORE)
    close(of_image + of_patches, stored["score_GL-MCM"], SCORE)


@torch.no_grad()
def test_other_classes_equal_the_reference(
    method: Any, stored: Stored, golden_images: Tensor, golden_recipe: ModuleType
) -> None:
    before = method(golden_images).logits
    method.set_classes(golden_recipe.NEW_CLASS_NAMES)
    of_image, of_patches = method.cosines(golden_images)
    close(of_image.transpose(1, 2), stored["newcls_global_logits"], FEATURES)
    close(of_patches.permute(0, 3, 2, 1), stored["newcls_local_logits"], FEATURES)
    close(method(golden_images).logits.softmax(dim=-1), stored["newcls_gl_probs"], SCORE)
    method.set_classes(golden_recipe.CLASS_NAMES)
    assert torch.equal(method(golden_images).logits, before)


@torch.no_grad()
def test_prompts_without_a_name_equal_the_reference(method: Any, stored: Stored) -> None:
    tokens = method.backbone.embed_text([""])
    for prompts, field in ((method.global_prompt, "global"), (method.local_prompts, "local")):
        prefix = torch.cat([tokens.embeddings[:, :1].expand(4, -1, -1), prompts], dim=1)
        features = method.backbone.encode_text(tokens.embeddings[:, 1:], tokens.eot - 1, prefix)
        close(features.transpose(0, 1), stored[f"prompt_features_{field}"], FEATURES)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["mean", "p75", "p50", "p0"])
def test_losses_and_gradients_equal_the_reference(
    variant: str,
    make: Callable[..., Any],
    golden_folder: Path,
    stored: Stored,
    golden_images: Tensor,
    golden_labels: Tensor,
) -> None:
    method = make(dropout=None)
    pb.load_official_checkpoint(method, golden_folder / f"{CASE}-s7101")
    kept = None if variant == "mean" else stored[f"index_{variant}"].flatten(1)
    terms = method.loss(golden_images, golden_labels, kept)
    close(terms["global"], stored[f"loss_global_{variant}"], LOSS)
    close(terms["local"], stored["loss_local"], LOSS)
    loss = sum(terms.values())
    close(loss, stored[f"loss_{variant}"], LOSS)
    loss.backward()
    for name, parameter in pb.official_parameters(method).items():
        close_to_largest(parameter.grad, by_variant(stored, "grad", variant, name), GRADIENT)


@pytest.mark.parametrize(("dropout", "seed", "variant"), [(0.75, 11, "p75"), (0.5, 12, "p50"), (0.0, 13, "p0")])
def test_the_dropout_draws_what_the_reference_draws(
    dropout: float,
    seed: int,
    variant: str,
    make: Callable[..., Any],
    gallop: Any,
    golden_folder: Path,
    stored: Stored,
    golden_images: Tensor,
    golden_labels: Tensor,
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        assert torch.equal(gallop.draw_kept(6, 4, dropout, torch.device("cpu")), stored[f"index_{variant}"].flatten(1))
        method = make(dropout=dropout)
        pb.load_official_checkpoint(method, golden_folder / f"{CASE}-s7101")
        torch.manual_seed(seed)
        close(sum(method.loss(golden_images, golden_labels).values()), stored[f"loss_{variant}"], LOSS)


@pytest.mark.parametrize(
    ("n_global", "dropout", "kept"), [(4, 0.75, 1), (4, 1.0, 1), (4, 0.6, 2), (1, 0.0, 1), (3, 0.0, 3)]
)
def test_the_dropout_keeps_as_many_as_the_reference(gallop: Any, n_global: int, dropout: float, kept: int) -> None:
    drawn = gallop.draw_kept(50, n_global, dropout, torch.device("cpu"))
    assert drawn.shape == (50, kept) and drawn.min() == 0 and drawn.max() == n_global - 1


@pytest.mark.parametrize("variant", ["mean", "p75"])
def test_three_optimiser_steps_equal_the_reference(
    variant: str,
    make: Callable[..., Any],
    golden_folder: Path,
    stored: Stored,
    golden_images: Tensor,
    golden_labels: Tensor,
) -> None:
    method = make(dropout=None)
    pb.load_official_checkpoint(method, golden_folder / f"{CASE}-s7101")
    learned = pb.official_parameters(method)
    before = {name: parameter.detach().clone() for name, parameter in learned.items()}
    recipe = type(method).recipes[("few_shot", "*")]
    optimizer = torch.optim.SGD(
        method.parameter_groups(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    for step in range(3):
        kept = None if variant == "mean" else stored["steps_index_p75"][step].flatten(1)
        loss = sum(method.loss(golden_images, golden_labels, kept).values())
        close(loss, stored[f"losses_{variant}"][step], LOSS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in learned.items():
        close(parameter, by_variant(stored, "step3", variant, name), STEP)
        delta = parameter.detach() - before[name]
        close_to_largest(delta, by_variant(stored, "delta3", variant, name), DELTA)


# The plain forward pass, checked here and used in test_settings.py where no numbers are stored ------------------------


@pytest.mark.slow
def test_plain_forward_equals_the_stored_numbers(
    reference: ModuleType,
    golden_clip: nn.Module,
    golden_images: Tensor,
    golden_labels: Tensor,
    golden_recipe: ModuleType,
    golden_folder: Path,
    stored: Stored,
) -> None:
    weights, state = golden_clip.state_dict(), read_official(golden_folder / f"{CASE}-s7101").state
    for variant in ("mean", "p75", "p50", "p0"):
        learned = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
        out = reference.gallop(weights, golden_images, golden_recipe.CLASS_NAMES, learned, (2, 4, 6, 8))
        for key in out.keys() - {"logits"}:
            close(out[key], stored[key], FEATURES)
        close(out["logits"].softmax(dim=-1), stored["gl_probs"], SCORE)
        kept = None if variant == "mean" else stored[f"index_{variant}"].flatten(1)
        loss = reference.gallop_loss(weights, out, golden_labels, kept)
        close(loss, stored[f"loss_{variant}"], LOSS)
        loss.backward()
        for name, tensor in learned.items():
            close_to_largest(tensor.grad, by_variant(stored, "grad", variant, name), GRADIENT)


def test_learning_rates_are_those_of_the_reference(golden_folder: Path) -> None:
    schedules = json.loads((golden_folder / "lr_schedule_gallop.json").read_text())
    for (protocol, dataset), recipe in registry.load("methods", "gallop").recipes.items():
        assert (recipe.lr, recipe.weight_decay, recipe.warmup_epochs) == (0.002, 1e-2, 0), (protocol, dataset)
    rates = [learning_rate(0.002, epoch, 50, warmup_epochs=0) for epoch in range(50)]
    assert rates == pytest.approx(schedules["maxep50_lr0.002_warm0"]["lr_per_epoch"], rel=1e-9)


@pytest.mark.parametrize(
    ("protocol", "dataset", "epochs", "batch", "origin"),
    [
        ("few_shot", "imagenet", 50, 128, "authors"),
        ("few_shot", "sun397", 200, 128, "authors"),
        ("few_shot", "eurosat", 200, 10, "authors"),
        ("few_shot", "dtd", 200, 32, "authors"),
        ("ood", "imagenet", 50, 128, "authors"),
        ("domain_generalization", "imagenet", 50, 128, "authors"),
        ("cross_dataset", "imagenet", 50, 128, "transferred"),
        ("base2new", "eurosat", 200, 10, "transferred"),
    ],
)
def test_recipes_are_those_of_the_scripts(protocol: str, dataset: str, epochs: int, batch: int, origin: str) -> None:
    recipe = find_recipe(registry.load("methods", "gallop"), protocol, dataset)
    assert (recipe.epochs, recipe.batch, recipe.origin) == (epochs, batch, origin)


# ResNets: no stored numbers; in the authors' code the value path ends in the joint space, and the map acts there ------


def test_on_a_resnet_the_map_acts_in_the_joint_space(golden_recipe: ModuleType, reference: ModuleType) -> None:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 32}
    text = {"width": 64, "heads": 1, "layers": 2, "vocab_size": 49408, "context_length": 77}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True)
        clip.eval().visual.attnpool.c_proj.bias.data.normal_()
        images, labels = torch.randn(3, 3, 64, 64), torch.arange(3)
        backbone = pb.Backbone(clip, tokenizer=golden_recipe.tokenizer())
        method: Any = pb.create_method("gallop", backbone, golden_recipe.CLASS_NAMES, n_local=2, topk=(1, 3))
        for parameter in method.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    assert method.local_proj.weight.shape == (24, 24)
    with torch.no_grad():
        visual, pool = clip.visual, clip.visual.attnpool
        final = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))).flatten(2)  # (B, d, P)
        values = torch.stack([pool.c_proj(pool.v_proj(final[..., j])) for j in range(4)], dim=1)  # (B, P, D)
        dense = F.normalize(values @ method.local_proj.weight.T, dim=-1)
        image = F.normalize(clip.encode_image(images), dim=-1)
        of_image, of_patches = (
            torch.einsum(
                f"b{axis}d,kmd->bmk{axis}",
                features,
                F.normalize(reference.gallop_text(clip.state_dict(), golden_recipe.CLASS_NAMES, prompts), dim=-1),
            )
            for axis, features, prompts in (("", image, method.global_prompt), ("p", dense, method.local_prompts))
        )
        prediction = method(images)
        close(prediction.cosines, of_image.mean(dim=1), FEATURES)
        close(prediction.local, of_patches.mean(dim=1).transpose(1, 2), FEATURES)
        best = (of_patches[:, 0].amax(dim=-1) + of_patches[:, 1].sort(dim=-1).values[..., 1:].mean(dim=-1)) / 2
        close(prediction.logits, clip.logit_scale.exp() * (of_image.mean(dim=1) + best) / 2, LOGITS)
    sum(method.loss(images, labels).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())
