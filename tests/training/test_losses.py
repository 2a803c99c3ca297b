"""A loss differentiated in groups of images equals the whole batch's, terms and gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.clip.image_tower import Images
from promptbench.method import Method
from promptbench.training.fit import fit, loss_of

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


# Gradients of several losses ------------------------------------------------------------------------------------------


class Guided(Method):
    """Minimises `ce` and `weight`, of the first what does not go against `guide`. Its loss is a mean over images."""

    guides = ("guide",)

    def __init__(self, backbone: pb.Backbone, size: int | None = None) -> None:
        super().__init__(pb.MethodConfig(), backbone)
        generator = torch.Generator().manual_seed(2)
        self.w = torch.nn.Parameter(torch.randn(backbone.embed_dim, 3, generator=generator))
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.size = size
        self.seen: list[dict[str, list[Tensor]]] = []

    def images_at_once(self) -> int | None:
        return self.size

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.backbone.encode_image(images).cls @ self.w
        return {
            "ce": torch.nn.functional.cross_entropy(logits, labels),
            "weight": self.w.pow(2).mean(),
            "guide": -logits.pow(2).mean(),
        }

    def combine_gradients(self, gradients: Mapping[str, list[Tensor]]) -> list[Tensor]:
        self.seen.append(copy.deepcopy(dict(gradients)))
        kept = [a - (a * b).sum().clamp(max=0) / b.pow(2).sum().clamp(min=1e-12) * b for a, b in by_pair(gradients)]
        return [a + b for a, b in zip(kept, gradients["weight"], strict=True)]

    def forward(self, images: Images | Tensor) -> pb.Prediction:
        raise NotImplementedError


def by_pair(gradients: Mapping[str, list[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Of each learned tensor, the gradients of `ce` and of `guide`."""
    return list(zip(gradients["ce"], gradients["guide"], strict=True))


@pytest.mark.parametrize("size", [None, 1, 4])
def test_gradients_are_combined_once_over_all_images(size: int | None, tiny: pb.Backbone) -> None:
    pixels, labels = kit.batch(tiny)
    method = Guided(tiny, size)
    terms, (w, unused) = outcome(method, Images(pixels), labels)  # the loss scaled by 3
    losses = Guided(tiny).loss(pixels, labels)
    assert list(terms) == ["ce", "weight"]  # the guide is not minimised
    assert terms == pytest.approx({name: float(losses[name].detach()) for name in terms}, abs=1e-5)
    (seen,) = method.seen  # once a step
    whole = Guided(tiny)
    for name, loss in whole.loss(pixels, labels).items():
        (wanted,) = torch.autograd.grad(loss, [whole.w], retain_graph=True)
        torch.testing.assert_close(seen[name][0], wanted, atol=1e-5, rtol=1e-5)
        assert not seen[name][1].any()  # which no term uses
    assert (seen["ce"][0] * seen["guide"][0]).sum() < 0  # so that something is taken away
    expected = whole.combine_gradients(seen)
    torch.testing.assert_close(w, 3 * expected[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(w, 3 * (seen["ce"][0] + seen["weight"][0]), atol=1e-3)
    assert not unused.any()


def test_a_training_moves_along_the_combined_gradient(tiny: pb.Backbone) -> None:
    pixels, labels = kit.batch(tiny)
    method, by_hand = Guided(tiny, 4), Guided(tiny)
    recipe = pb.Recipe(epochs=2, lr=0.1, batch=8, momentum=0, weight_decay=0, warmup_epochs=0, origin="ours")
    result = fit(method, recipe, DataLoader([(Images(pixels), labels)], batch_size=None), 1, seed=1)
    for rate in (0.1, 0.05):
        terms, loss = loss_of(by_hand, Images(pixels), labels)
        loss.backward()
        with torch.no_grad():
            by_hand.w -= rate * by_hand.w.grad
        by_hand.zero_grad()
    assert set(result.losses[0]) == set(terms) and len(method.seen) == 2
    torch.testing.assert_close(method.w, by_hand.w, atol=1e-5, rtol=0)


def test_without_gradients_nothing_is_combined(tiny: pb.Backbone) -> None:
    pixels, labels = kit.batch(tiny)
    method = Guided(tiny, 1)
    with torch.no_grad():
        terms, loss = loss_of(method, Images(pixels), labels)
    assert not method.seen and list(terms) == ["ce", "weight"]
    assert float(loss) == pytest.approx(sum(map(float, terms.values())))


@pytest.mark.parametrize("training", [True, False])
def test_backward_gives_a_step_s_gradients_and_leaves_the_mode(training: bool, tiny: pb.Backbone) -> None:
    pixels, labels = kit.batch(tiny)
    method, modes = pb.create_method("coop", tiny, kit.CLASSES).train(training), []
    loss = method.loss

    def watched(images: Images, labels: Tensor) -> dict[str, Tensor]:
        modes.append((method.training, torch.is_grad_enabled()))
        return loss(images, labels)

    method.loss = watched  # type: ignore[method-assign, assignment]
    method.ctx.grad = torch.full_like(method.ctx, 7.0)
    with torch.no_grad():
        terms = pb.backward(method, pixels, labels)
    assert modes == [(True, True)] and method.training is training
    assert not terms["ce"].requires_grad
    (wanted,) = torch.autograd.grad(method.loss(Images(pixels), labels)["ce"], [method.ctx])
    torch.testing.assert_close(method.ctx.grad, wanted)  # in the place of what was there

    def broken(images: Images, labels: Tensor) -> dict[str, Tensor]:
        raise ValueError("no loss")

    method.loss = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no loss"):
        pb.backward(method, Images(pixels), labels)
    assert method.training is training
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_backward_gives_combined_gradients(tiny: pb.Backbone) -> None:
    pixels, labels = kit.batch(tiny)
    method = Guided(tiny, 4).eval()
    terms = pb.backward(method, pixels, labels)
    assert list(terms) == ["ce", "weight"] and not method.training
    torch.testing.assert_close(method.w.grad, Guided(tiny).combine_gradients(method.seen[0])[0], atol=1e-6, rtol=0)
