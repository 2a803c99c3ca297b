"""KgCoOp computes what its authors' code computes, written out plainly, at other settings than the stored ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import golden_clip as recipe
import golden_reference as reference
import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.kgcoop import KgCoOp
from short_cases import slow_but
from torch import Tensor

import promptbench as pb
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.recipe import resolve

LABELS = torch.tensor([2, 0, 4])
TERM, LOGITS, GRADIENT = 2e-5, 1e-4, 1e-4  # the last of the largest entry
CONFIGS: list[dict[str, Any]] = [
    {},
    {"ctx_init": "", "n_ctx": 3, "weight": 0.5},
    {"ctx_init": "one picture_showing", "template": "a {} in a video game."},
]


@pytest.fixture(scope="module")
def backbone() -> pb.Backbone:
    return pb.Backbone(recipe.build_clip(31), tokenizer=recipe.tokenizer())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return recipe.build_images(31, count=len(LABELS))


def make(backbone: pb.Backbone, names: Sequence[str] = recipe.CLASS_NAMES, **config: object) -> Any:
    """KgCoOp with noise on its context."""
    method: Any = pb.create_method("kgcoop", backbone, names, **config)
    with torch.no_grad():
        method.ctx.add_(0.1 * torch.randn(method.ctx.shape, generator=torch.Generator().manual_seed(5)))
    return method


@pytest.mark.parametrize("classes", slow_but(["CLASS_NAMES", "NEW_CLASS_NAMES"], "CLASS_NAMES"))
@pytest.mark.parametrize("config", slow_but(CONFIGS, CONFIGS[-1]), ids=["published", "random", "other"])
def test_logits_terms_and_gradients(
    config: dict[str, Any], classes: str, backbone: pb.Backbone, images: Tensor
) -> None:
    names = getattr(recipe, classes)
    method, weights = make(backbone, **config), backbone.clip.state_dict()
    method.loss(images, LABELS)  # what is kept of the first classes must not be used for the others
    method.set_classes(names)
    learned = method.ctx.detach().clone().requires_grad_()
    words = config.get("ctx_init", "a photo of a").replace("_", " ")
    plain = reference.coop(weights, images, names, learned, words=words)
    target = F.normalize(reference.template_features(weights, names, config.get("template", "a photo of a {}.")), dim=1)
    torch.testing.assert_close(method(images).logits, plain["logits"], atol=LOGITS, rtol=0)
    pull = 1 - (plain["text_features"] * target).sum(dim=1).mean()
    expected = {"ce": F.cross_entropy(plain["logits"], LABELS), "kg": config.get("weight", 8.0) * pull}
    terms = method.loss(images, LABELS)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, atol=TERM, rtol=0)
    sum(terms.values()).backward()
    sum(expected.values()).backward()  # type: ignore[union-attr]
    assert learned.grad is not None
    limit = GRADIENT * learned.grad.abs().max().item()
    torch.testing.assert_close(method.ctx.grad, learned.grad, atol=limit, rtol=0)


@pytest.mark.parametrize(
    ("dataset", "template", "expected"),
    [
        ("dtd", "{} texture.", "a photo of a {}, a type of texture."),
        ("eurosat", "a centered satellite photo of {}.", "a centered satellite photo of {}."),
        ("mini_fabrics", "a {} fabric.", "a {} fabric."),
    ],
)
def test_the_target_is_read_in_the_authors_template(
    dataset: str, template: str, expected: str, backbone: pb.Backbone
) -> None:
    names = ClassNames(("red", "sea_lion"), template=template, dataset=dataset)
    found = make(backbone, names).targets.features()
    wanted = F.normalize(reference.template_features(backbone.clip.state_dict(), names, expected), dim=1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("protocol", "dataset", "origin"),
    [
        ("base2new", "imagenet", "authors"),
        ("few_shot", "dtd", "authors"),
        ("cross_dataset", "imagenet", "transferred"),
        ("ood", "imagenet", "transferred"),
    ],
)
def test_settings_are_the_authors(protocol: str, dataset: str, origin: str) -> None:
    config, settings, *_ = resolve(KgCoOp, "kgcoop", protocol=protocol, dataset=dataset)
    assert settings is not None
    assert (settings.epochs, settings.lr, settings.batch, settings.origin) == (100, 0.002, 128, origin)
    assert (config.n_ctx, config.ctx_init, config.weight, config.template) == (None, "a photo of a", 8.0, "dataset")


def test_bad_settings_are_refused(backbone: pb.Backbone) -> None:
    with pytest.raises(UsageError, match="'weight' must be at least 0"):
        make(backbone, weight=-1.0)
    with pytest.raises(UsageError, match=r"must hold \{\} exactly once"):
        make(backbone, template="a photo")
    with pytest.raises(UsageError, match="is longer than the 77 tokens"):
        make(backbone, template="very " * 80 + "{}.")  # found before anything is trained
