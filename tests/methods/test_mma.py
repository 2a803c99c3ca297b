"""MMA equals plain towers with adapters beside their blocks, and its adapters learn as if they were not scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, product
from typing import Any

import golden_clip as recipe
import golden_reference as reference
import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.mma import MMA, with_gradient_times
from torch import Tensor

import promptbench as pb
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.method import fit_to_backbone
from promptbench.recipe import resolve

LABELS = torch.tensor([2, 0, 4])
LOGITS, GRADIENT = 1e-4, 1e-4  # the second of a tensor's largest entry
CONFIGS: dict[str, dict[str, Any]] = {
    "as_published": {},  # blocks 2 to 4 of towers with 4 and 6
    "one_block": {"first_layer": 1, "last_layer": 1, "width": 5, "scale": 0.02},
    "below_the_last": {"first_layer": 1, "last_layer": 3, "width": 3, "scale": 2.0, "ctx_init": "a {} texture."},
}


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    """Towers of different depths."""
    return recipe.build_clip(23, text_layers=4, vision_layers=6)


@pytest.fixture
def backbone(clip: torch.nn.Module) -> pb.Backbone:
    return pb.Backbone(clip, tokenizer=recipe.tokenizer(), name="small")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return recipe.build_images(23, count=len(LABELS))


def make(backbone: pb.Backbone, names: Sequence[str] = recipe.CLASS_NAMES, **config: Any) -> Any:
    """The method as if it had been trained."""
    method = pb.create_method("mma", backbone, names, **config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


class Plain:
    """The formula, block by block, with the authors' tensors."""

    def __init__(self, weights: Mapping[str, Tensor], config: Any, learned: Mapping[str, Tensor]) -> None:
        self.weights, self.config, self.learned = weights, config, learned

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.learned[f"{name}.weight"].T + self.learned[f"{name}.bias"]

    def run(self, tower: str, prefix: str, x: Tensor) -> Tensor:
        """Tokens x (N, T, d) after all blocks of a tower."""
        for index in range(reference.layers(self.weights, f"{prefix}transformer.resblocks.")):
            block, i = f"{prefix}transformer.resblocks.{index}", index + 1
            y = reference.block(self.weights, block, x, causal=tower == "text")
            if self.config.first_layer <= i <= self.config.last_layer:
                h = reference.layer_norm(self.weights, f"{block}.ln_1", x)
                h = self.linear(f"{tower}_adapter.{i}.down.0", h).relu()
                h = self.linear(f"shared_adapter.{i}.0", h).relu()
                y = y + self.config.scale * self.linear(f"{tower}_adapter.{i}.up", h)
            x = y
        return x

    def logits(self, images: Tensor, names: Sequence[str], template: str) -> Tensor:
        weights = self.weights
        ids = reference.tokenize([template.format(name.replace("_", " ")) for name in names])
        x = weights["token_embedding.weight"][ids] + weights["positional_embedding"]
        x = reference.layer_norm(weights, "ln_final", self.run("text", "", x))
        text = x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ weights["text_projection"]
        x = reference.layer_norm(weights, "visual.ln_pre", reference.image_tokens(weights, images))
        x = self.run("visual", "visual.", x)[:, 0]
        return reference.logits(
            weights, reference.layer_norm(weights, "visual.ln_post", x) @ weights["visual.proj"], text
        )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_and_gradients(
    config: dict[str, Any], clip: torch.nn.Module, images: Tensor, backbone: pb.Backbone
) -> None:
    method, template = make(backbone, **config), config.get("ctx_init", "a photo of a {}.")
    ours = pb.official_parameters(method)
    theirs = {name: parameter.detach().clone().requires_grad_() for name, parameter in ours.items()}
    plain = Plain(clip.state_dict(), method.config, theirs)
    expected = plain.logits(images, recipe.CLASS_NAMES, template)
    torch.testing.assert_close(method(images).logits, expected, atol=LOGITS, rtol=0)
    pb.backward(method, images, LABELS)
    F.cross_entropy(expected, LABELS).backward()
    for name, parameter in ours.items():
        wanted = theirs[name].grad / method.config.scale  # as if the adapters were not scaled
        largest = wanted.abs().max().item()
        assert largest > 0, name
        torch.testing.assert_close(parameter.grad, wanted, atol=GRADIENT * largest, rtol=0)
    method.set_classes(recipe.NEW_CLASS_NAMES)
    other = plain.logits(images, recipe.NEW_CLASS_NAMES, template)
    torch.testing.assert_close(method(images).logits, other, atol=LOGITS, rtol=0)


def test_a_gradient_is_multiplied_and_nothing_else() -> None:
    x = torch.tensor([2.0, -3.0], requires_grad=True)
    (3 * with_gradient_times(0.5, x) ** 2).sum().backward()
    assert torch.equal(with_gradient_times(0.5, x), x) and torch.equal(x.grad, torch.tensor([6.0, -9.0]))


def test_towers_share_the_middle_layers(backbone: pb.Backbone) -> None:
    method = make(backbone, width=6)
    layers, kinds = "234", ("weight", "bias")
    own = product(("text_adapter", "visual_adapter"), layers, ("down.0", "up"), kinds)
    shared = product(["shared_adapter"], layers, "0", kinds)
    assert set(pb.official_parameters(method)) == set(map(".".join, chain(own, shared)))
    fresh = pb.create_method("mma", backbone, recipe.CLASS_NAMES, width=100)
    for name, parameter in fresh.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:  # kaiming, fan out
            assert parameter.std().item() == pytest.approx((2 / len(parameter)) ** 0.5, rel=0.1)


def test_the_sentence_may_be_the_dataset_s(backbone: pb.Backbone, images: Tensor) -> None:
    names = ClassNames(recipe.CLASS_NAMES, template=("a {} texture.", "a photo of a {}."))
    method = make(backbone, names, ctx_init="dataset")
    assert torch.equal(method(images).logits, make(backbone, names, ctx_init="a {} texture.")(images).logits)
    plain = make(backbone, names)(images).logits
    assert torch.equal(plain, make(backbone, names, ctx_init="a photo of a {}.")(images).logits)
    assert not torch.equal(plain, method(images).logits)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"first_layer": 4, "last_layer": 3}, "'first_layer' is 4, behind 'last_layer', 3"),
        ({"last_layer": 5}, "last_layer is 5, but text_depth of backbone 'small' is 4"),
        ({"first_layer": 0}, "'first_layer' takes an integer of at least 1"),
        ({"scale": 0.0}, "'scale' must be more than 0"),
        ({"width": 0}, "'width' takes an integer of at least 1"),
        ({"ctx_init": "a {} or {}"}, "must hold {} exactly once"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: dict[str, Any], says: str, backbone: pb.Backbone) -> None:
    with pytest.raises(UsageError, match=says):
        make(backbone, **config)


@pytest.mark.parametrize(
    ("protocol", "dataset", "batch", "origin"),
    [
        ("base2new", "dtd", 16, "authors"),
        ("base2new", "imagenet", 128, "authors"),
        ("cross_dataset", "imagenet", 128, "transferred"),
        ("few_shot", "imagenet", 128, "transferred"),
        ("few_shot", "dtd", 16, "transferred"),
    ],
)
def test_settings_are_the_authors(protocol: str, dataset: str, batch: int, origin: str, backbone: pb.Backbone) -> None:
    config, training, *_ = resolve(MMA, "mma", protocol=protocol, dataset=dataset)
    assert training is not None
    assert (training.epochs, training.lr, training.warmup_epochs) == (5, 0.0015, 0)
    assert (training.batch, training.origin, training.optimizer) == (batch, origin, "sgd")
    assert (config.first_layer, config.last_layer, config.width, config.scale) == (5, 12, 32, 0.001)
    fitted: Any = fit_to_backbone(config, backbone, explicit=())
    assert (fitted.first_layer, fitted.last_layer) == (2, 4)  # the same parts of four blocks
