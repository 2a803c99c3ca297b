"""Tip-Adapter and Tip-Adapter-F compute their formula at other settings, score what they hold, and search as told."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.tip_adapter import AUTHORS
from promptbench.methods.zeroshot import SEVEN
from shared_paths import GOLDEN
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, MethodConfig, show_training_images, show_validation_images
from promptbench.recipe import find_recipe, resolve
from promptbench.training.fit import learning_rate

NAMES = ["sea_lion", "cat", "pizza", "abbey"]
LABELS = torch.tensor([0, 0, 1, 3, 3])  # none of the third class
BOTH = ("tip_adapter", "tip_adapter_f")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shown(features: Tensor, size: int) -> list[tuple[Images, Tensor]]:
    """Views of images, (views, N, D), in batches within one view."""
    batches = []
    for view in features:
        parts = zip(view.split(size), LABELS.split(size), strict=True)
        batches += [(Images(features=ImageFeatures(part)), labels) for part, labels in parts]
    return batches


def made(name: str, backbone: pb.Backbone, names: pb.ClassNames | list[str] = NAMES, **config: object) -> Any:
    """The method after it has seen three views of five images."""
    method = pb.create_method(name, backbone, names, views=3, **config)
    show_training_images(method, shown(drawn(0, 3, 5, backbone.embed_dim), 2), seed=1)
    return method


def plain(method: Any, image: Tensor, alpha: float, beta: float) -> Tensor:
    """Logits for all classes, term by term."""
    views = drawn(0, 3, 5, method.backbone.embed_dim)
    zero_shot = pb.create_method("zeroshot@generic", method.backbone, NAMES)
    logits = zero_shot(Images(features=ImageFeatures(image))).logits.clone()
    for n, label in enumerate(LABELS.tolist()):
        key = F.normalize(sum(views[v, n] for v in range(3)) / 3, dim=0)
        logits[:, label] += alpha * torch.exp(-beta * (1 - F.normalize(image, dim=-1) @ key))
    return logits


@torch.no_grad()
@pytest.mark.parametrize("name", BOTH)
def test_logits_are_the_formula_for_any_of_the_trained_classes(name: str, tiny: pb.Backbone) -> None:
    method = made(name, tiny, alpha=2.5, beta=4.0)
    image = drawn(1, 7, tiny.embed_dim)
    images, expected = Images(features=ImageFeatures(image)), plain(method, image, 2.5, 4.0)
    for rows in ([0, 1, 2, 3], [3, 0], [2], [1, 3, 2, 0], [0, 1, 2, 3]):
        method.set_classes([NAMES[row] for row in rows])
        torch.testing.assert_close(method(images).logits, expected[:, rows], atol=1e-4, rtol=0)
    assert method.values.shape == (5, 4) and not method.values[:, 2].any()
    with pytest.raises(UsageError, match="images of the training classes only"):
        method.set_classes(["cat", "dog"])


def test_gradients_of_the_keys_are_those_of_the_formula(tiny: pb.Backbone) -> None:
    method = made("tip_adapter_f", tiny, alpha=2.5, beta=4.0)
    image, labels = drawn(1, 6, tiny.embed_dim), torch.tensor([0, 1, 2, 3, 0, 1])
    pb.backward(method, Images(features=ImageFeatures(image)), labels)
    keys = method.keys.detach().double().requires_grad_()
    zero_shot = plain(method, image, 0.0, 1.0).detach().double()
    affinity = F.normalize(image.double(), dim=-1) @ keys.T
    logits = zero_shot + 2.5 * torch.exp(-4.0 * (1 - affinity)) @ method.values.double()
    F.cross_entropy(logits, labels).backward()
    assert keys.grad is not None
    torch.testing.assert_close(method.keys.grad.double(), keys.grad, atol=1e-4 * float(keys.grad.abs().max()), rtol=0)


@pytest.mark.parametrize("name", BOTH)
def test_nothing_is_scored_before_training_images_were_seen(name: str, tiny: pb.Backbone) -> None:
    method = pb.create_method(name, tiny, NAMES)
    with pytest.raises(UsageError, match="before `prepare`"):
        method(Images(features=ImageFeatures(drawn(1, 2, tiny.embed_dim))))


def test_the_text_is_that_of_the_training_also_for_some_of_the_classes(tiny: pb.Backbone) -> None:
    method = made("tip_adapter", tiny, pb.ClassNames(NAMES, "{} texture.", dataset="imagenet"))
    seven = pb.create_method("zeroshot", tiny, NAMES, template="seven").text_features()
    torch.testing.assert_close(method.text_features(), seven, atol=1e-5, rtol=0)
    method.set_classes(pb.ClassNames(NAMES[1:], "a sketch of {}.", dataset="imagenet_sketch"))
    torch.testing.assert_close(method.text_features(), seven[1:], atol=1e-5, rtol=0)
    assert len(SEVEN) == 7


@torch.no_grad()
@pytest.mark.parametrize("name", BOTH)
def test_the_first_of_the_most_accurate_pairs_is_found(name: str, tiny: pb.Backbone) -> None:
    method = made(name, tiny, pb.ClassNames(NAMES, dataset="oxford_flowers"), search="few")
    assert method.validates == "few" and pb.create_method(name, tiny, NAMES).validates == ""
    image, labels = drawn(2, 9, tiny.embed_dim), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])
    best, found = -1.0, (0.0, 0.0)
    for i in range(0, 200):
        beta = 0.1 + i * (50 - 0.1) / 200
        for j in range(20):
            alpha = 0.1 + j * (50 - 0.1) / 20
            right = float((plain_search(method, image, alpha, beta).argmax(dim=-1) == labels).sum())
            if right > best:
                best, found = right, (alpha, beta)
    parts = zip(image.split(4), labels.split(4), strict=True)
    batches = [(Images(features=ImageFeatures(part)), y) for part, y in parts]
    show_validation_images(method, batches)
    figures = method.diagnostics(Images(features=ImageFeatures(image)))
    assert (figures["alpha"], figures["beta"]) == pytest.approx(found)


def plain_search(method: Any, image: Tensor, alpha: float, beta: float) -> Tensor:
    """Logits with other settings than the method's."""
    method.alpha.fill_(alpha), method.beta.fill_(beta)
    logits: Tensor = method(Images(features=ImageFeatures(image))).logits
    return logits


@pytest.mark.parametrize("name", BOTH)
def test_values_are_one_pair_for_all_datasets_unless_asked_for(name: str, tiny: pb.Backbone) -> None:
    for dataset in ("oxford_flowers", "mini_colours"):
        names = pb.ClassNames(NAMES, dataset=dataset)
        pairs = {}
        for label in (name, f"{name}@init", f"{name}@searched", f"{name}@authors"):
            method: Any = pb.create_method(label, tiny, names)
            pairs[label] = method.alpha.item(), method.beta.item(), method.validates
        first = AUTHORS[dataset].alpha if dataset in AUTHORS else 1.17
        assert pairs == {
            name: (pytest.approx(1.17), 1.0, ""),
            f"{name}@init": (pytest.approx(first), 1.0, ""),
            f"{name}@searched": (pytest.approx(1.17), 1.0, "few"),
            f"{name}@authors": (pytest.approx(first), 1.0, "all"),
        }
    assert set(AUTHORS) < set(registry.names("datasets"))


def test_what_was_searched_comes_back_with_the_keys(tiny: pb.Backbone) -> None:
    method = made("tip_adapter_f", tiny)
    method.alpha.fill_(3.0), method.beta.fill_(7.0)
    other = pb.create_method("tip_adapter_f", tiny, NAMES)
    other.make_room(method.state_dict())
    other.load_state_dict(method.state_dict())
    images = Images(features=ImageFeatures(drawn(1, 3, tiny.embed_dim)))
    assert torch.equal(other(images).logits, method(images).logits)
    assert other.diagnostics(images) == {"alpha": 3.0, "beta": 7.0}


def test_no_room_is_made_for_keys_of_another_width(tiny: pb.Backbone) -> None:
    method: Any = pb.create_method("tip_adapter_f", tiny, NAMES)
    method.make_room({"keys": torch.zeros(5, tiny.embed_dim + 1), "values": torch.zeros(5, 4)})
    assert method.keys.shape == (0, tiny.embed_dim) and method.values.shape == (5, 4)
    method.make_room({"keys": torch.zeros(5, tiny.embed_dim)})
    assert method.keys.shape == (5, tiny.embed_dim)


def test_recipes() -> None:
    cls = registry.load("methods", "tip_adapter_f")
    assert [find_recipe(cls, "few_shot", dataset).epochs for dataset in ("eurosat", "dtd")] == [100, 20]
    recipe = find_recipe(cls, "few_shot", "dtd")
    assert (recipe.optimizer, recipe.eps, recipe.batch, recipe.drop_last) == ("adamw", 1e-4, 256, False)
    assert recipe.crop_scale == cls.shown_scale == (0.5, 1.0) and recipe.origin == "authors"
    assert find_recipe(cls, "base2new", "eurosat").origin == "transferred"
    stored = json.loads((GOLDEN / "lr_schedule_adapters.json").read_text())["tip_adapter_f"]
    rates = [learning_rate(recipe.lr, step, 20, recipe.warmup_epochs, lr_end=recipe.lr_end) for step in range(20)]
    assert rates == pytest.approx(stored["per_step"], rel=1e-9) and recipe.schedule == "step"
    settings = resolve(cls, "tip_adapter_f@authors", protocol="few_shot", dataset="dtd", shots=1)
    assert isinstance(settings.config, MethodConfig) and settings.config.search == "all"  # type: ignore[attr-defined]
