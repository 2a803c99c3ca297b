"""A loss differentiated in groups of images equals the whole batch's, terms and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.clip.image_tower import Images
from promptbench.method import Method
from promptbench.training.fit import loss_of

BY_IMAGE = [
    name
    for name in registry.names("methods")
    if registry.load("methods", name).images_at_once is not Method.images_at_once
]


def outcome(
    method: Method, images: Images, labels: Tensor, half: bool = False
) -> tuple[dict[str, float], list[Tensor]]:
    method.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        terms, loss = loss_of(method, images, labels)
    (3 * loss).backward()  # as the loss scaler of mixed precision does
    gradients = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    return {name: float(term.detach()) for name, term in terms.items()}, gradients


def test_there_are_methods_with_texts_for_every_image() -> None:
    assert {"cocoop", "mutual"} <= set(BY_IMAGE)


@pytest.mark.parametrize("name", BY_IMAGE)
@pytest.mark.parametrize("size", [1, 4])
def test_groups_of_images_change_nothing(
    name: str, size: int, tiny: pb.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = pb.create_method(name, tiny, kit.CLASSES)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    pixels, labels = kit.batch(tiny)
    assert len(labels) % 4  # the last group is smaller
    with torch.no_grad():
        features = tiny.encode_image(pixels)
    images = Images(pixels, features)
    assert method.images_at_once() >= len(labels)
    terms, gradients = outcome(method, images, labels)
    monkeypatch.setattr(method, "images_at_once", lambda: size)
    terms_of_groups, gradients_of_groups = outcome(method, images, labels)
    assert terms_of_groups == pytest.approx(terms, abs=1e-5)
    assert len(gradients) == len(list(method.parameters()))
    largest = max(float(whole.abs().max()) for whole in gradients)
    for whole, groups in zip(gradients, gradients_of_groups, strict=True):
        torch.testing.assert_close(groups, whole, atol=1e-5 * largest, rtol=0)


def test_groups_keep_float32_where_the_rest_is_bfloat16(tiny: pb.Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    method = pb.create_method("cocoop", tiny, kit.CLASSES)
    pixels, labels = kit.batch(tiny)
    images = Images(None, tiny.encode_image(pixels))
    whole = outcome(method, images, labels, half=True)[1]
    monkeypatch.setattr(method, "images_at_once", lambda: 1)
    groups = outcome(method, images, labels, half=True)[1]
    largest = max(float(gradient.abs().max()) for gradient in whole)
    for one, other in zip(whole, groups, strict=True):
        torch.testing.assert_close(other, one, atol=4e-3 * largest, rtol=0)


def test_a_small_budget_makes_groups(tiny: pb.Backbone) -> None:
    small = pb.Backbone(tiny.clip, tokenizer=tiny.tokenizer, memory_budget=1)
    assert pb.create_method("cocoop", small, kit.CLASSES).images_at_once() == 1


def test_no_groups_where_the_loss_will_be_scaled(tiny: pb.Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16 a gradient computed before the scaling would vanish."""
    method = pb.create_method("cocoop", tiny, kit.CLASSES)
    pixels, labels = kit.batch(tiny)
    sizes: list[int] = []

    def loss(images: Images, labels: Tensor) -> dict[str, Tensor]:
        sizes.append(len(labels))
        return {"ce": method.ctx.sum()}

    monkeypatch.setattr(method, "images_at_once", lambda: 4)
    monkeypatch.setattr(method, "loss", loss)
    loss_of(method, Images(pixels), labels)
    assert sizes == [4] * (len(labels) // 4) + [len(labels) % 4]
    sizes.clear()
    with torch.autocast("cpu", torch.float16):
        loss_of(method, Images(pixels), labels)
    with torch.no_grad():
        loss_of(method, Images(pixels), labels)
    assert sizes == [len(labels)] * 2
