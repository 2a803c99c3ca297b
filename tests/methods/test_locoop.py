"""LoCoOp computes what its authors' code computes, written out plainly, at other settings than the stored ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import golden_clip as recipe
import golden_reference as reference
import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.locoop import LoCoOp
from short_cases import slow_but
from torch import Tensor

import promptbench as pb
from promptbench.config import UsageError, build
from promptbench.recipe import resolve

LABELS = torch.tensor([2, 0, 4])
TERM, LOGITS, GRADIENT = 2e-5, 1e-4, 1e-4  # the last of the largest entry
CONFIGS: dict[str, dict[str, Any]] = {
    "published": {},
    "words": {"ctx_init": "a photo of a", "topk": 1, "weight": 2.0},
    "middle": {"n_ctx": 5, "class_token_position": "middle", "topk": 3},
    "each": {"n_ctx": 2, "csc": True, "class_token_position": "front", "topk": 0.5},
}


@pytest.fixture(scope="module")
def backbone() -> pb.Backbone:
    return pb.Backbone(recipe.build_clip(34), tokenizer=recipe.tokenizer())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return recipe.build_images(34, count=len(LABELS))


def make(backbone: pb.Backbone, names: Sequence[str] = recipe.CLASS_NAMES, **config: object) -> Any:
    """LoCoOp with noise on its context."""
    method: Any = pb.create_method("locoop", backbone, names, **config)
    with torch.no_grad():
        method.ctx.add_(0.1 * torch.randn(method.ctx.shape, generator=torch.Generator().manual_seed(5)))
    return method


def negative_entropy(of_patches: Tensor, topk: int) -> Tensor:
    """The authors' term for logits (B, P, K), patch by patch."""
    found = []
    for image, label in zip(of_patches, LABELS, strict=True):
        for patch in image:
            p = patch.softmax(dim=0)
            if label not in p.topk(topk).indices:
                found.append((p * (p + 1e-5).log()).sum())
    return torch.stack(found).mean() if found else torch.zeros(())


@pytest.mark.parametrize("setting", slow_but(CONFIGS, "each"))
def test_logits_terms_and_gradients(setting: str, backbone: pb.Backbone, images: Tensor) -> None:
    config, names, weights = CONFIGS[setting], recipe.CLASS_NAMES, backbone.clip.state_dict()
    topk = {"published": 2, "each": 6}.get(setting, config.get("topk"))  # 0.2 and 0.5 of 12
    method = make(backbone, **config)
    learned = method.ctx.detach().clone().requires_grad_()
    position = config.get("class_token_position", "end")
    plain = reference.coop(weights, images, names, learned, words=config.get("ctx_init", ""), position=position)
    dense = F.normalize(reference.dense_features(weights, images) @ weights["visual.proj"], dim=-1)
    of_patches = weights["logit_scale"].exp() * dense @ plain["text_features"].T
    torch.testing.assert_close(method(images).logits, plain["logits"], atol=LOGITS, rtol=0)
    assert topk is not None
    expected = {
        "ce": F.cross_entropy(plain["logits"], LABELS),
        "en": config.get("weight", 0.25) * negative_entropy(of_patches, topk),
    }
    assert expected["en"] < 0
    terms = method.loss(images, LABELS)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, atol=TERM, rtol=0)
    sum(terms.values()).backward()
    sum(expected.values()).backward()  # type: ignore[union-attr]
    assert learned.grad is not None
    limit = GRADIENT * learned.grad.abs().max().item()
    torch.testing.assert_close(method.ctx.grad, learned.grad, atol=limit, rtol=0)


@pytest.mark.parametrize("topk", [12, 13, 200])
def test_with_no_more_classes_than_topk_it_is_coop(topk: int, backbone: pb.Backbone, images: Tensor) -> None:
    method = make(backbone, topk=topk)
    terms = method.loss(images, LABELS)
    assert terms["en"] == 0
    gradients = [torch.autograd.grad(term, [method.ctx], retain_graph=True)[0] for term in terms.values()]
    assert gradients[0].any() and not gradients[1].any()


@pytest.mark.parametrize(("classes", "topk"), [(2, 1), (4, 1), (8, 2), (12, 2)])
def test_a_share_is_rounded_and_at_least_one_class(
    classes: int, topk: int, backbone: pb.Backbone, images: Tensor
) -> None:
    names, labels = recipe.CLASS_NAMES[:classes], LABELS % classes
    share, count = (make(backbone, names, topk=topk) for topk in (0.2, topk))
    assert torch.equal(share.loss(images, labels)["en"], count.loss(images, labels)["en"])


@pytest.mark.parametrize("topk", [0.0, 1.0, 1.5, -0.2])
def test_a_count_is_written_without_a_point(topk: float, backbone: pb.Backbone) -> None:
    with pytest.raises(UsageError, match="write a count of classes without a point"):
        make(backbone, topk=topk)


def test_counts_and_shares_are_read_from_text(backbone: pb.Backbone) -> None:
    read = [build(LoCoOp.Config, {"topk": text}, "a file").topk for text in ("200", "0.2", 3, 0.5)]
    assert read == [200, 0.2, 3, 0.5] and [type(topk) for topk in read] == [int, float, int, float]
    with pytest.raises(UsageError, match="'topk' takes an integer of at least 1, not 0"):
        make(backbone, topk=0)


@pytest.mark.parametrize(
    ("protocol", "dataset", "topk", "origin"),
    [
        ("few_shot", "imagenet", 200, "authors"),
        ("ood", "imagenet", 200, "authors"),
        ("domain_generalization", "imagenet", 200, "transferred"),
        ("base2new", "imagenet", 0.2, "transferred"),
        ("few_shot", "dtd", 0.2, "transferred"),
        ("ood", "mini_shapes", 0.2, "transferred"),
    ],
)
def test_settings_are_the_authors(protocol: str, dataset: str, topk: float, origin: str) -> None:
    config, settings, *_ = resolve(LoCoOp, "locoop", protocol=protocol, dataset=dataset, shots=1)
    assert settings is not None
    assert (settings.epochs, settings.lr, settings.batch, settings.origin) == (50, 0.002, 32, origin)
    assert (config.n_ctx, config.ctx_init, config.weight, config.topk) == (None, "", 0.25, topk)
    assert not config.csc and config.class_token_position == "end"
