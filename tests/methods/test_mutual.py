"""Mutual-R holds what its specification asks of any reconstruction: CoCoOp in it, class order, counts, gradients."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.mutual import Mutual, other_classes
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.checks.plugin.subject import vit_b16
from promptbench.clip.text_tower import mean_length
from promptbench.config import UsageError
from promptbench.method import fit_to_backbone, instantiate

CLASSES = ("golden retriever", "pizza", "jack-o'-lantern", "sea_lion", "annual crop land", "Boeing 737-800")
OTHER_CLASSES = ("tabby cat", "abbey", "2012 Ferrari 458 Italia Coupe")
PRESETS = ("", *Mutual.presets)
WITH_TVP = [preset for preset in PRESETS if preset not in ("cocoop", "ftp", "matched")]
LOGITS, GRADIENT = 1e-4, 1e-4


@pytest.fixture(scope="module")
def tiny(tiny_name: str) -> pb.Backbone:
    """The tiny random CLIP, once for this file: nothing here changes it."""
    return pb.load_backbone(tiny_name)


@pytest.fixture(scope="module")
def images(tiny: pb.Backbone) -> Tensor:
    return kit.batch(tiny)[0][:4]


def make(tiny: pb.Backbone, preset: str = "", moved: bool = True, **config: object) -> Any:
    """Mutual-R, its learned tensors moved off their first values, at which some gradients vanish."""
    method = pb.create_method(f"mutual@{preset}" if preset else "mutual", tiny, CLASSES, **config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * moved * torch.randn(parameter.shape, generator=generator))
    return method


def cocoop_with_weights_of(tiny: pb.Backbone, method: Any) -> pb.Method:
    """CoCoOp whose meta network is the method's first."""
    cocoop = pb.create_method("cocoop", tiny, CLASSES)
    state = method.state_dict()
    cocoop.load_state_dict({name: state[name.replace("meta_net", "ftp.0")] for name in cocoop.state_dict()})
    return cocoop


def gradients(method: pb.Method, images: Tensor) -> dict[str, Tensor]:
    method.zero_grad()
    method.loss(images, torch.arange(len(images)))["ce"].backward()
    return {name: parameter.grad.clone() for name, parameter in method.named_parameters()}


# The ladder begins at CoCoOp -----------------------------------------------------------------------------------------


def test_tied_networks_without_tvp_are_cocoop(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, "cocoop")
    cocoop = cocoop_with_weights_of(tiny, method)
    assert torch.equal(method(images).logits, cocoop(images).logits)
    ours, theirs = gradients(method, images), gradients(cocoop, images)
    for name, gradient in theirs.items():
        assert torch.equal(ours[name.replace("meta_net", "ftp.0")], gradient)


def test_the_same_seed_starts_cocoop_alike(tiny: pb.Backbone, images: Tensor) -> None:
    method = pb.create_method("mutual@cocoop", tiny, CLASSES, seed=4)
    assert torch.equal(method(images).logits, pb.create_method("cocoop", tiny, CLASSES, seed=4)(images).logits)
    assert method.frozen_image_tower


def test_equal_networks_for_all_tokens_are_cocoop(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, "ftp")
    for net in method.ftp:
        net.load_state_dict(method.ftp[0].state_dict())
    assert torch.equal(method(images).logits, cocoop_with_weights_of(tiny, method)(images).logits)


def test_without_visual_prompts_the_image_feature_is_that_of_pass_one(tiny: pb.Backbone, images: Tensor) -> None:
    assert torch.equal(make(tiny, n_visual=0).features(images)[0].cls, tiny.encode_image(images).cls)
    assert not torch.allclose(make(tiny).features(images)[0].cls, tiny.encode_image(images).cls, atol=1e-3)


# FTP -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ftp", "rank"), [("tokens", 4), ("channels", 4), ("tied", 1)])
def test_every_token_gets_semantics_of_its_own(ftp: str, rank: int, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, ftp=ftp, moved=False)
    semantics = method.semantics(tiny.encode_image(images).cls).detach()  # (B, n or 1, d)
    assert torch.linalg.matrix_rank(semantics, rtol=1e-4).tolist() == [rank] * len(images)
    assert (semantics[0] - semantics[1]).abs().max() > 1e-4  # they depend on the image


def test_channels_are_split_among_the_tokens(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, "channels", ctx_init="", n_ctx=5)
    assert [net.linear1.in_features for net in method.ftp] == [7, 7, 6, 6, 6]
    x = F.normalize(tiny.encode_image(images).cls, dim=-1)
    changed = torch.cat([x[:, :20].roll(1, dims=1), x[:, 20:26], x[:, 26:].roll(1, dims=1)], dim=1)
    difference = (method.semantics(changed) - method.semantics(x)).abs().amax(dim=(0, 2))
    assert difference[3] < 1e-6 and difference.max() > 1e-3


# TVP -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", WITH_TVP)
def test_at_first_visual_prompts_ignore_the_texts(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset, moved=False)
    before = method.features(images)[0].cls
    assert torch.equal(before, tiny.encode_image(images, method.visual).cls)
    method.set_classes(OTHER_CLASSES)
    assert torch.equal(method.features(images)[0].cls, before)


@pytest.mark.parametrize("preset", WITH_TVP)
def test_later_they_read_the_texts_unless_those_are_zeroed(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset)
    before = method.features(images)[0].cls
    method.set_classes(OTHER_CLASSES)
    assert torch.equal(method.features(images)[0].cls, before) == (preset == "tvp-zeroed")


def test_the_reorganised_text_is_the_mean_by_relevance(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny)
    image = tiny.encode_image(images).cls
    text = method.conditional_text(image)
    scale = tiny.logit_scale.item()
    for b in range(len(images)):
        x, T = image[b] / image[b].norm(), text[b] / text[b].norm(dim=1, keepdim=True)
        weights = torch.exp(scale * (T @ x))
        expected = sum(w * t for w, t in zip(weights / weights.sum(), T, strict=True))
        torch.testing.assert_close(method.reorganized(image, text)[b, 0], expected, atol=1e-5, rtol=0)


def test_top_classes_come_in_the_order_of_their_relevance(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, "topk")
    image = tiny.encode_image(images).cls
    text = method.conditional_text(image)
    best = F.normalize(text, dim=-1)[0, (F.normalize(text[0], dim=-1) @ image[0]).argsort(descending=True)]
    torch.testing.assert_close(method.reorganized(image, text)[0], best[:4])
    two = method.reorganized(image, text[:, :2])[0]  # fewer classes than prompts
    assert two.shape == (4, 32) and torch.equal(two[1], two[2]) and torch.equal(two[1], two[3])


def test_frozen_texts_are_those_of_clip(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, "frozen")
    zeroshot = pb.create_method("zeroshot@generic", tiny, CLASSES)
    torch.testing.assert_close(
        F.normalize(method.frozen, dim=-1), F.normalize(zeroshot.text_features(), dim=-1), atol=1e-5, rtol=0
    )
    image = tiny.encode_image(images).cls
    text = method.conditional_text(image)
    expected = zeroshot(images).logits.softmax(-1) @ F.normalize(method.frozen, dim=-1)
    torch.testing.assert_close(method.reorganized(image, text).squeeze(1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", [CLASSES, CLASSES[::-1], CLASSES[:2], ("pizza",), tuple("abcdefghijklm")])
def test_shuffled_texts_are_those_of_another_class(names: tuple[str, ...]) -> None:
    others = other_classes(names)
    assert sorted(others) == list(range(len(names)))
    assert len(names) == 1 or all(other != label for label, other in enumerate(others))


# Classes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_logits_go_with_the_classes(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset)
    before = method(images).logits
    order = [3, 0, 5, 1, 4, 2]
    method.set_classes([CLASSES[label] for label in order])
    torch.testing.assert_close(method(images).logits, before[:, order], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("names", [("pizza",), OTHER_CLASSES, tuple(f"class number {i}" for i in range(23))])
@torch.no_grad()
def test_any_number_of_classes(preset: str, names: tuple[str, ...], tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset)
    shapes = {name: tensor.shape for name, tensor in method.state_dict().items()}
    method.set_classes(names)
    logits = method(images).logits
    assert logits.shape == (len(images), len(names)) and logits.isfinite().all()
    assert {name: tensor.shape for name, tensor in method.state_dict().items()} == shapes


# Gradients and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_reach_what_is_learned_and_no_weight_of_clip(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset)
    reached = {name for name, gradient in gradients(method, images).items() if gradient.any()}
    unread = {name for name, _ in method.named_parameters() if "tvp" in name and "linear1.weight" in name}
    assert reached == {name for name, _ in method.named_parameters()} - (unread if preset == "tvp-zeroed" else set())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in tiny.clip.parameters())


@pytest.mark.parametrize(("tvp_text", "passes"), [("conditioned", True), ("shuffled", True), ("frozen", False)])
def test_gradients_pass_through_the_texts_that_tvp_reads(
    tvp_text: str, passes: bool, tiny: pb.Backbone, images: Tensor
) -> None:
    method = make(tiny, tvp_text=tvp_text)
    method.features(images)[0].cls.sum().backward()
    assert (method.ctx.grad is not None) == passes


@pytest.mark.slow
@pytest.mark.parametrize("budget", {"images apart": 1_500_000, "classes apart": 200_000}.items(), ids=lambda b: b[0])
@pytest.mark.parametrize("preset", ["", "topk", "cocoop"])
def test_the_memory_budget_changes_nothing(
    preset: str, budget: tuple[str, int], tiny: pb.Backbone, images: Tensor
) -> None:
    method = make(tiny, preset)
    whole, expected = method(images).logits, gradients(method, images)
    small = pb.Backbone(tiny.clip, tokenizer=tiny.tokenizer, memory_budget=budget[1])
    rows = small.texts_within_budget(mean_length(method.sentences.tokens.eot))
    assert (len(CLASSES) <= rows < len(CLASSES) * len(images)) == (budget[0] == "images apart")
    method = make(small, preset)
    torch.testing.assert_close(method(images).logits, whole, atol=LOGITS, rtol=0)
    for name, gradient in gradients(method, images).items():
        limit = GRADIENT * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=limit, rtol=0)


# Counts and settings -------------------------------------------------------------------------------------------------


def count(**config: object) -> int:
    method = Mutual(fit_to_backbone(Mutual.Config(**config), vit_b16(), explicit=()), vit_b16())
    return sum(parameter.numel() for parameter in method.parameters())


def test_parameters_on_vit_b16_are_those_of_the_specification() -> None:
    ftp, tvp = (512 * 32 + 32 + 32 * out + out for out in (512, 768))
    assert (ftp, tvp) == (33_312, 41_760)
    assert count(ftp="tied", n_visual=0) == 35_360 == 4 * 512 + ftp
    assert count(n_visual=0) == 133_248 + 2_048 == 4 * ftp + 4 * 512
    assert count() == 305_408 == 133_248 + 2_048 + 167_040 + 3_072
    assert count(ftp="tied") == 35_360 + 4 * tvp + 4 * 768
    assert count(ftp="channels", n_visual=0) == 2_048 + 4 * (128 * 32 + 32 + 33 * 512)
    matched = count(ftp="tied", n_visual=0, matched=True)
    assert matched == 2_048 + 512 * 295 + 295 + 295 * 512 + 512 and abs(matched / 305_408 - 1) < 0.002


def test_the_matched_control_has_the_size_of_the_method_on_any_backbone(tiny: pb.Backbone) -> None:
    sizes = [sum(p.numel() for p in make(tiny, preset).parameters()) for preset in ("", "matched")]
    assert abs(sizes[1] - sizes[0]) <= (32 + 1 + 48) / 2 + 1  # half a hidden unit


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"n_visual": -1}, "'n_visual' takes an integer of at least 0"),
        ({"matched": True}, "ftp=tied and n_visual=0"),
        ({"n_ctx": 3}, "n_ctx is 3, but ctx_init 'a photo of a' has 4 words"),
        ({"ftp": "gates"}, "ftp"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: dict[str, Any], says: str, tiny: pb.Backbone) -> None:
    with pytest.raises(UsageError, match=says):
        pb.create_method("mutual", tiny, CLASSES, **config)


def test_every_setting_says_where_it_comes_from_and_the_method_what_it_is() -> None:
    assert all(field.metadata["source"] for field in fields(Mutual.Config))
    assert (Mutual.title, Mutual.reconstructed) == ("Mutual-R", True)
    facts = registry.facts("methods", "mutual")
    assert "reconstructed, written without access to the full paper; compare with it before citing" in facts.docstring
    assert "INFERENCE" in facts.docstring
    assert {recipe.origin for recipe in Mutual.recipes.values()} == {"transferred"}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_keeps_the_contract(preset: str, tiny: pb.Backbone) -> None:
    config = fit_to_backbone(Mutual.Config(**(Mutual.presets[preset].config if preset else {})), tiny, explicit=())
    images, labels = kit.batch(tiny)
    one, other = (instantiate(Mutual, config, tiny, kit.CLASSES, seed=2) for _ in range(2))
    for method in (one, other):
        kit.take_steps(method, images, labels, steps=2)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    alone = torch.cat([kit.predict(one, image.unsqueeze(0)).logits for image in images])
    torch.testing.assert_close(kit.predict(one, images).logits, alone, atol=LOGITS, rtol=0)
