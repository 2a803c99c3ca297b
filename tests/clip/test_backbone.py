"""The backbone's openings change nothing they are not asked to change."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.clip import backbone, prompts, text_tower
from promptbench.clip.backbone import ARCHITECTURE, Backbone
from promptbench.clip.block import is_standard, mlp
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.clip.load import load_backbone, shape_of
from promptbench.clip.text_tower import Layer, Tokens, causal_mask, mean_length
from promptbench.config import UsageError

NAMES = ["golden retriever", "pizza", "Boeing 737-800", "annual crop land", "jack-o'-lantern"]
TEXTS = [f"a photo of a {name}." for name in NAMES]
CLOSE = {"rtol": 0, "atol": 1e-5}


def plain_block(index: int, block: torch.nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """open_clip's own block, which sends everything through the full path."""
    return block(x, attn_mask=mask)


@pytest.fixture
def pixels(tiny: Backbone) -> Tensor:
    return torch.randn(3, 3, tiny.resolution, tiny.resolution, generator=torch.Generator().manual_seed(0))


def learned(*shape: int, seed: int = 0) -> Tensor:
    return (0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(output.sin().sum(), inputs))


def prompted(tiny: Backbone, images: int) -> tuple[Tokens, Tensor, dict[int, Tensor]]:
    """Class tokens, a prefix per image, deep prompts shared and per image."""
    tokens = tiny.embed_text(TEXTS)
    prefix = learned(images, tokens.shared(), tiny.text_width)
    deep = {1: learned(images, 2, tiny.text_width, seed=1), 2: learned(2, tiny.text_width, seed=2)}
    return tokens.after(tokens.shared()), prefix, deep


def test_plain_text_equals_open_clip_exactly(tiny: Backbone) -> None:
    ids = tiny.tokenizer(TEXTS)
    embeddings = tiny.clip.token_embedding(ids)
    assert torch.equal(tiny.encode_text(embeddings, ids.argmax(dim=1)), tiny.clip.encode_text(ids))


def test_trimmed_text_equals_open_clip(tiny: Backbone) -> None:
    tokens = tiny.embed_text(TEXTS)
    assert tokens.embeddings.shape[1] < tiny.context_length
    expected = tiny.clip.encode_text(tiny.tokenizer(TEXTS))
    torch.testing.assert_close(tiny.encode_text(tokens.embeddings, tokens.eot), expected, **CLOSE)


def test_shared_prefix_equals_open_clip(tiny: Backbone) -> None:
    tokens = tiny.embed_text(TEXTS)
    n = tokens.shared()
    assert n == 5  # [SOS] a photo of a
    rest = tokens.after(n)
    features = tiny.encode_text(rest.embeddings, rest.eot, prefix=tokens.embeddings[0, :n])
    torch.testing.assert_close(features, tiny.clip.encode_text(tiny.tokenizer(TEXTS)), **CLOSE)


@pytest.mark.parametrize("images", [1, 3])
def test_shared_prefix_equals_full_sequences_with_gradients(tiny: Backbone, images: int) -> None:
    rest, prefix, deep = prompted(tiny, images)
    shared = tiny.encode_text(rest.embeddings, rest.eot, prefix, deep)
    full = tiny.encode_text(rest.embeddings, rest.eot, prefix, deep, layer=plain_block)
    assert shared.shape == (images, len(NAMES), tiny.embed_dim)
    torch.testing.assert_close(shared, full, **CLOSE)
    for a, b in zip(
        gradients(shared, [prefix, *deep.values()]), gradients(full, [prefix, *deep.values()]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [None, plain_block])
@pytest.mark.parametrize("texts_per_chunk", [1, 2, 7])
def test_chunks_change_nothing(tiny: Backbone, layer: Layer | None, texts_per_chunk: int) -> None:
    rest, prefix, deep = prompted(tiny, images=3)
    whole = tiny.encode_text(rest.embeddings, rest.eot, prefix, deep, layer)
    tiny.memory_budget = 1
    length = mean_length(rest.eot) if layer is None else prefix.shape[1] + rest.embeddings.shape[1]
    while tiny.texts_within_budget(length) < texts_per_chunk:
        tiny.memory_budget *= 2
    chunked = tiny.encode_text(rest.embeddings, rest.eot, prefix, deep, layer)
    torch.testing.assert_close(chunked, whole, **CLOSE)
    inputs = [prefix, *deep.values()]
    for a, b in zip(gradients(chunked, inputs), gradients(whole, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 15, 60, 2048])
def test_on_a_cpu_texts_are_scored_in_parts_that_its_cache_holds(
    tokens: int, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients alone: with them, a group more than one would have to be computed again."""
    rest, prefix, deep = prompted(tiny, images=5)
    sizes: list[tuple[int, int]] = []
    encode = text_tower.encode

    def counting(path: Any, tower: Any, texts: text_tower.Texts) -> Tensor:
        sizes.append(texts.sizes)
        return encode(path, tower, texts)

    monkeypatch.setattr(text_tower, "encode", counting)
    monkeypatch.setattr(backbone, "CACHED", 4 * tiny.text_width * tokens)
    learned = tiny.encode_text(rest.embeddings, rest.eot, prefix, deep)
    with torch.no_grad():
        found = tiny.encode_text(rest.embeddings, rest.eot, prefix, deep)
    assert sizes.pop(0) == (5, 5)
    most = max(1, int(tokens / mean_length(rest.eot)))
    at_once = min(5, max(1, most // 5))
    groups = [at_once] * (5 // at_once) + [5 % at_once] * (5 % at_once > 0)
    assert [images for images, _ in sizes] == [images for images in groups for _ in range(math.ceil(5 / most))]
    assert sum(images * classes for images, classes in sizes) == 25
    assert max(images * classes for images, classes in sizes) <= most
    torch.testing.assert_close(found, learned, **CLOSE)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_layers_of_a_block_equal_open_clips_with_gradients(frozen: bool, tiny: Backbone) -> None:
    standard = copy.deepcopy(tiny.clip.transformer.resblocks[0]).double()
    standard.mlp[1] = open_clip.transformer.QuickGELU()
    x = torch.randn(2, 5, tiny.text_width, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    learned = [x, *standard.mlp.requires_grad_(not frozen).parameters()][: 1 if frozen else None]
    ours, expected = mlp(standard, x), standard.mlp(x)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(gradients(ours, learned), gradients(expected, learned), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("texts_at_once", [1, 2, 7])
def test_blocks_may_be_run_by_a_method(tiny: Backbone, texts_at_once: int, learns: bool) -> None:
    """It is told which classes to run: all at once, or even parts, half as large where they are run again."""
    tokens, shift, parts = tiny.embed_text(TEXTS), learned(tiny.text_width), []
    length = tokens.ids.shape[1]

    def states(resblocks: Any, part: slice) -> Tensor:
        parts.append(part)
        x = tokens.embeddings[part] + tiny.text_positions[:length] + shift
        for block in resblocks:
            x = block(x, attn_mask=causal_mask(length, length, x))
        return x[torch.arange(len(x)), tokens.eot[part]]

    whole = tiny.encode_text(tokens.embeddings + shift, tokens.eot)
    tiny.memory_budget = 1
    while tiny.texts_within_budget(length, learns) < texts_at_once:
        tiny.memory_budget *= 2
    with torch.set_grad_enabled(learns):
        found = tiny.run_text(states, len(TEXTS), length, learns=True)
    torch.testing.assert_close(found, whole, **CLOSE)
    most = tiny.texts_within_budget(length, learns)
    if most < len(TEXTS) and learns:
        most = max(1, most // 2)
    ran = [len(range(*part.indices(len(TEXTS)))) for part in parts]
    assert sum(ran) == len(TEXTS) and len(ran) == math.ceil(len(TEXTS) / most)
    assert max(ran) <= most and max(ran) - min(ran) <= 1
    if learns:
        torch.testing.assert_close(*(gradients(text, [shift])[0] for text in (found, whole)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("at_once", [1, 4, 15])
def test_an_ensemble_is_embedded_in_parts(
    at_once: int, normalised: bool, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = ("a photo of a {}.", "itap of my {}, indoors.", "{}")
    names = ["jack_o_lantern", *NAMES[1:]]
    each = [prompts.in_templates([template], names) for template in templates]
    assert each[1][0] == "itap of my jack o lantern, indoors."
    embedded: list[int] = []

    def counting(ids: Tensor, eot: Tensor) -> Tokens:
        embedded.append(len(ids))
        return Backbone.embed_tokens(tiny, ids, eot)

    monkeypatch.setattr(tiny, "embed_tokens", counting)
    monkeypatch.setattr(prompts, "EMBEDDED_AT_ONCE", at_once)
    texts = prompts.ensemble(tiny, templates, names)
    assert embedded == []  # nothing is, before it is asked for
    found = texts.encode(tiny, normalised)
    assert sum(embedded) == 15 and max(embedded) == at_once
    features = [tiny.clip.encode_text(tiny.tokenizer(texts)) for texts in each]
    if normalised:
        features = [F.normalize(of_one, dim=-1) for of_one in features]
    torch.testing.assert_close(found, torch.stack(features).mean(dim=0), **CLOSE)


def test_class_tokens_may_differ_per_image(tiny: Backbone) -> None:
    tokens = tiny.embed_text(TEXTS)
    per_image = tokens.embeddings + learned(2, 1, 1, tiny.text_width)
    together = tiny.encode_text(per_image, tokens.eot)
    apart = torch.stack([tiny.encode_text(image, tokens.eot) for image in per_image])
    torch.testing.assert_close(together, apart, **CLOSE)


def test_plain_image_equals_open_clip_exactly(tiny: Backbone, pixels: Tensor) -> None:
    assert torch.equal(tiny.encode_image(pixels, layer=plain_block).cls, tiny.clip.encode_image(pixels))
    torch.testing.assert_close(tiny.encode_image(pixels).cls, tiny.clip.encode_image(pixels), **CLOSE)


def test_a_foreign_image_tower_runs_as_it_is(tiny: Backbone, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    visual = tiny.clip.visual
    monkeypatch.setattr(visual, "pool_type", "avg")
    mean = tiny.encode_image(pixels).cls
    assert torch.equal(mean, tiny.clip.encode_image(pixels))
    monkeypatch.setattr(visual, "pool_type", "tok")
    assert not torch.allclose(mean, tiny.encode_image(pixels).cls)


@pytest.mark.parametrize("replaced", [(), (1,), (1, 2, 3), (3,)])
def test_visual_prompts_equal_full_sequences_with_gradients(
    tiny: Backbone, pixels: Tensor, replaced: tuple[int, ...]
) -> None:
    prompts = learned(2, tiny.vision_width)
    deep = {i: learned(2, tiny.vision_width, seed=i) for i in replaced}
    read_only = tiny.encode_image(pixels, prompts, deep)
    whole = tiny.encode_image(pixels, prompts, deep, layer=plain_block)
    torch.testing.assert_close(read_only.cls, whole.cls, **CLOSE)
    inputs = [prompts, *deep.values()]
    for a, b in zip(gradients(read_only.cls, inputs), gradients(whole.cls, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_visual_prompts_may_differ_per_image(tiny: Backbone, pixels: Tensor) -> None:
    prompts = learned(3, 2, tiny.vision_width)
    together = tiny.encode_image(pixels, prompts).cls
    apart = torch.cat([tiny.encode_image(pixels[i : i + 1], prompts[i]).cls for i in range(3)])
    torch.testing.assert_close(together, apart, **CLOSE)


def test_dense_features_do_not_disturb_the_global_one(tiny: Backbone, pixels: Tensor) -> None:
    features = tiny.encode_image(pixels, local=True)
    torch.testing.assert_close(features.cls, tiny.clip.encode_image(pixels), **CLOSE)
    assert features.local is not None and features.patches is not None and features.local_unprojected is not None
    assert features.local.shape == (3, 16, tiny.embed_dim)
    assert features.patches.shape == features.local_unprojected.shape == (3, 16, tiny.vision_width)
    with_layer = tiny.encode_image(pixels, layer=plain_block, local=True)
    torch.testing.assert_close(with_layer.local, features.local, **CLOSE)
    torch.testing.assert_close(with_layer.patches, features.patches, **CLOSE)


def test_dense_features_are_the_last_blocks_value_path(tiny: Backbone, pixels: Tensor) -> None:
    visual = tiny.clip.visual
    x = visual._embeds(pixels)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    d = x.shape[-1]
    value = torch.nn.functional.linear(last.ln_1(x), last.attn.in_proj_weight[2 * d :], last.attn.in_proj_bias[2 * d :])
    x = x + last.attn.out_proj(value)
    x = visual.ln_post(x + last.mlp(last.ln_2(x)))[:, 1:] @ visual.proj
    torch.testing.assert_close(tiny.encode_image(pixels, local=True).local, x, **CLOSE)


def test_a_block_may_be_changed_through_layer(tiny: Backbone, pixels: Tensor) -> None:
    def skip_last(index: int, block: torch.nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        return x if index == 3 else block(x, attn_mask=mask)

    assert not torch.allclose(tiny.encode_image(pixels, layer=skip_last).cls, tiny.encode_image(pixels).cls)
    tokens = tiny.embed_text(TEXTS)
    changed = tiny.encode_text(tokens.embeddings, tokens.eot, layer=skip_last)
    assert not torch.allclose(changed, tiny.encode_text(tokens.embeddings, tokens.eot))


def test_cached_features_are_passed_on(tiny: Backbone, pixels: Tensor) -> None:
    features = ImageFeatures(torch.randn(3, tiny.embed_dim))
    assert tiny.encode_image(Images(features=features)) is features
    with pytest.raises(ValueError, match="cached features only"):
        tiny.encode_image(Images(features=features), prompts=learned(2, tiny.vision_width))


def test_nothing_of_clip_learns(tiny: Backbone, pixels: Tensor) -> None:
    before = tiny.weights_hash
    prompts = learned(2, tiny.vision_width)
    tiny.train().encode_image(pixels, prompts).cls.sum().backward()
    assert not tiny.training and not any(p.requires_grad or p.grad is not None for p in tiny.parameters())
    assert prompts.grad is not None
    del tiny.__dict__["weights_hash"]
    assert tiny.weights_hash == before


def test_weights_hash_sees_one_changed_number(tiny_name: str) -> None:
    one, other = load_backbone(tiny_name), load_backbone(tiny_name)
    assert one.weights_hash == other.weights_hash
    changed = load_backbone(tiny_name)
    with torch.no_grad():
        changed.clip.visual.proj[0, 0] += 1e-3
    assert changed.weights_hash != one.weights_hash


def changed_quick_gelu(tiny: Backbone) -> None:
    tiny.clip.visual.transformer.resblocks[1].mlp.gelu = torch.nn.GELU()


def changed_heads(tiny: Backbone) -> None:
    tiny.clip.transformer.resblocks[0].attn.num_heads = 4


def changed_eps(tiny: Backbone) -> None:
    tiny.clip.visual.ln_post.eps = 1e-6


def changed_mean(tiny: Backbone) -> None:
    tiny.clip.visual.image_mean = (0.5, 0.5, 0.5)


def changed_std(tiny: Backbone) -> None:
    tiny.clip.visual.image_std = (0.5, 0.5, 0.5)


def changed_resolution(tiny: Backbone) -> None:
    tiny.clip.visual.image_size = (64, 64)


def changed_context(tiny: Backbone) -> None:
    tiny.clip.positional_embedding = torch.nn.Parameter(tiny.clip.positional_embedding[:50].clone())


def changed_dtype(tiny: Backbone) -> None:
    tiny.clip.text_projection.data = tiny.clip.text_projection.data.half()


def changed_pooling(tiny: Backbone) -> None:
    tiny.clip.visual.pool_type = "avg"


def changed_tokenizer(tiny: Backbone) -> None:
    plain = tiny.tokenizer
    tiny.tokenizer = lambda texts, context_length: plain([text.upper() + "?" for text in texts], context_length)


@pytest.mark.parametrize("change", [value for name, value in list(globals().items()) if name.startswith("changed_")])
def test_another_fact_is_another_architecture(change: Callable[[Backbone], None], tiny: Backbone) -> None:
    before = tiny.architecture
    del tiny.architecture
    change(tiny)
    assert tiny.architecture != before


def test_the_same_facts_in_other_words_are_the_same_architecture(tiny: Backbone) -> None:
    before = tiny.architecture
    assert before.startswith(ARCHITECTURE) and len(before) == len(ARCHITECTURE) + 64
    del tiny.architecture
    for module in list(tiny.clip.modules()):  # as of versions of torch or open_clip that name and print other things
        if list(module.children()) or list(module.parameters()):
            named = type(f"New{type(module).__name__}", (type(module),), {"extra_repr": lambda self: "new=True"})
            module.__class__ = named
    tiny.clip.visual.ln_pre.p = torch.nn.Dropout()
    assert "NewCLIP" in repr(tiny.clip) and "new=True" in repr(tiny.clip)
    assert tiny.architecture == before


def test_an_attention_is_known_by_what_it_has(tmp_path: Path, tiny_name: str, pixels: Tensor) -> None:
    file, _, tag = tiny_name.partition(":")
    config = json.loads(Path(file).read_text())
    for name in ("vision_cfg", "text_cfg"):
        config[name]["block_type"] = "custom"  # open_clip's own attention, no `nn.MultiheadAttention`
    (tmp_path / "own.json").write_text(json.dumps(config))
    own = load_backbone(f"{tmp_path / 'own.json'}:{tag}")
    blocks = [*own.clip.visual.transformer.resblocks, *own.clip.transformer.resblocks]
    assert not isinstance(blocks[0].attn, torch.nn.MultiheadAttention) and all(map(is_standard, blocks))
    tokens, prefix, deep = prompted(own, images=2)
    args = (tokens.embeddings, tokens.eot, prefix, deep)
    torch.testing.assert_close(own.encode_text(*args), own.encode_text(*args, layer=plain_block), **CLOSE)
    torch.testing.assert_close(own.encode_image(pixels).cls, own.clip.encode_image(pixels), **CLOSE)
    visual = learned(2, own.vision_width, seed=4)
    full = own.encode_image(pixels, visual, layer=plain_block).cls
    torch.testing.assert_close(own.encode_image(pixels, visual).cls, full, **CLOSE)
    blocks[0].attn.ln_q = torch.nn.LayerNorm(32)
    blocks[1].ln_attn = torch.nn.LayerNorm(64)
    blocks[2].attn.logit_scale = torch.nn.Parameter(torch.ones(2, 1, 1))
    assert [is_standard(block) for block in blocks[:4]] == [False, False, False, True]


def test_a_text_that_would_be_cut_is_refused(tiny: Backbone) -> None:
    fits = " ".join(["a"] * 75)
    assert int(tiny.embed_text([fits]).eot) == 76
    with pytest.raises(UsageError, match="longer than the 77 tokens"):
        tiny.embed_text(["short", fits + " a"])


def test_words_never_seen_are_said(tiny: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    tiny.known_tokens = frozenset(tiny.tokenizer(["a photo of a dog."]).flatten().tolist())
    tiny.embed_text(["a photo of a dog."])
    assert not caplog.records
    tiny.embed_text(["a photo of a cat.", "a photo of a dog."])
    assert "never trained on 'cat'" in caplog.text and "dog" not in caplog.text
    tiny.embed_text(["a cat", "a photo of a cat."])
    tiny.embed_text(["X X X dog."])  # a learned context takes these places
    assert len(caplog.records) == 1  # each word is said once


@pytest.fixture
def resnet() -> Backbone:
    """A small random ResNet of CLIP's kind, whose biases, batch statistics and residual branches are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.model.CLIP(
            embed_dim=24,
            vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 32},
            text_cfg={"width": 32, "heads": 2, "layers": 2, "vocab_size": 49408, "context_length": 77},
        )
        for name, tensor in clip.visual.state_dict().items():
            if name.endswith(("bias", "running_mean", "bn3.weight")):
                tensor.normal_(std=0.3)
    return Backbone(clip, open_clip.get_tokenizer("RN50"), name="small resnet")


def test_dense_features_of_a_resnet_are_its_attention_pools_values(resnet: Backbone) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features, visual = resnet.encode_image(images, local=True), resnet.clip.visual
    torch.testing.assert_close(features.cls, resnet.clip.encode_image(images), **CLOSE)
    final = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))  # (2, 256, 2, 2)
    assert features.local is not None and features.local_unprojected is not None and features.patches is not None
    assert features.local.shape == (2, 4, resnet.embed_dim) and features.patches.shape == (2, 4, resnet.vision_width)
    assert features.local_unprojected.shape == (2, 4, resnet.local_width)
    pool = visual.attnpool
    for row in range(2):
        for column in range(2):
            position = final[:, :, row, column]
            value = position @ pool.v_proj.weight.T + pool.v_proj.bias
            value = value @ pool.c_proj.weight.T + pool.c_proj.bias
            torch.testing.assert_close(features.local[:, 2 * row + column], value, **CLOSE)
            assert torch.equal(features.patches[:, 2 * row + column], position)
    assert torch.equal(resnet.project_local(features.local_unprojected), features.local)


def test_the_pool_over_one_position_gives_its_value(resnet: Backbone) -> None:
    """Attending to a single position, without positions, is what the value path stands for."""
    pool = resnet.clip.visual.attnpool
    final = torch.randn(1, pool.v_proj.in_features, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pool.positional_embedding = torch.nn.Parameter(torch.zeros(2, pool.v_proj.in_features))
        pooled = pool(final)  # the mean and the position itself, which are the same
    torch.testing.assert_close(pooled, pool.c_proj(pool.v_proj(final.flatten(1))), **CLOSE)


def test_prompts_in_a_resnet_are_refused(resnet: Backbone) -> None:
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(resnet.encode_image(images).cls, resnet.clip.encode_image(images))
    assert (resnet.vision_depth, resnet.text_depth) == (0, 2)
    for asked in ({"prompts": torch.zeros(2, resnet.vision_width)}, {"layer": plain_block, "local": True}):
        with pytest.raises(UsageError, match="'small resnet' .* takes no visual prompts"):
            resnet.encode_image(images, **asked)


def test_a_foreign_image_tower_gives_no_dense_features(tiny: Backbone) -> None:
    class Foreign(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 32)

    tiny.clip.visual = Foreign()
    images = torch.randn(2, 3, 32, 32)
    assert tiny.encode_image(images).cls.shape == (2, 32)
    with pytest.raises(UsageError, match="gives no dense features"):
        tiny.encode_image(images, local=True)


def test_a_text_tower_without_causal_blocks_is_refused() -> None:
    class Foreign(torch.nn.Module):
        transformer = None

    with pytest.raises(UsageError, match="text tower that prompts cannot enter"):
        Backbone(Foreign(), lambda texts: torch.zeros(1), name="foreign")


def test_shape_is_known_without_loading(tiny: Backbone, tiny_name: str) -> None:
    shape = shape_of(tiny_name)
    assert (shape.text_depth, shape.vision_depth) == (tiny.text_depth, tiny.vision_depth)
    vit = shape_of("ViT-B-16-quickgelu:openai")
    assert (vit.text_depth, vit.vision_depth) == (12, 12)
    assert shape_of("RN50:openai").vision_depth == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ViT-B-16", "names no weights"),
        ("ViT-B-61:openai", "no architecture 'ViT-B-61'. Did you mean 'ViT-B-16'"),
        ("ViT-B-16:opnai", "Did you mean 'openai'"),
        ("mnii", "Did you mean 'mini'"),
    ],
)
def test_a_wrong_backbone_name_gets_the_nearest_right_one(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_backbone(name)


def test_openai_weights_get_quick_gelu_and_a_network_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def offline(architecture: str, **arguments: object) -> None:
        asked.update(arguments, architecture=architecture)
        raise OSError("no route")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(UsageError, match=r"without a network, download https://hugging.*timm/.* and name the file"):
        load_backbone("ViT-B-16:openai")
    assert asked["force_quick_gelu"] is True
    with pytest.raises(UsageError):
        load_backbone("ViT-B-16:laion2b_s34b_b88k")
    assert asked["force_quick_gelu"] is False


def test_a_file_without_a_word_on_its_activation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="name ViT-B-16-quickgelu:.* for OpenAI's weights, or ViT-B-16-gelu:"):
        load_backbone(f"ViT-B-16:{file}")
    asked: dict[str, object] = {}

    def create(architecture: str, **arguments: object) -> None:
        asked.update(arguments, architecture=architecture)
        raise RuntimeError("stop here")

    monkeypatch.setattr(open_clip, "create_model", create)
    for name, quick in (("ViT-B-16-gelu", False), ("ViT-B-16-quickgelu", True)):
        with pytest.raises(UsageError, match="cannot be loaded"):
            load_backbone(f"{name}:{file}")
        assert asked["force_quick_gelu"] is quick and asked["pretrained"] == str(file)
    assert shape_of(f"ViT-B-16-gelu:{file}").text_depth == 12


def test_a_pickle_of_weights_is_read_without_torch_s_reader(
    tmp_path: Path, tiny: Backbone, tiny_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bare state, as a training of open_clip leaves it, and with tensors that are views of one storage."""
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    state = tiny.clip.state_dict()
    state["visual.proj"] = state["visual.proj"].T.contiguous().T
    architecture = tiny_name.partition(":")[0]
    for content in (state, {"epoch": 3, "state_dict": {f"module.{name}": held for name, held in state.items()}}):
        torch.save(content, tmp_path / "weights.pt")
        loaded = load_backbone(f"{architecture}:{tmp_path / 'weights.pt'}")
        assert loaded.weights_hash == tiny.weights_hash
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.filterwarnings("ignore")  # of torch, that TorchScript has no future
def test_a_module_of_torchscript_has_weights_as_in_openai_s_files(
    tmp_path: Path, tiny: Backbone, tiny_name: str, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = copy.deepcopy(tiny.clip).float()
    clip.register_buffer("input_resolution", torch.tensor(32))  # as OpenAI's have
    texts = torch.zeros(1, tiny.context_length, dtype=torch.long)
    torch.jit.trace(clip, (pixels[:1], texts), check_trace=False).save(str(tmp_path / "weights.pt"))
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(torch.jit, "load", None)
    assert load_backbone(f"{tiny_name.partition(':')[0]}:{tmp_path / 'weights.pt'}").weights_hash == tiny.weights_hash


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": torch.zeros(1)}, "cannot be loaded into"),
        ([torch.zeros(1)], "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        (dict.fromkeys(map(str, range(99)), torch.zeros(10_000)), "far larger than it is"),
    ],
)
def test_a_pickle_of_other_things_is_no_weight_file(tmp_path: Path, content: object, said: str, tiny_name: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=said) as caught:
        load_backbone(f"{tiny_name.partition(':')[0]}:{tmp_path / 'weights.pt'}")
    assert "weights.pt" in str(caught.value) and "\n" not in str(caught.value)
