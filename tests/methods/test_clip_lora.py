"""CLIP-LoRA equals plain towers whose weights have the low-rank products added, wherever it changes them."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import golden_clip as recipe
import golden_reference as reference
import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.clip_lora import PARTS, CLIPLoRA, blocks_at, blocks_of_images
from torch import Tensor

import promptbench as pb
from promptbench.clip.image_tower import ImageFeatures
from promptbench.config import UsageError
from promptbench.method import fit_to_backbone
from promptbench.recipe import resolve

LABELS = torch.tensor([2, 0, 4])
LOGITS, GRADIENT = 2e-4, 1e-4  # the second of a tensor's largest entry
CONFIGS: dict[str, dict[str, Any]] = {
    "as_published": {},
    "output": {"params": ("o",), "rank": 1, "alpha": 3.0},
    "all_four": {"params": ("o", "q", "v", "k"), "rank": 4, "position": "half-up"},
    "text": {"encoder": "text", "position": "mid"},
    "vision": {"encoder": "vision", "params": ("v",), "position": "top3"},
}
WHERE = {"q": 0, "k": 1, "v": 2}  # in the packed projection
OFFICIAL = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    """Towers of different depths."""
    return recipe.build_clip(22, text_layers=4, vision_layers=6)


@pytest.fixture
def backbone(clip: torch.nn.Module) -> pb.Backbone:
    return pb.Backbone(clip, tokenizer=recipe.tokenizer())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return recipe.build_images(22, count=len(LABELS))


def make(backbone: pb.Backbone, **config: Any) -> Any:
    """The method as if it had been trained, without dropout unless that is asked for."""
    method = pb.create_method("clip_lora", backbone, recipe.CLASS_NAMES, **{"dropout": 0.0, **config})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


def with_products(weights: Mapping[str, Tensor], config: Any, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of both towers with the products of the authors' tensors added, layer after layer."""
    changed, layer = dict(weights), 0
    for tower, prefix in (("text", ""), ("vision", "visual.")):
        if config.encoder not in ("both", tower):
            continue
        depth = reference.layers(weights, f"{prefix}transformer.resblocks.")
        for index in blocks_at(config.position, depth):
            name = f"{prefix}transformer.resblocks.{index}.attn"
            packed = list(weights[f"{name}.in_proj_weight"].chunk(3))
            out = weights[f"{name}.out_proj.weight"]
            for matrix in config.params:
                of_matrix = f"layer_{layer}.{OFFICIAL[matrix]}.w_lora"
                change = config.alpha / config.rank**0.5 * learned[f"{of_matrix}_B"] @ learned[f"{of_matrix}_A"]
                if matrix == "o":
                    out = out + change
                else:
                    packed[WHERE[matrix]] = packed[WHERE[matrix]] + change
            changed[f"{name}.in_proj_weight"], changed[f"{name}.out_proj.weight"] = torch.cat(packed), out
            layer += 1
    assert len(learned) == 2 * layer * len(config.params)
    return changed


def plain_logits(clip: torch.nn.Module, images: Tensor, names: Any, config: Any, learned: Any) -> Tensor:
    weights = with_products(clip.state_dict(), config, learned)
    text = reference.template_features(weights, names, "a photo of a {}.")
    return reference.logits(weights, reference.encode_image(weights, images), text)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_and_gradients(
    config: dict[str, Any], clip: torch.nn.Module, images: Tensor, backbone: pb.Backbone
) -> None:
    method = make(backbone, **config)
    ours = pb.official_parameters(method)
    theirs = {name: parameter.detach().clone().requires_grad_() for name, parameter in ours.items()}
    expected = plain_logits(clip, images, recipe.CLASS_NAMES, method.config, theirs)
    with torch.no_grad():  # the products are in the weights
        torch.testing.assert_close(method(images).logits, expected, atol=LOGITS, rtol=0)
    loss = pb.backward(method, images, LABELS)
    assert list(loss) == ["ce"]
    F.cross_entropy(expected, LABELS).backward()
    for name, parameter in ours.items():
        limit = GRADIENT * theirs[name].grad.abs().max().item()
        assert limit > 0
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=limit, rtol=0)
    method.set_classes(recipe.NEW_CLASS_NAMES)
    other = plain_logits(clip, images, recipe.NEW_CLASS_NAMES, method.config, theirs)
    torch.testing.assert_close(method(images).logits, other, atol=LOGITS, rtol=0)


def test_before_training_it_is_zero_shot_clip(backbone: pb.Backbone, images: Tensor) -> None:
    method = pb.create_method("clip_lora", backbone, recipe.CLASS_NAMES)
    zeroshot = pb.create_method("zeroshot", backbone, recipe.CLASS_NAMES)
    torch.testing.assert_close(method(images).logits, zeroshot(images).logits, atol=LOGITS, rtol=0)
    for name, parameter in pb.official_parameters(method).items():
        if name.endswith("B"):
            assert not parameter.any()
        else:  # a linear layer's: uniform within 1 / sqrt(d)
            assert 0.8 < parameter.abs().max() * parameter.shape[1] ** 0.5 <= 1


# Dropout --------------------------------------------------------------------------------------------------------------


def test_training_drops_and_evaluation_does_not(backbone: pb.Backbone, images: Tensor) -> None:
    method, without = make(backbone, dropout=0.5), make(backbone)
    expected = without(images).logits
    assert torch.equal(method(images).logits, expected)
    losses = {float(pb.backward(method, images, LABELS)["ce"].detach()) for _ in range(2)}
    assert len(losses) == 2
    with torch.no_grad():
        method.train()(images)  # texts that were read with masks are not kept for the evaluation
    assert torch.equal(method.eval()(images).logits, expected)


def test_a_frozen_tower_is_run_once(backbone: pb.Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, seen = backbone.encode_text, []

    def counting(*arguments: Any, **keywords: Any) -> Tensor:
        seen.append(1)
        return encode(*arguments, **keywords)

    monkeypatch.setattr(backbone, "encode_text", counting)
    of_images = make(backbone, encoder="vision", dropout=0.25)
    assert not of_images.frozen_image_tower
    for _ in range(3):
        pb.backward(of_images, images, LABELS)
    assert len(seen) == 1
    of_texts = make(backbone, encoder="text", dropout=0.25)
    assert of_texts.frozen_image_tower
    features = pb.Images(features=ImageFeatures(backbone.encode_image(images).cls))
    torch.testing.assert_close(of_texts(features).logits, of_texts(images).logits, atol=1e-4, rtol=0)


# Where, how long, and what is refused ---------------------------------------------------------------------------------


def test_positions_in_twelve_blocks_are_the_authors() -> None:
    found = {position: list(blocks_at(position, 12)) for position in (*PARTS, "top3")}
    assert found == {
        "all": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        "up": [8, 9, 10, 11],
        "half-up": [6, 7, 8, 9, 10, 11],
        "mid": [4, 5, 6, 7],
        "bottom": [0, 1, 2, 3],
        "half-bottom": [0, 1, 2, 3, 4, 5],
        "top3": [9, 10, 11],
    }


def test_positions_in_other_depths_are_the_same_parts() -> None:
    assert list(blocks_at("half-up", 24)) == list(range(12, 24))
    assert [list(blocks_at(position, 32)) for position in ("bottom", "mid", "up")] == [
        list(range(10)),
        list(range(10, 21)),
        list(range(21, 32)),
    ]
    for depth in range(1, 40):
        parts = [set(blocks_at(position, depth)) for position in (*PARTS, "top3")]
        assert all(part and part <= set(range(depth)) for part in parts)


def test_a_position_that_the_authors_do_not_have_is_refused() -> None:
    large: Any = SimpleNamespace(name="ViT-L-14", vision_depth=24)
    assert list(blocks_of_images("half-bottom", large)) == list(range(12))
    for position in ("up", "mid", "bottom", "top3"):
        with pytest.raises(UsageError, match=f"no position '{position}' in an image tower of 24 blocks"):
            blocks_of_images(position, large)
    with pytest.raises(UsageError, match="image tower without transformer blocks"):
        blocks_of_images("all", SimpleNamespace(name="RN50", vision_depth=0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"params": ("q", "x")}, "'params' takes some of q, k, v and o, each once"),
        ({"params": ("q", "q")}, "'params' takes some of q, k, v and o, each once"),
        ({"params": ()}, "'params' takes some of q, k, v and o, each once"),
        ({"dropout": 1.0}, "'dropout' must be at least 0 and less than 1, not 1.0"),
        ({"rank": 0}, "'rank' takes an integer of at least 1"),
        ({"encoder": "image"}, "'encoder'"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: dict[str, Any], says: str, backbone: pb.Backbone) -> None:
    with pytest.raises(UsageError, match=says):
        make(backbone, **config)


@pytest.mark.parametrize(
    ("protocol", "shots", "steps", "origin"),
    [("few_shot", 1, 500, "authors"), ("few_shot", 16, 8000, "authors"), ("base2new", 4, 2000, "transferred")],
)
def test_settings_are_the_authors(protocol: str, shots: int, steps: int, origin: str) -> None:
    config, training, *_ = resolve(CLIPLoRA, "clip_lora", protocol=protocol, dataset="dtd", shots=shots)
    assert training is not None
    assert (training.steps, training.epochs, training.batch, training.drop_last) == (steps, 0, 32, False)
    assert (training.optimizer, training.lr, training.weight_decay) == ("adamw", 2e-4, 1e-2)
    assert (training.schedule, training.lr_end, training.warmup_epochs) == ("step", 1e-6, 0)
    assert (training.betas, training.eps, training.origin) == ((0.9, 0.999), 1e-8, origin)
    assert config == fit_to_backbone(config, None, explicit=()) == CLIPLoRA.Config()
    assert (config.rank, config.alpha, config.params, config.dropout) == (2, 1.0, ("q", "k", "v"), 0.25)
