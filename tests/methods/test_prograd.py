"""ProGrad computes what its authors' code computes, written out plainly, at other settings than the stored ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import golden_clip as recipe
import golden_reference as reference
import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.prograd import ProGrad, projected
from short_cases import slow_but
from torch import Tensor

import promptbench as pb
from promptbench.cli.describe import describe
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.recipe import resolve

TERM, LOGITS, GRADIENT = 2e-5, 1e-4, 1e-4  # the last of the largest entry
PETS = ClassNames(("abyssinian", "sea_lion"), template="a photo of a {}, a type of pet.", dataset="oxford_pets")
CONFIGS: list[dict[str, Any]] = [
    {"weight": 0.8, "temperature": 2.0, "n_ctx": 5, "ctx_init": "a photo of a", "template": "art of the {}."},
    {"weight": 1.0, "temperature": 0.5, "n_ctx": 3, "ctx_init": ""},
]


@pytest.fixture(scope="module")
def backbone() -> pb.Backbone:
    return pb.Backbone(recipe.build_clip(32), tokenizer=recipe.tokenizer())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return recipe.build_images(32, count=3)


def make(backbone: pb.Backbone, names: Sequence[str] = recipe.CLASS_NAMES, seed: int = 2, **config: object) -> Any:
    """ProGrad with noise on its context, with which some labels are against the teacher and some are not."""
    method: Any = pb.create_method("prograd", backbone, names, **config)
    with torch.no_grad():
        method.ctx.add_(0.3 * torch.randn(method.ctx.shape, generator=torch.Generator().manual_seed(seed)))
    return method


def learned_tokens(backbone: pb.Backbone, words: str) -> Tensor:
    return backbone.embed_text([words]).embeddings[0, 1:-1]


# Equal to the plain computation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", slow_but(["CLASS_NAMES", "NEW_CLASS_NAMES"], "CLASS_NAMES"))
@pytest.mark.parametrize("config", slow_but(CONFIGS, CONFIGS[0]), ids=["words", "random"])
def test_logits_terms_and_the_projected_gradient(
    config: dict[str, Any], classes: str, backbone: pb.Backbone, images: Tensor
) -> None:
    names = getattr(recipe, classes)
    weights, n, T = backbone.clip.state_dict(), config["n_ctx"], config["temperature"]
    text = reference.template_features(weights, names, config.get("template", "a photo of a {}."))
    teacher = reference.logits(weights, reference.encode_image(weights, images), text)
    method = make(backbone, **config)
    method.set_classes(names)
    learned = method.ctx.detach().clone().requires_grad_()
    logits = reference.coop(weights, images, names, learned, words=" ".join(["X"] * n))["logits"]
    torch.testing.assert_close(method(images).logits, logits, atol=LOGITS, rtol=0)
    kl = -(T**2) * ((teacher / T).softmax(dim=1) * (logits / T).log_softmax(dim=1)).sum(dim=1).mean()
    (b,) = torch.autograd.grad(kl, [learned], retain_graph=True)
    unit = b / torch.linalg.norm(b)
    signs = set()
    for label in range(5):
        labels = torch.full((3,), label)
        ce = F.cross_entropy(logits, labels)
        for name, term in method.loss(images, labels).items():
            torch.testing.assert_close(term, {"ce": ce, "kl": kl}[name], atol=TERM, rtol=0)
        (a,) = torch.autograd.grad(ce, [learned], retain_graph=True)
        along = torch.dot(a.flatten(), unit.flatten())
        signs.add(bool(along < 0))
        expected = a - config["weight"] * along * unit if along < 0 else a
        assert list(pb.backward(method, images, labels)) == ["ce"]  # kl guides, and is not minimised
        limit = GRADIENT * a.abs().max().item()
        torch.testing.assert_close(method.ctx.grad, expected, atol=limit, rtol=0)
    assert signs == {True, False}


def test_the_whole_step_s_gradients_are_projected(
    backbone: pb.Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, labels = make(backbone, **CONFIGS[0]), torch.zeros(3, dtype=torch.long)
    terms = method.loss(images, labels)
    ce, kl = (torch.autograd.grad(term, [method.ctx], retain_graph=True)[0] for term in terms.values())
    assert (ce * kl).sum() < 0
    pb.backward(method, images, labels)
    whole = method.ctx.grad.clone()
    torch.testing.assert_close(whole, projected(ce, kl, 0.8), atol=1e-6, rtol=1e-4)
    monkeypatch.setattr(method, "images_at_once", lambda: 1)
    pb.backward(method, images, labels)
    torch.testing.assert_close(method.ctx.grad, whole, atol=GRADIENT * whole.abs().max().item(), rtol=0)


def test_what_is_projected() -> None:
    a, b = torch.tensor([[1.0, 2.0], [0.5, 0.0]]), torch.tensor([[-1.0, 0.0], [-1.0, 0.0]])
    assert (projected(a, b, 1.0) * b).sum() == pytest.approx(0)
    assert torch.equal(projected(a, b, 1.0), torch.tensor([[0.25, 2.0], [-0.25, 0.0]]))
    assert torch.equal(projected(a, b, 0.5), torch.tensor([[0.625, 2.0], [0.125, 0.0]]))
    assert torch.equal(projected(a, -b, 1.0), a)
    assert torch.equal(projected(a, torch.zeros_like(b), 1.0), a)  # where the authors divide by 0 and compare


# Where the context starts ---------------------------------------------------------------------------------------------


def test_zeros_come_first_and_the_word_after_a_comma_s_worth_is_fixed(backbone: pb.Backbone) -> None:
    method: Any = pb.create_method("prograd", backbone, PETS)
    assert method.ctx.shape == (16, 64) and not method.ctx[:8].any()
    words = learned_tokens(backbone, "a type of pet, a photo of a")  # 8 words, 9 tokens
    assert len(words) == 9
    assert torch.equal(method.ctx[8:].detach(), words[:8])
    assert torch.equal(method.sentences.fixed, words[8:])
    assert method.sentences.tokens.ids[1, :4].tolist() == backbone.embed_text(["sea lion."]).ids[0, 1:].tolist()


def test_context_and_teacher_have_the_authors_template_of_the_dataset(backbone: pb.Backbone) -> None:
    method: Any = pb.create_method("prograd", backbone, PETS)
    words = "a type of pet, a photo of a {}."
    expected = F.normalize(reference.template_features(backbone.clip.state_dict(), PETS, words), dim=1)
    torch.testing.assert_close(method.teacher.features(), expected, atol=1e-5, rtol=0)
    other = ClassNames(("pizza", "waffles"), template="a photo of {}, a type of food.", dataset="food101")
    before = method.ctx.detach().clone()
    method.set_classes(other)  # the context stays, and its sentence; the teacher's is the other's
    assert torch.equal(method.ctx, before)
    assert torch.equal(method.sentences.fixed, learned_tokens(backbone, "a"))
    expected = F.normalize(
        reference.template_features(backbone.clip.state_dict(), other, "a type of food, a photo of {}."), dim=1
    )
    torch.testing.assert_close(method.teacher.features(), expected, atol=1e-5, rtol=0)


def test_words_behind_the_name_stay_there(backbone: pb.Backbone) -> None:
    names = ClassNames(("red", "sea_lion"), template="a photo of a {} texture.")
    method: Any = pb.create_method("prograd", backbone, names, n_ctx=4)
    assert torch.equal(method.ctx.detach(), learned_tokens(backbone, "a photo of a"))
    with torch.no_grad():
        found = F.normalize(method.text_features(), dim=1)
    torch.testing.assert_close(found, method.teacher.features(), atol=1e-5, rtol=0)


def test_bad_settings_are_refused(backbone: pb.Backbone) -> None:
    with pytest.raises(UsageError, match="n_ctx is 4, but the initial words 'a type of pet, a photo of a' are 8"):
        make(backbone, PETS, n_ctx=4)
    with pytest.raises(UsageError, match="'temperature' must be more than 0"):
        make(backbone, temperature=0.0)
    with pytest.raises(UsageError, match="'weight' must be at least 0"):
        make(backbone, weight=-0.1)


# Facts of the authors' code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "dataset", "shots", "epochs", "weight", "origin"),
    [
        ("few_shot", "imagenet", 16, 50, 1.0, "authors"),
        ("few_shot", "caltech101", 1, 50, 1.0, "authors"),
        ("few_shot", "caltech101", 16, 200, 1.0, "authors"),
        ("few_shot", "dtd", 4, 100, 1.0, "authors"),
        ("few_shot", "dtd", 8, 200, 0.8, "authors"),
        ("few_shot", "eurosat", 16, 200, 0.8, "authors"),
        ("few_shot", "oxford_flowers", 16, 200, 0.8, "authors"),
        ("few_shot", "oxford_flowers", 2, 100, 1.0, "authors"),
        ("base2new", "dtd", 16, 100, 1.0, "transferred"),
        ("base2new", "imagenet", 16, 50, 1.0, "transferred"),
        ("domain_generalization", "imagenet", 16, 50, 1.0, "authors"),
        ("ood", "imagenet", 16, 50, 1.0, "transferred"),
    ],
)
def test_settings_are_the_authors(
    protocol: str, dataset: str, shots: int, epochs: int, weight: float, origin: str
) -> None:
    config, settings, *_ = resolve(ProGrad, "prograd", protocol=protocol, dataset=dataset, shots=shots)
    assert settings is not None and not settings.overrides_at
    assert (settings.epochs, settings.lr, settings.batch, settings.origin) == (epochs, 0.002, 32, origin)
    assert (config.n_ctx, config.ctx_init, config.weight, config.temperature) == (16, "dataset", weight, 1.0)


def test_the_description_says_where_lambda_is_another() -> None:
    assert "weight=0.8 with shots=8, weight=0.8 with shots=16" in describe("prograd")
