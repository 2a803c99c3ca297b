"""CLIP-Adapter, TaskRes and CLAP compute their formulas at other settings, templates and classes, written out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.zeroshot import SEVEN
from shared_paths import GOLDEN
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, show_training_images
from promptbench.recipe import find_recipe, resolve
from promptbench.training.fit import learning_rate

NAMES = ["sea_lion", "cat", "pizza", "abbey"]
LABELS = torch.tensor([0, 1, 3, 3, 0, 1])  # none of the third class
IMAGENET = (*SEVEN, "a photo of a {}.")
DATASETS: dict[str, tuple[pb.ClassNames, Sequence[str]]] = {
    "one template": (pb.ClassNames(NAMES, "{} texture."), ("{} texture.",)),
    "two templates": (pb.ClassNames(NAMES, ("a {}.", "the {} there.")), ("a {}.", "the {} there.")),
    "ImageNet": (pb.ClassNames(NAMES, dataset="imagenet"), IMAGENET),
}
BY_ROW = ("taskres", "clap")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images_of(features: Tensor) -> Images:
    return Images(features=ImageFeatures(features))


@torch.no_grad()
def text_of(backbone: pb.Backbone, templates: Sequence[str]) -> Tensor:
    """(K, D): names as they are spelled, mean over the templates of features that are not normalised."""
    encoded = []
    for template in templates:
        tokens = backbone.tokenizer([template.format(name) for name in NAMES], context_length=backbone.context_length)
        encoded.append(backbone.clip.encode_text(tokens))
    return torch.stack(encoded).mean(dim=0)


def made(name: str, backbone: pb.Backbone, names: Sequence[str] = NAMES, moved: bool = True, **config: object) -> Any:
    """The method after it has seen two views of six images, its learned tensors moved off their first values."""
    method = pb.create_method(name, backbone, names, **config)
    views = drawn(0, 2, 6, backbone.embed_dim)
    show_training_images(method, [(images_of(view), LABELS) for view in views], seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * moved * torch.randn(parameter.shape, generator=generator))
    return method


def logits_of(backbone: pb.Backbone, image: Tensor, text: Tensor) -> Tensor:
    return backbone.logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def close(measured: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(measured.detach(), expected.detach(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(("name", "config"), [("taskres", {"alpha": 0.7}), ("clap", {"views": 2}), ("clap@zs_lp", {})])
def test_scores_losses_and_gradients_are_those_of_the_formula(
    name: str, config: dict[str, Any], dataset: str, tiny: pb.Backbone
) -> None:
    names, templates = DATASETS[dataset]
    method = made(name, tiny, names, **config)
    (learned,) = method.parameters()
    copy = learned.detach().clone().requires_grad_()
    start, image = text_of(tiny, templates), drawn(3, 6, tiny.embed_dim)
    text = start + 0.7 * copy if name == "taskres" else copy
    logits = logits_of(tiny, image, text)
    close(method(images_of(image)).logits, logits)
    expected = {"ce": F.cross_entropy(logits, LABELS)}
    if name == "clap":
        views = drawn(0, 2, 6, tiny.embed_dim)
        own = [logits_of(tiny, view, start).softmax(dim=-1)[range(6), LABELS] for view in views]
        certain = [torch.stack(own)[:, k == LABELS].mean() for k in (0, 1, 3)]
        multipliers = torch.stack([certain[0], certain[1], torch.tensor(1.0), certain[2]])  # no image of the third
        close(method.multipliers, multipliers, 1e-5)
        expected["constraint"] = sum(multipliers[k] * (copy[k] - start[k]).pow(2).sum() for k in range(4)) / 4
    terms = pb.backward(method, images_of(image), LABELS)
    assert set(terms) == set(expected)
    for term, value in expected.items():
        close(terms[term], value, 2e-5)
    torch.stack(list(expected.values())).sum().backward()
    assert learned.grad is not None and copy.grad is not None
    close(learned.grad, copy.grad, 1e-4 * float(copy.grad.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("name", BY_ROW)
def test_any_of_the_trained_classes_are_scored_by_their_rows_and_the_text_of_the_training(
    name: str, tiny: pb.Backbone
) -> None:
    method = made(name, tiny, pb.ClassNames(NAMES, dataset="imagenet"))
    images = images_of(drawn(3, 5, tiny.embed_dim))
    before = method(images).logits
    for rows in ([3, 1], [2], [0, 1, 2, 3]):
        method.set_classes(pb.ClassNames([NAMES[row] for row in rows], "a sketch of {}.", dataset="imagenet_sketch"))
        close(method(images).logits, before[:, rows])
    with pytest.raises(UsageError, match="for the training classes only"):
        method.set_classes(["cat", "dog"])


@torch.no_grad()
@pytest.mark.parametrize("name", BY_ROW)
def test_training_begins_at_zero_shot_clip(name: str, tiny: pb.Backbone) -> None:
    method, image = made(name, tiny, moved=False), drawn(3, 5, tiny.embed_dim)
    close(method(images_of(image)).logits, logits_of(tiny, image, text_of(tiny, ["a photo of a {}."])))


def test_text_that_is_kept_does_not_depend_on_the_precision_of_the_training(tiny: pb.Backbone) -> None:
    image = images_of(drawn(3, 5, tiny.embed_dim))
    one, other = made("taskres", tiny), made("taskres", tiny)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one.loss(image, LABELS[:5])
    with torch.no_grad():
        assert torch.equal(one(image).logits, other(image).logits)


def test_clap_scores_nothing_and_zs_lp_looks_at_nothing_before_training(tiny: pb.Backbone) -> None:
    method: Any = pb.create_method("clap", tiny, NAMES)
    with pytest.raises(UsageError, match="before `prepare`"):
        method(images_of(drawn(3, 5, tiny.embed_dim)))
    assert method.shown_views == 20 and pb.create_method("clap", tiny, NAMES, views=0).shown_views == 0

    def unread() -> Any:
        pytest.fail("an image was read")
        yield

    probe: Any = pb.create_method("clap@zs_lp", tiny, NAMES)
    probe.prepare(unread())
    assert probe.prototypes.shape == (4, tiny.embed_dim)


@pytest.mark.parametrize("config", [{"reduction": 2, "ratio": 0.6}, {"reduction": 8, "ratio": 1.0}, {}])
def test_clip_adapter_is_its_formula(config: dict[str, Any], tiny: pb.Backbone) -> None:
    names = pb.ClassNames(NAMES, "{} texture.")
    method, image = made("clip_adapter", tiny, names, **config), drawn(3, 6, tiny.embed_dim)
    ratio, reduction = config.get("ratio", 0.2), config.get("reduction", 4)
    first, second = (parameter.detach().clone().requires_grad_() for parameter in method.parameters())
    assert first.shape == (tiny.embed_dim // reduction, tiny.embed_dim) and second.shape == first.T.shape
    adapted = ratio * (second @ (first @ image.T).clamp(min=0)).clamp(min=0).T + (1 - ratio) * image
    text = pb.create_method("zeroshot", tiny, names).text_features()
    logits = logits_of(tiny, adapted, text)
    close(method(images_of(image)).logits, logits)
    with torch.no_grad():  # positively homogeneous: lengths of features do not matter
        close(method(images_of(F.normalize(image, dim=-1))).logits, logits)
    pb.backward(method, images_of(image), LABELS)
    F.cross_entropy(logits, LABELS).backward()
    for ours, theirs in zip(method.parameters(), (first, second), strict=True):
        assert theirs.grad is not None and theirs.grad.any()
        close(ours.grad, theirs.grad, 1e-4 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize(
    ("config", "says"), [({"ratio": 1.2}, "'ratio' is from 0 to 1"), ({"reduction": 99}, "at most")]
)
def test_an_adapter_that_cannot_be_is_refused(config: dict[str, Any], says: str, tiny: pb.Backbone) -> None:
    with pytest.raises(UsageError, match=says):
        pb.create_method("clip_adapter", tiny, NAMES, **config)


def test_recipes_of_taskres() -> None:
    cls = registry.load("methods", "taskres")
    for shots, epochs in {1: 100, 2: 100, 4: 100, 8: 200, 16: 200}.items():
        for dataset, lr, alpha in (("imagenet", 2e-4, 0.5), ("oxford_flowers", 2e-3, 1.0), ("dtd", 2e-3, 0.5)):
            settings = resolve(cls, "taskres", protocol="few_shot", dataset=dataset, shots=shots)
            assert settings.recipe is not None and settings.recipe.origin == "authors"
            assert (settings.recipe.epochs, settings.recipe.lr, settings.config.alpha) == (epochs, lr, alpha)
    general = find_recipe(cls, "domain_generalization", "imagenet").at(4)
    assert (general.epochs, general.lr, general.optimizer, general.weight_decay) == (200, 2e-4, "adam", 5e-4)


@pytest.mark.parametrize(("name", "changes"), [("taskres", {"epochs": 100}), ("clap", {})])
def test_learning_rates_are_those_of_the_reference(name: str, changes: dict[str, Any]) -> None:
    recipe = replace(find_recipe(registry.load("methods", name), "few_shot", "dtd"), **changes)
    stored = json.loads((GOLDEN / "lr_schedule_adapters.json").read_text())[name]
    warm = recipe.warmup_epochs, recipe.warmup_lr
    rates = [learning_rate(recipe.lr, epoch, recipe.epochs, *warm) for epoch in range(recipe.epochs)]
    assert rates == pytest.approx(stored["per_epoch"], rel=1e-9) and recipe.schedule == "epoch"


def test_the_pool_of_clap_is_what_its_training_sees() -> None:
    cls = registry.load("methods", "clap")
    for protocol in ("few_shot", "domain_generalization", "base2new"):
        recipe = find_recipe(cls, protocol, "dtd")
        assert recipe.train_views == cls.Config().views and recipe.crop_scale == cls.shown_scale
        assert recipe.weight_decay == 0.0
