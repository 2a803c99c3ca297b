"""TCP computes what its authors' code computes, written out plainly, at other settings than the stored ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import golden_clip as recipe
import golden_reference as reference
import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.tcp import AROUND, TCP
from short_cases import slow_but
from torch import Tensor

import promptbench as pb
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.method import fit_to_backbone
from promptbench.recipe import resolve

LABELS = torch.tensor([2, 0, 4])
TERM, LOGITS, GRADIENT = 2e-5, 1e-4, 1e-4  # the last of the largest entry
CONFIGS: dict[str, dict[str, Any]] = {
    "short": {"n_ctx": 2, "layer": 3, "weight": 0.5, "template": "art of the {}."},
    "words": {"ctx_init": "a photo of a", "layer": 1},
    "long": {"n_ctx": 6},
}


@pytest.fixture(scope="module")
def backbone() -> pb.Backbone:
    return pb.Backbone(recipe.build_clip(33), tokenizer=recipe.tokenizer())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return recipe.build_images(33, count=len(LABELS))


def make(backbone: pb.Backbone, names: Sequence[str] = recipe.CLASS_NAMES, **config: object) -> Any:
    """TCP with noise on all that it learns."""
    method: Any = pb.create_method("tcp", backbone, names, **config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return method


def plain_text(
    weights: reference.Weights,
    names: Sequence[str],
    learned: Mapping[str, Tensor],
    target: Tensor,
    layer: int,
    template: str = "{}.",
) -> Tensor:
    """Text features (K, D) as the authors compute them: 77 tokens of every class through all blocks."""
    ctx = learned["ctx"]
    hidden = target @ learned["meta_net.linear1.weight"].T + learned["meta_net.linear1.bias"]
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    states = hidden @ learned["meta_net.linear2.weight"].T + learned["meta_net.linear2.bias"]
    states = states.reshape(len(names), 4, -1)
    blanks = " ".join(["X"] * max(4, len(ctx)))
    ids = reference.tokenize([f"{blanks} {template.format(name.replace('_', ' '))}" for name in names])
    embedded = weights["token_embedding.weight"][ids]
    own = ctx.expand(len(names), *ctx.shape)
    x = torch.cat([embedded[:, :1], own, embedded[:, 1 + len(ctx) :]], dim=1) + weights["positional_embedding"]
    for index in range(4):
        if index == layer:
            x = torch.cat([x[:, :1], states, x[:, 5:]], dim=1)
        x = reference.block(weights, f"transformer.resblocks.{index}", x, causal=True)
    x = reference.layer_norm(weights, "ln_final", x)
    return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ weights["text_projection"]


@pytest.mark.parametrize("classes", slow_but(["CLASS_NAMES", "NEW_CLASS_NAMES"], "CLASS_NAMES"))
@pytest.mark.parametrize("setting", slow_but(CONFIGS, "short"))
def test_logits_terms_and_gradients(setting: str, classes: str, backbone: pb.Backbone, images: Tensor) -> None:
    names, config, weights = getattr(recipe, classes), CONFIGS[setting], backbone.clip.state_dict()
    method = make(backbone, **config)
    method.loss(images, LABELS)  # what is kept of the first classes must not be used for the others
    method.set_classes(names)
    ours = pb.official_parameters(method)
    learned = {name: parameter.detach().clone().requires_grad_() for name, parameter in ours.items()}
    target = F.normalize(reference.template_features(weights, names, config.get("template", "a photo of a {}.")), dim=1)
    text = F.normalize(plain_text(weights, names, learned, target, config.get("layer", 3)), dim=1)
    logits = reference.logits(weights, reference.encode_image(weights, images), text)
    torch.testing.assert_close(method(images).logits, logits, atol=LOGITS, rtol=0)
    pull = 1 - (text * target).sum(dim=1).mean()
    expected = {"ce": F.cross_entropy(logits, LABELS), "kg": config.get("weight", 8.0) * pull}
    terms = method.loss(images, LABELS)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, atol=TERM, rtol=0)
    sum(terms.values()).backward()
    sum(expected.values()).backward()  # type: ignore[union-attr]
    for name, tensor in learned.items():
        assert tensor.grad is not None and tensor.grad.any()
        limit = GRADIENT * tensor.grad.abs().max().item()
        torch.testing.assert_close(ours[name].grad, tensor.grad, atol=limit, rtol=0)


# Texts of the authors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "template", "prompt", "target"),
    [
        ("stanford_cars", "a photo of a {}.", "X X X X {}, a type of car", "a photo of a {}."),
        ("ucf101", "a photo of a person doing {}.", "X X X X person doing {}.", "a photo of a person doing {}."),
        ("dtd", "{} texture.", "X X X X {} texture.", "a photo of a {}, a type of texture."),
        (
            "food101",
            "a photo of {}, a type of food.",
            "X X X X {}, a type of food.",
            "a photo of a {}, a type of food.",
        ),
        (
            "fgvc_aircraft",
            "a photo of a {}, a type of aircraft.",
            "X X X X {}, a type of aircraft.",
            "a photo of an aircraft {}.",
        ),
        ("eurosat", "a centered satellite photo of {}.", "X X X X {}.", "a centered satellite photo of {}."),
        ("mini_colours", "a photo of a {} object.", "X X X X {} object.", "a photo of a {} object."),
    ],
)
def test_prompt_and_target_have_texts_of_their_own(
    dataset: str, template: str, prompt: str, target: str, backbone: pb.Backbone
) -> None:
    names = ClassNames(("red", "sea_lion"), template=template, dataset=dataset)
    method = make(backbone, names)
    wanted = backbone.embed_text([prompt.replace("{}", name.replace("_", " ")) for name in names])
    fixed, rest = method.sentences.fixed, method.sentences.tokens
    assert torch.equal(fixed, wanted.embeddings[0, 5 : 5 + len(fixed)])
    assert torch.equal(rest.ids, wanted.ids[:, 5 + len(fixed) :])
    text = F.normalize(reference.template_features(backbone.clip.state_dict(), names, target), dim=1)
    torch.testing.assert_close(method.targets.features(), text, atol=1e-5, rtol=0)


def test_the_table_of_prompts_has_all_datasets_of_the_authors() -> None:
    assert len(AROUND) == 15 and all(text.count("{}") == 1 for text in AROUND.values())


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "layer"), [(12, 8), (24, 16), (6, 4), (4, 3), (3, 2), (2, 1)])
def test_the_layer_is_as_deep_in_proportion(depth: int, layer: int) -> None:
    class Shape:
        name, text_depth = "some", depth

    assert fit_to_backbone(TCP.Config(), Shape(), explicit=()).layer == layer  # type: ignore[attr-defined]


def test_bad_settings_are_refused(backbone: pb.Backbone) -> None:
    with pytest.raises(
        UsageError, match="layer is 4, but text_depth of backbone 'custom' is 4, and it must stay below"
    ):
        make(backbone, layer=4)
    with pytest.raises(UsageError, match="'layer' takes an integer of at least 1, not 0"):
        make(backbone, layer=0)
    with pytest.raises(UsageError, match="'ctx_init' takes words alone"):
        make(backbone, ctx_init="a photo of a {} texture.")
    with pytest.raises(UsageError, match="n_ctx is 4, but ctx_init 'one photo' has 2 words"):
        make(backbone, ctx_init="one photo")
    assert len(make(backbone, ctx_init="one photo", n_ctx=None).ctx) == 2


@pytest.mark.parametrize(
    ("protocol", "dataset", "epochs", "origin"),
    [
        ("base2new", "dtd", 50, "authors"),
        ("base2new", "imagenet", 25, "authors"),
        ("base2new", "sun397", 25, "authors"),
        ("cross_dataset", "imagenet", 25, "transferred"),
        ("few_shot", "dtd", 50, "transferred"),
        ("few_shot", "sun397", 25, "transferred"),
    ],
)
def test_settings_are_the_authors(protocol: str, dataset: str, epochs: int, origin: str) -> None:
    config, settings, *_ = resolve(TCP, "tcp", protocol=protocol, dataset=dataset)
    assert settings is not None
    assert (settings.epochs, settings.lr, settings.batch, settings.origin) == (epochs, 0.002, 32, origin)
    assert (settings.optimizer, settings.eps, settings.weight_decay) == ("adam", 1e-3, 5e-4)
    assert (config.n_ctx, config.ctx_init, config.layer, config.weight) == (4, "", 8, 8.0)
