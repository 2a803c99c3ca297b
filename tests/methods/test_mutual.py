"""Mutual-R keeps what its docstring says: CoCoOp in it, what a pass reads and trains, and what its controls change."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.mutual import RIDGE, Mutual
from torch import Tensor

import promptbench as pb
from promptbench import recipe, registry
from promptbench.checks.plugin import kit
from promptbench.checks.plugin.subject import vit_b16
from promptbench.clip import block as blocks
from promptbench.clip.image_tower import Images
from promptbench.clip.text_tower import mean_length
from promptbench.config import UsageError
from promptbench.method import fit_to_backbone, instantiate

CLASSES = ("golden retriever", "pizza", "jack-o'-lantern", "sea_lion", "annual crop land", "Boeing 737-800")
OTHER_CLASSES = ("tabby cat", "abbey", "2012 Ferrari 458 Italia Coupe")
PRESETS = ("", *Mutual.presets)
WITHOUT_TVP = ("cocoop", "ftp", "ftp-noise", "matched")
WITHOUT_TEXT = ("cocoop-visual", "tvp-zeroed")
MIXING = ("ftp-noise", "tvp-noise", "tvp-other-image")  # what they read depends on the other images of a batch
WITH_TVP = [preset for preset in PRESETS if preset not in WITHOUT_TVP]
UNTRAINED = {"tvp_text", "tvp_strength", "answer"}
LOGITS, GRADIENT = 1e-4, 1e-4
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def tiny(tiny_name: str) -> pb.Backbone:
    """The tiny random CLIP, once for this file: nothing here changes it."""
    return pb.load_backbone(tiny_name)


@pytest.fixture(scope="module")
def images(tiny: pb.Backbone) -> Tensor:
    return kit.batch(tiny)[0]


def differing(one: str, other: str) -> set[str]:
    """The settings in which two presets differ."""
    found = [Mutual.Config(**(Mutual.presets[preset].config if preset else {})) for preset in (one, other)]
    return {f.name for f in fields(Mutual.Config) if getattr(found[0], f.name) != getattr(found[1], f.name)}


def make(tiny: pb.Backbone, preset: str = "", moved: bool = True, **config: object) -> Any:
    """Mutual-R in evaluation, its learned tensors moved off their first values, at which some gradients vanish."""
    method = pb.create_method(f"mutual@{preset}" if preset else "mutual", tiny, CLASSES, **config)
    return move(method) if moved else method.eval()


def move(method: pb.Method) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return method.eval()


def cocoop_with_weights_of(tiny: pb.Backbone, method: Any) -> pb.Method:
    """CoCoOp whose meta network is the method's first."""
    cocoop = pb.create_method("cocoop", tiny, CLASSES)
    state = method.state_dict()
    cocoop.load_state_dict({name: state[name.replace("meta_net", "ftp.0")] for name in cocoop.state_dict()})
    return cocoop


def gradients(method: pb.Method, images: Tensor, *terms: str) -> dict[str, Tensor]:
    """Those of the terms named, or of the whole loss; zeros where there is none."""
    found = method.loss(images, torch.arange(len(images)) % len(CLASSES))
    loss = sum(found[name] for name in terms or found)
    named = dict(method.named_parameters())
    there = torch.autograd.grad(loss, list(named.values()), allow_unused=True)  # type: ignore[arg-type]
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), there, strict=True)}


def trained(method: Any) -> dict[str, Tensor]:
    """What a method has learned after three steps of SGD."""
    kit.take_steps(method, *kit.batch(method.backbone), steps=3)
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


@torch.no_grad()
def seen(method: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Image features (B, D), and normalised text features (B, K, D), of pass 1."""
    image = method.backbone.encode_image(images).cls
    return image, F.normalize(method.conditional_text(image), dim=-1)


@torch.no_grad()
def second(method: Any, images: Tensor) -> Tensor:
    """Image features (B, D) of pass 2."""
    return method.prompted(images, method.reorganized(*seen(method, images))).cls


def cosines(images: Tensor, text: Tensor) -> Tensor:
    """(B, K) of image features (B, D) and text features (B, K, D)."""
    return F.cosine_similarity(images.unsqueeze(1), text, dim=-1)


# The ladder begins at CoCoOp -----------------------------------------------------------------------------------------


def test_tied_networks_without_tvp_are_cocoop(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, "cocoop")
    cocoop = cocoop_with_weights_of(tiny, method)
    assert torch.equal(method(images).logits, cocoop(images).logits)
    ours, theirs = gradients(method, images), gradients(cocoop, images)
    assert len(ours) == len(theirs)
    for name, gradient in theirs.items():
        assert gradient.any() and torch.equal(ours[name.replace("meta_net", "ftp.0")], gradient)


def test_the_same_seed_starts_cocoop_alike_and_training_keeps_it_so(tiny: pb.Backbone, images: Tensor) -> None:
    method = pb.create_method("mutual@cocoop", tiny, CLASSES, seed=4)
    cocoop = pb.create_method("cocoop", tiny, CLASSES, seed=4)
    assert torch.equal(method(images).logits, cocoop(images).logits)
    before = method.ctx.detach().clone()
    ours, theirs = trained(method), trained(cocoop)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name.replace("meta_net", "ftp.0")], tensor)
    assert not torch.equal(ours["ctx"], before)


def silence(networks: Any) -> None:
    """Networks whose outputs are zero."""
    with torch.no_grad():
        for net in networks:
            net.linear2.weight.zero_()
            net.linear2.bias.zero_()


def test_without_networks_of_their_own_for_tokens_it_is_cocoop(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, "ftp")
    cocoop = cocoop_with_weights_of(tiny, method)
    assert (method(images).logits - cocoop(images).logits).abs().max() > 1e-2
    silence(method.ftp[1:])
    assert torch.equal(method(images).logits, cocoop(images).logits)


@pytest.mark.parametrize("preset", ["ftp", "cocoop"])
def test_at_first_it_is_cocoop_of_the_same_seed(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    method, cocoop = (pb.create_method(label, tiny, CLASSES, seed=5) for label in (f"mutual@{preset}", "cocoop"))
    assert torch.equal(method(images).logits, cocoop(images).logits)


# FTP -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ftp", "rank"), [("tokens", 4), ("tied", 1)])
def test_every_token_gets_semantics_of_its_own(ftp: str, rank: int, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, ftp=ftp)
    semantics = method.semantics(tiny.encode_image(images).cls).detach()  # (B, n or 1, d)
    assert torch.linalg.matrix_rank(semantics, rtol=1e-4).tolist() == [rank] * len(images)
    assert (semantics[0] - semantics[1]).abs().max() > 1e-4  # they depend on the image


@pytest.mark.parametrize("preset", ["", "ftp", "tvp"])
def test_semantics_are_cocoops_at_first(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    image, cocoop = tiny.encode_image(images).cls, pb.create_method("cocoop", tiny, CLASSES)
    expected = cocoop.shift(image).unsqueeze(1)  # type: ignore[attr-defined]
    found = make(tiny, preset, moved=False).semantics(image)
    assert expected.any() and torch.equal(found, expected.expand_as(found))


def test_a_tokens_semantics_are_the_common_ones_and_its_own(tiny: pb.Backbone, images: Tensor) -> None:
    image = tiny.encode_image(images).cls
    method, x = make(tiny), F.normalize(image, dim=-1)
    common, *own = method.ftp
    assert len(own) == 4
    expected = torch.stack([common(x) + net(x) for net in own], dim=1)
    torch.testing.assert_close(method.semantics(image), expected, **CLOSE)


# Pass 1 and pass 2 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", WITHOUT_TVP)
def test_without_visual_prompts_there_is_one_pass(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset)
    assert method.frozen_image_tower and not method.diagnostics(images)
    cached = pb.Images(features=tiny.encode_image(images))
    assert torch.equal(method(cached).logits, method(images).logits)
    assert list(method.loss(images, torch.arange(6))) == ["ce"]


@torch.no_grad()
def test_it_answers_with_pass_two_or_with_the_mean_of_both(tiny: pb.Backbone, images: Tensor) -> None:
    image, text = seen(make(tiny), images)
    of_one, of_two = cosines(image, text), cosines(second(make(tiny), images), text)
    assert (of_one - of_two).abs().max() > 1e-2
    for answer, expected in {"second": of_two, "mean": (of_one + of_two) / 2}.items():
        found = make(tiny, answer=answer)(images)
        torch.testing.assert_close(found.cosines, expected, **CLOSE)
        torch.testing.assert_close(found.logits, tiny.logit_scale * expected, atol=LOGITS, rtol=0)


def test_patches_are_read_once(tiny: pb.Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    value_path = blocks.value_path
    monkeypatch.setattr(blocks, "value_path", lambda block, x: passes.append(len(x)) or value_path(block, x))
    with torch.no_grad():
        found = make(tiny)(Images(images, dense=True))
    assert found.local.shape == (len(images), tiny.patches, len(CLASSES)) and passes == [len(images)]


@torch.no_grad()
@pytest.mark.parametrize("preset", WITH_TVP)
def test_the_loss_is_that_of_each_pass_and_the_second_reads_no_text(
    preset: str, tiny: pb.Backbone, images: Tensor
) -> None:
    method, labels = make(tiny, preset), torch.tensor([3, 1, 0, 5, 2, 4])
    assert not method.frozen_image_tower
    image, text = seen(method, images)
    for_nothing = method.visual.encode(tiny, images).cls
    expected = {name: cosines(x, text).mul(tiny.logit_scale) for name, x in (("ce", image), ("tvp", for_nothing))}
    terms = method.loss(images, labels)
    assert list(terms) == ["ce", "tvp"]
    for name, logits in expected.items():
        torch.testing.assert_close(terms[name], F.cross_entropy(logits, labels), atol=LOGITS, rtol=0)


@torch.no_grad()
def test_without_gates_and_text_pass_two_is_pass_one(tiny: pb.Backbone, images: Tensor) -> None:
    method, dense = make(tiny, tvp_strength=0.0), pb.Images(images, dense=True)
    image, text = seen(method, images)
    assert (method(images).cosines - cosines(image, text)).abs().max() > 1e-3
    method.visual.gates.zero_()
    for found in (method(images), method(dense)):
        torch.testing.assert_close(found.cosines, cosines(image, text), **CLOSE)


@torch.no_grad()
def test_patches_are_those_of_the_frozen_tower_where_gates_are_zero_whatever_cls_reads(
    tiny: pb.Backbone, images: Tensor
) -> None:
    method, dense = make(tiny), pb.Images(images, dense=True)
    frozen, text = tiny.encode_image(dense), seen(method, images)[1]
    expected = F.normalize(frozen.local, dim=-1) @ text.mT
    assert (method(dense).local - expected).abs().max() > 1e-3
    method.visual.gates.zero_()
    assert (method(dense).cosines - cosines(frozen.cls, text)).abs().max() > 1e-2  # the text is read all the same
    torch.testing.assert_close(method(dense).local, expected, **CLOSE)
    patches = method.prompted(dense, method.reorganized(frozen.cls, text)).patches
    torch.testing.assert_close(patches, frozen.patches, **CLOSE)
    torch.testing.assert_close(method(dense).logits, method(images).logits, atol=LOGITS, rtol=0)
    assert method(images).local is None


@torch.no_grad()
def test_what_is_written_is_what_the_image_comes_to_say(tiny: pb.Backbone, images: Tensor) -> None:
    """The block's second half stands between: the stronger, the nearer."""
    method = make(tiny)
    read = method.reorganized(*seen(method, images))
    near = []
    for strength in (0.0, 1.0, 30.0):
        method = make(tiny, tvp_strength=strength)
        near.append(F.cosine_similarity(method.prompted(images, read).cls, read, dim=-1))
    assert (near[0] < near[1]).all() and (near[1] < near[2]).all() and (near[2] > 0.99).all()


# What each pass trains -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_reach_what_is_learned_and_no_weight_of_clip(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    found = gradients(make(tiny, preset), images)
    assert [name for name, gradient in found.items() if not gradient.any()] == []
    assert not any(parameter.requires_grad for parameter in tiny.clip.parameters())


@pytest.mark.parametrize("preset", WITH_TVP)
def test_each_pass_trains_its_own(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset)
    visual = {name for name, _ in method.named_parameters() if name.startswith("visual.")}
    reached = [{name for name, g in gradients(method, images, term).items() if g.any()} for term in ("ce", "tvp")]
    assert reached == [{name for name, _ in method.named_parameters()} - visual, visual]
    assert {name.partition(".")[0] for name in reached[0]} == {"ctx", "ftp"}
    assert len(visual) == 1 + 4  # gates, and the prompts of four layers


def test_at_first_gates_alone_of_pass_two_have_gradients(tiny: pb.Backbone, images: Tensor) -> None:
    found = gradients(make(tiny, moved=False), images, "tvp")
    assert {name for name, gradient in found.items() if gradient.any()} == {"visual.gates"}
    assert found["visual.gates"].all()


@pytest.mark.slow
def test_pass_one_trains_the_same_with_and_without_pass_two(tiny: pb.Backbone) -> None:
    alone, both = (trained(make(tiny, preset, moved=False)) for preset in ("ftp", ""))
    assert set(both) - set(alone) == {"visual.gates", *(f"visual.prompts.{i}" for i in range(4))}
    for name, tensor in alone.items():
        assert torch.equal(both[name], tensor)
    assert alone["ftp.1.linear2.bias"].any() and both["visual.gates"].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", [preset for preset in WITH_TVP if preset != "noise" and set(differing(preset, "")) <= UNTRAINED]
)
def test_settings_that_train_nothing_share_a_training(preset: str, tiny: pb.Backbone) -> None:
    whole, found = trained(make(tiny, moved=False)), trained(make(tiny, preset, moved=False))
    assert set(whole) == set(found)
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


# The reorganised text ------------------------------------------------------------------------------------------------


def random_features(B: int, K: int, D: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Image features (B, D) and text features (B, K, D) of any length, with something in common."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(D, generator=generator)
    image = common + torch.randn(B, D, generator=generator)
    return 3 * image, common + torch.randn(B, K, D, generator=generator)


@pytest.mark.parametrize("K", [2, 6, 31, 32, 33, 50])
def test_the_reorganised_text_is_the_point_nearest_to_the_image(K: int, tiny: pb.Backbone) -> None:
    """The docstring's minimum by its normal equations, in float64, image by image; 32 is D."""
    image, text = random_features(3, K, 32)
    found = make(tiny, moved=False).reorganized(image, text)
    for b in range(3):
        x = F.normalize(image[b].double(), dim=0)
        T = torch.stack([t / t.norm() for t in text[b].double()])  # (K, D)
        a = torch.linalg.inv(T @ T.T + RIDGE * torch.eye(K, dtype=torch.float64)) @ (T @ x)

        def cost(a: Tensor, x: Tensor = x, T: Tensor = T) -> float:
            return float((x - sum(w * t for w, t in zip(a, T, strict=True))).square().sum() + RIDGE * a.square().sum())

        for k in range(K):
            step = 1e-3 * F.one_hot(torch.tensor(k), K)
            assert cost(a) < min(cost(a + step), cost(a - step))  # it is the minimum
        nearest = sum(w * t for w, t in zip(a, T, strict=True))
        torch.testing.assert_close(found[b].double(), nearest, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tvp_text", ["own", "mean"])
def test_the_reorganised_text_is_the_same_whatever_the_order_of_classes(tvp_text: str, tiny: pb.Backbone) -> None:
    image, text = random_features(6, 5, 32)
    method = make(tiny, moved=False, tvp_text=tvp_text)
    found = method.reorganized(image, text)
    assert found.shape == (6, 32)
    torch.testing.assert_close(method.reorganized(image, text[:, [3, 0, 4, 1, 2]]), found, **CLOSE)
    torch.testing.assert_close(method.reorganized(7 * image, 0.2 * text), found, **CLOSE)
    torch.testing.assert_close(method.reorganized(image[2:], text[2:]), found[2:], **CLOSE)  # of each image for itself


def test_of_one_class_its_text_is_read(tiny: pb.Backbone) -> None:
    image, text = random_features(3, 1, 32)
    one = F.normalize(text[:, 0], dim=-1)
    near = (one * F.normalize(image, dim=-1)).sum(dim=-1, keepdim=True)
    for tvp_text, expected in (("own", one * near / (1 + RIDGE)), ("mean", one)):
        found = make(tiny, moved=False, tvp_text=tvp_text).reorganized(image, text)
        torch.testing.assert_close(found, expected, **CLOSE)


def test_controls_read_the_mean_text_that_of_another_image_noise_or_nothing(tiny: pb.Backbone) -> None:
    image, text = random_features(6, 5, 32)
    of = {name: make(tiny, moved=False, tvp_text=name) for name in ("own", "mean", "other-image", "noise", "zeroed")}
    own = of["own"].reorganized(image, text)
    mean = torch.stack([sum(t / t.norm() for t in texts) / 5 for texts in text])
    torch.testing.assert_close(of["mean"].reorganized(image, text), mean, **CLOSE)
    assert torch.equal(of["noise"].reorganized(image, text), of["noise"].noise_like(own))
    assert of["zeroed"].reorganized(image, text) is None


@pytest.mark.parametrize("B", [1, 2, 5, 6])
def test_another_image_is_half_a_batch_away(B: int, tiny: pb.Backbone) -> None:
    image, text = random_features(B, 5, 32)
    own, other = (make(tiny, moved=False, tvp_text=name).reorganized(image, text) for name in ("own", "other-image"))
    places = [[b for b in range(B) if torch.equal(row, own[b])] for row in other]
    assert all(len(place) == 1 for place in places)
    assert sorted(place for (place,) in places) == list(range(B))
    assert {min((place - b) % B, (b - place) % B) for b, (place,) in enumerate(places)} == {B // 2}


def test_noise_has_the_mean_and_the_covariance_of_what_it_replaces(tiny: pb.Backbone) -> None:
    generator = torch.Generator().manual_seed(5)
    mixing = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, -1.0], [0.0, 0.0, 0.1]])
    features = torch.randn(1500, 3, generator=generator) @ mixing + torch.tensor([3.0, 0.0, -1.0])
    noise = make(tiny, "ftp-noise", moved=False).noise_like(features)
    torch.testing.assert_close(noise.mean(dim=0), features.mean(dim=0), atol=0.2, rtol=0)
    torch.testing.assert_close(noise.T.cov(), features.T.cov(), atol=0.4, rtol=0)
    correlations = (noise - noise.mean(dim=0)).T @ (features - features.mean(dim=0)) / 1500
    assert correlations.abs().max() < 0.4  # of what it replaces it knows nothing else


@pytest.mark.parametrize("preset", ["tvp-noise", "ftp-noise"])
def test_noise_differs_between_images_and_is_the_same_in_every_evaluation(
    preset: str, tiny: pb.Backbone, images: Tensor
) -> None:
    method, (image, _) = make(tiny, preset), random_features(6, 5, 32)
    found = method.noise_like(image)
    assert torch.pdist(found).min() > 1e-2 and torch.equal(method.noise_like(image), found)
    assert torch.equal(method(images).logits, method(images).logits)


def test_noise_is_new_at_every_step_of_training(tiny: pb.Backbone, images: Tensor) -> None:
    method, (image, _) = make(tiny, "ftp-noise").train(), random_features(6, 5, 32)
    assert (method.noise_like(image) - method.noise_like(image)).abs().max() > 1e-2
    assert not torch.equal(gradients(method, images)["ctx"], gradients(method, images)["ctx"])


@torch.no_grad()
def test_zeroed_is_strength_zero(tiny: pb.Backbone, images: Tensor) -> None:
    zeroed, other = make(tiny, "tvp-zeroed"), make(tiny, tvp_strength=0.0)
    torch.testing.assert_close(zeroed(images).logits, other(images).logits, atol=LOGITS, rtol=0)
    assert torch.equal(zeroed(images).logits, make(tiny, "tvp-zeroed", tvp_strength=2.0)(images).logits)


@pytest.mark.parametrize("preset", WITH_TVP)
def test_pass_two_reads_the_texts_unless_they_are_zeroed(preset: str, tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset)
    before = second(method, images)
    method.set_classes(OTHER_CLASSES)
    assert torch.equal(second(method, images), before) == (preset in WITHOUT_TEXT)


# Writing on the image ------------------------------------------------------------------------------------------------


def with_last_layer_trained(tiny: pb.Backbone, bias: float) -> pb.Backbone:
    """A copy whose last normalisation is as uneven as a trained one's."""
    backbone = pb.Backbone(deepcopy(tiny.clip), tokenizer=tiny.tokenizer)
    generator, norm = torch.Generator().manual_seed(2), backbone.clip.visual.ln_post
    with torch.no_grad():
        norm.weight.copy_(0.3 + torch.rand(norm.weight.shape, generator=generator))
        norm.bias.copy_(bias * torch.randn(norm.bias.shape, generator=generator))
    return backbone


def with_joint_dimension(tiny: pb.Backbone, D: int) -> pb.Backbone:
    """A tiny random CLIP with another joint dimension."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        clip = open_clip.CLIP(D, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    return pb.Backbone(clip, tokenizer=tiny.tokenizer)


@torch.no_grad()
def last_states(backbone: pb.Backbone, images: Tensor) -> Tensor:
    """[CLS] (B, d) after the last block of open_clip's own tower."""
    found = backbone.clip.visual._embeds(images)
    for block in backbone.clip.visual.transformer.resblocks:
        found = block(found)
    return found[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("D", [32, 64, 100])
def test_what_is_written_moves_the_feature_to_what_it_says(D: int, tiny: pb.Backbone, images: Tensor) -> None:
    """The width is 64: where D is more than 63, not all that is said can be reached, but features of images can."""
    backbone = with_last_layer_trained(tiny if D == 32 else with_joint_dimension(tiny, D), bias=0.0)
    visual, states = backbone.clip.visual, last_states(backbone, images)
    features = backbone.encode_image(images).cls
    assert features.shape == (6, D) and states.shape == (6, 64)

    def after(written: Tensor) -> Tensor:
        length = states.pow(2).mean(dim=-1, keepdim=True).sqrt()
        return visual.ln_post(states + 1e3 * length * written) @ visual.proj

    anything = torch.randn(6, D, generator=torch.Generator().manual_seed(4))
    for said, within_reach in ((features, True), (features.roll(1, dims=0), True), (anything, D == 32)):
        written = backbone.write_on_image(said)
        assert written.shape == (6, 64)
        torch.testing.assert_close(written.pow(2).mean(dim=-1), torch.ones(6), **CLOSE)
        torch.testing.assert_close(backbone.write_on_image(5 * said), written, **CLOSE)
        near = F.cosine_similarity(after(written), said, dim=-1)
        assert (near > 0.999).all() or not within_reach
        if said is anything:
            assert (near > F.cosine_similarity(features, said, dim=-1) + 0.3).all()


@torch.no_grad()
def test_a_bias_of_the_last_normalisation_does_not_spoil_what_is_written(tiny: pb.Backbone, images: Tensor) -> None:
    backbone = with_last_layer_trained(tiny, bias=0.3)
    said = torch.randn(6, 32, generator=torch.Generator().manual_seed(4))
    state, visual = 1e3 * backbone.write_on_image(said), backbone.clip.visual
    moved = (visual.ln_post(state) - visual.ln_post.bias) @ visual.proj
    torch.testing.assert_close(F.normalize(moved, dim=-1), F.normalize(said, dim=-1), atol=1e-3, rtol=0)


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
@pytest.mark.parametrize("names", [("pizza",), OTHER_CLASSES, tuple(f"class number {i}" for i in range(35))])
@torch.no_grad()
def test_any_number_of_classes(preset: str, names: tuple[str, ...], tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny, preset)
    shapes = {name: tensor.shape for name, tensor in method.state_dict().items()}
    method.set_classes(names)
    logits = method(images[:2]).logits
    assert logits.shape == (2, len(names)) and logits.isfinite().all()
    assert {name: tensor.shape for name, tensor in method.state_dict().items()} == shapes


@pytest.mark.slow
@pytest.mark.parametrize("budget", {"images apart": 1_500_000, "classes apart": 200_000}.items(), ids=lambda b: b[0])
@pytest.mark.parametrize("preset", ["", "cocoop"])
def test_the_memory_budget_changes_nothing(
    preset: str, budget: tuple[str, int], tiny: pb.Backbone, images: Tensor
) -> None:
    """Not so for controls that mix the images of a batch: they mix those that are encoded in one go."""
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


# Controls and settings -----------------------------------------------------------------------------------------------


CONTROLS = [
    ("ftp", "", {"n_visual"}),
    ("tvp", "", {"ftp"}),
    ("cocoop", "ftp", {"ftp"}),
    ("cocoop", "tvp", {"n_visual"}),
    ("cocoop-visual", "tvp", {"tvp_text"}),
    ("ftp-noise", "ftp", {"ftp_image"}),
    ("matched", "cocoop", {"matched"}),
    ("tvp-noise", "", {"tvp_text"}),
    ("tvp-other-image", "", {"tvp_text"}),
    ("tvp-mean", "", {"tvp_text"}),
    ("tvp-zeroed", "", {"tvp_text"}),
    ("second", "", {"answer"}),
]


def test_every_preset_is_a_control_of_another() -> None:
    assert {preset for preset, *_ in CONTROLS} == set(Mutual.presets) - set(recipe.CONTROLS)


@pytest.mark.parametrize(("preset", "other", "changed"), CONTROLS)
def test_a_control_differs_by_one_setting_and_in_what_it_says(
    preset: str, other: str, changed: set[str], tiny: pb.Backbone, images: Tensor
) -> None:
    assert differing(preset, other) == changed
    found, expected = make(tiny, preset), make(tiny, other)
    shapes = [{name: tensor.shape for name, tensor in method.state_dict().items()} for method in (found, expected)]
    if shapes[0] == shapes[1]:
        found.load_state_dict(expected.state_dict())
    assert (found(images).logits - expected(images).logits).abs().max() > 1e-3


def test_fields_that_train_nothing_say_so() -> None:
    assert {f.name for f in fields(Mutual.Config) if not f.metadata.get("trains", True)} == UNTRAINED


def count(**config: object) -> int:
    method = Mutual(fit_to_backbone(Mutual.Config(**config), vit_b16(), explicit=()), vit_b16())
    return sum(parameter.numel() for parameter in method.parameters())


def test_parameters_on_vit_b16_are_those_of_the_specification() -> None:
    ftp, visual = 512 * 32 + 32 + 32 * 512 + 512, 9 * (4 * 768 + 12)
    assert (ftp, visual) == (33_312, 27_756)
    assert count(ftp="tied", n_visual=0) == 35_360 == 4 * 512 + ftp
    assert count(n_visual=0) == 168_608 == 4 * 512 + (1 + 4) * ftp
    assert count() == 196_364 == 168_608 + visual == count(tvp_text="zeroed")
    assert count(ftp="tied") == 35_360 + visual
    assert count(n_visual=2, depth_visual=12) == 168_608 + 12 * (2 * 768 + 12)
    matched = count(ftp="tied", n_visual=0, matched=True)
    assert matched == 2_048 + 512 * 189 + 189 + 189 * 512 + 512 and abs(matched - 196_364) <= (512 + 1 + 512) / 2


def test_the_matched_control_has_the_size_of_the_method_on_any_backbone(tiny: pb.Backbone) -> None:
    sizes = [sum(p.numel() for p in make(tiny, preset).parameters()) for preset in ("", "matched")]
    assert abs(sizes[1] - sizes[0]) <= (32 + 1 + 48) / 2  # half a hidden unit


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"n_visual": -1}, "'n_visual' takes an integer of at least 0"),
        ({"matched": True}, "ftp=tied and n_visual=0"),
        ({"matched": True, "ftp": "tied"}, "ftp=tied and n_visual=0"),
        ({"n_ctx": 3}, "n_ctx is 3, but ctx_init 'a photo of a' has 4 words"),
        ({"depth_visual": 0}, "set n_visual=0"),
        ({"depth_visual": 5}, "vision_depth"),
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
    assert torch.allclose(kit.predict(one, images).logits, alone, atol=LOGITS, rtol=0) == (preset not in MIXING)


# Its figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", WITH_TVP)
def test_diagnostics_are_gates_by_layer_and_variances_and_leave_no_trace(
    preset: str, tiny: pb.Backbone, images: Tensor
) -> None:
    method = make(tiny, preset, depth_visual=3)
    before, found = method(images).logits, method.diagnostics(images)
    variances = set() if preset in WITHOUT_TEXT else {"tvp/variance_of_text", "tvp/variance_of_prompt"}
    assert set(found) == {f"gate/vision/{layer}" for layer in (1, 2, 3)} | variances
    for layer, gates in enumerate(method.visual.gates.tolist(), start=1):
        assert found[f"gate/vision/{layer}"] == pytest.approx(sum(map(abs, gates)) / len(gates))
    assert torch.equal(method(images).logits, before) and found == method.diagnostics(images)


def test_variances_are_one_less_the_squared_length_of_the_mean(tiny: pb.Backbone, images: Tensor) -> None:
    method = make(tiny)
    read = method.reorganized(*seen(method, images))
    found = method.diagnostics(images)
    for name, made in (("text", F.normalize(read, dim=-1)), ("prompt", tiny.write_on_image(read) / 64**0.5)):
        expected = 1 - float(made.mean(dim=0).square().sum())
        assert 1e-4 < found[f"tvp/variance_of_{name}"] == pytest.approx(expected, abs=1e-5)


def test_the_mean_text_is_the_same_for_all_images_where_texts_are(tiny: pb.Backbone, images: Tensor) -> None:
    """Without FTP the mean text, unlike the reorganised one, knows nothing of the image."""
    mean, own = make(tiny, "tvp-mean"), make(tiny)
    later = mean.diagnostics(images)
    for method in (mean, own):
        silence(method.ftp)
    for name in ("tvp/variance_of_text", "tvp/variance_of_prompt"):
        assert mean.diagnostics(images)[name] < 1e-9 < 1e-6 < later[name]
        assert own.diagnostics(images)[name] > 1e-4
