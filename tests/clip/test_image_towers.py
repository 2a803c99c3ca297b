"""Image towers of other kinds: timm's transformers, and those of open_clip that pool their tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor

from promptbench.clip.backbone import Backbone
from promptbench.clip.block import Change, LowRank
from promptbench.clip.load import load_backbone
from promptbench.config import UsageError

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 32}
TIMM = {
    "eva02": ("eva02_base_patch16_clip_224", "token", None, {"patch_size": 8}),
    "eva02 e": ("eva02_enormous_patch14_clip_224", "token", None, {"patch_size": 8}),
    "eva01": ("eva_giant_patch14_224", "token", None, {"patch_size": 8}),
    "pe": ("vit_pe_core_base_patch16_224", "map", None, {"patch_size": 8}),
    "siglip": ("vit_base_patch16_siglip_224", "map", "none", {"patch_size": 8}),
    "mobileclip-b": ("vit_base_mci_224", "token", None, {"embed_dim": 768}),
    "mobileclip2-l": ("vit_large_patch14_clip_224", "token", None, {"patch_size": 8}),
    "gap": ("vit_medium_patch16_gap_256", "", "linear", {"patch_size": 8}),
}
POOLED = {
    "coca": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4, "output_tokens": True},
    "clipa": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "avg": {"pool_type": "avg"},
}


def build(vision: dict[str, Any], name: str) -> Backbone:
    """A small random model in float64, every tensor of which is random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.model.CustomTextCLIP(embed_dim=48, vision_cfg=vision, text_cfg=dict(TEXT))
        for tensor in clip.parameters():
            if tensor.dim() < 2 or tensor.shape[0] == 1:
                tensor.data += 0.1 * torch.randn_like(tensor)
    return Backbone(clip.double(), lambda texts, context_length: torch.zeros(1), name=name)


@pytest.fixture
def of_timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the models of `TIMM`, as open_clip names them, small."""

    def build_small(kind: str) -> Backbone:
        name, pool, proj, sizes = TIMM[kind]
        create = partial(timm.create_model, **{**SMALL, **sizes})
        monkeypatch.setattr(open_clip.timm_model.timm, "create_model", create)
        made = build({"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 32}, f"small {kind}")
        monkeypatch.undo()
        return made

    return build_small


@pytest.fixture(params=TIMM)
def tower(request: pytest.FixtureRequest, of_timm: Any) -> Backbone:
    return of_timm(request.param)


@pytest.fixture(params=POOLED)
def pooling(request: pytest.FixtureRequest) -> Backbone:
    sizes = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    return build({**sizes, **POOLED[request.param]}, f"small {request.param}")


def learned(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 * drawn).requires_grad_()


def pixels(clip: Backbone) -> Tensor:
    patch_embed = getattr(getattr(clip.clip.visual, "trunk", None), "patch_embed", None)
    side = 32 if patch_embed is None else patch_embed.img_size[0]
    return learned(3, 3, side, side, seed=9).detach()


def own(clip: Backbone, images: Tensor) -> Tensor:
    """What open_clip's tower says of images."""
    found = clip.clip.visual(images)
    return found[0] if isinstance(found, tuple) else found


def same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    pairs = zip(
        *(torch.autograd.grad(x.sin().sum(), inputs, retain_graph=True) for x in (found, expected)), strict=True
    )
    for a, b in pairs:
        assert b.abs().max() > 1e-9
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@contextmanager
def with_prompts(blocks: Any, start: int, n: int, before: Mapping[int, Tensor]) -> Iterator[None]:
    """Tokens among those of a tower, after the first `start`: from the first block in `before` on, or replaced there.

    In timm's attention, that many tokens more are not turned.
    """
    hooks = []

    def put(module: Any, given: Any, index: int) -> Any:
        x, behind = given[0], start + n * (index > min(before))
        return torch.cat([x[:, :start], before[index].expand(len(x), n, -1), x[:, behind:]], dim=1), *given[1:]

    for index in before:
        hooks.append(blocks[index].register_forward_pre_hook(partial(put, index=index)))
    for block in blocks:
        if hasattr(block.attn, "num_prefix_tokens"):
            block.attn.num_prefix_tokens += n
    last = blocks[len(blocks) - 1]
    hooks.append(last.register_forward_hook(lambda module, given, y: torch.cat([y[:, :start], y[:, start + n :]], 1)))
    yield
    for hook in hooks:
        hook.remove()
    for block in blocks:
        if hasattr(block.attn, "num_prefix_tokens"):
            block.attn.num_prefix_tokens -= n


def test_plain_images_equal_the_tower(tower: Backbone) -> None:
    images = pixels(tower)
    assert torch.equal(tower.encode_image(images).cls, own(tower, images))
    torch.testing.assert_close(tower.encode_image(images, local=True).cls, own(tower, images), rtol=0, atol=1e-9)
    assert (tower.vision_depth, tower.vision_layers) == (3, 0)


@pytest.mark.parametrize("replaced", [(), (1,), (1, 2)])
def test_visual_prompts_equal_timm_with_gradients(tower: Backbone, replaced: tuple[int, ...]) -> None:
    trunk, images = tower.clip.visual.trunk, pixels(tower)
    prompts = learned(2, tower.vision_width)
    deep = {i: learned(2, tower.vision_width, seed=i) for i in replaced}
    first = trunk.norm_pre(prompts) if hasattr(trunk, "norm_pre") else prompts
    with with_prompts(trunk.blocks, trunk.num_prefix_tokens, 2, {0: first, **deep}):
        expected = own(tower, images)
    same(tower.encode_image(images, prompts, deep).cls, expected, [prompts, *deep.values()])
    of_each = torch.stack([prompts, learned(2, tower.vision_width, seed=5), prompts])
    apart = tower.encode_image(images, of_each, deep, local=True).cls
    torch.testing.assert_close(apart[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-9)
    assert not torch.equal(apart[1], expected[1])


def test_dense_features_of_timm_are_what_the_last_mixing_makes_of_a_patch(tower: Backbone) -> None:
    visual, images = tower.clip.visual, pixels(tower)
    trunk, features = visual.trunk, tower.encode_image(images, local=True)
    x, first = trunk.forward_features(images), trunk.num_prefix_tokens
    patches = x[:, first:]
    torch.testing.assert_close(features.patches, patches, rtol=0, atol=1e-9)
    if trunk.attn_pool is None and trunk.global_pool == "token":  # each token attends to itself alone
        alone = torch.full((x.shape[1],) * 2, float("-inf"), dtype=x.dtype).fill_diagonal_(0)
        take = trunk.blocks[-1].register_forward_hook(
            lambda module, given, options, y: taken.append((given, options)), with_kwargs=True
        )
        taken: list[Any] = []
        trunk.forward_features(images)
        take.remove()
        (given, options), *_ = taken
        patches = trunk.norm(trunk.blocks[-1](given[0], **{**options, "attn_mask": alone}))[:, first:]
    torch.testing.assert_close(features.local_unprojected, patches, rtol=0, atol=1e-9)
    pooled = (
        trunk.attn_pool(patches.reshape(-1, 1, tower.vision_width)).view_as(patches)
        if trunk.attn_pool is not None
        else patches
    )
    local = visual.head(trunk.head(trunk.fc_norm(pooled)))
    torch.testing.assert_close(features.local, local, rtol=0, atol=1e-9)
    torch.testing.assert_close(tower.project_local(features.local_unprojected), features.local, rtol=0, atol=1e-12)
    assert features.local.shape == (3, tower.patches, tower.embed_dim) and tower.local_width == patches.shape[2]


def test_towers_that_pool_equal_open_clip(pooling: Backbone) -> None:
    """Plain and with prompts, deep ones too; dense features are what the pool makes of a patch alone."""
    images, visual = pixels(pooling), pooling.clip.visual
    assert torch.equal(pooling.encode_image(images).cls, own(pooling, images))
    prompts, deep = learned(2, 32), {2: learned(2, 32, seed=1)}
    with with_prompts(visual.transformer.resblocks, 1, 2, {0: visual.ln_pre(prompts), **deep}):
        expected = own(pooling, images)
    features = pooling.encode_image(images, prompts, deep, local=True)
    same(features.cls, expected, [prompts, *deep.values()])
    same(pooling.encode_image(images, prompts, deep).cls, expected, [prompts, *deep.values()])
    for p in (0, 7):
        alone = features.patches[:, p : p + 1].expand(-1, 2, -1)  # in the place of [CLS] and of a patch
        torch.testing.assert_close(features.local[:, p], visual._pool(alone)[0] @ visual.proj, rtol=0, atol=1e-9)
    torch.testing.assert_close(pooling.project_local(features.local_unprojected), features.local, rtol=0, atol=1e-12)


def test_changes_and_inserted_tokens_in_towers_that_pool(pooling: Backbone) -> None:
    images, visual = pixels(pooling), pooling.clip.visual
    down, up, inserted = learned(2, 32), learned(32, 2, seed=1), {1: learned(2, 32, seed=2), 2: learned(2, 32, seed=3)}
    found = pooling.encode_image(images, changes={1: Change({"o": LowRank(down, up, 0.5)})}, inserted=inserted)
    weight = visual.transformer.resblocks[1].attn.out_proj._parameters.pop("weight").data
    visual.transformer.resblocks[1].attn.out_proj.weight = weight + 0.5 * up @ down
    with with_prompts(visual.transformer.resblocks, 1, 2, inserted):
        taken: list[Tensor] = []
        last = visual.transformer.resblocks[2]
        take = last.register_forward_hook(lambda module, given, y: taken.append(y), prepend=True)
        expected = own(pooling, images)
        take.remove()
    same(found.cls, expected, [down, up, *inserted.values()])
    same(found.inserted, taken[0][:, 1:3], [down, up, *inserted.values()])


def test_what_replaces_or_changes_blocks_is_refused(of_timm: Any) -> None:
    clip = of_timm("eva02")
    images = pixels(clip)
    with pytest.raises(UsageError, match=r"blocks are not built as CLIP's \(timm's Eva\), so they cannot be changed"):
        clip.encode_image(images, changes={0: Change()})
    with pytest.raises(UsageError, match=r"not read at \[CLS\] .* \(timm's Eva\), but this method replaces them"):
        clip.encode_image(images, layer=lambda index, block, x, mask: x)
    for asked in (lambda: clip.vision_heads, lambda: clip.write_on_image(torch.zeros(1, 48))):
        with pytest.raises(UsageError, match="but this method replaces them"):
            asked()


@pytest.mark.parametrize(
    ("name", "kind"), [("test_convnext", "ConvNeXt"), ("test_vit_relpos", "VisionTransformerRelPos")]
)
def test_towers_without_tokens_of_that_kind_carry_text_alone(name: str, kind: str) -> None:
    clip = build({"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 160}, "small other")
    images = learned(2, 3, 160, 160).detach()
    assert torch.equal(clip.encode_image(images).cls, clip.clip.visual(images)) and clip.vision_depth == 0
    without = rf"'small other' has an image tower without transformer blocks that take other tokens \(timm's {kind}\)"
    with pytest.raises(UsageError, match=without + ", so it takes no visual prompts; choose a ViT"):
        clip.encode_image(images, learned(2, 48))
    with pytest.raises(UsageError, match=without + ", so it gives no dense features"):
        clip.encode_image(images, local=True)


def test_a_tower_of_timm_comes_from_a_file(tmp_path: Path) -> None:
    """By the name of its JSON config, as on the command line, with its own size, mean and deviation."""
    vision = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    text = {**TEXT, "no_causal_mask": True}
    config = {"embed_dim": 96, "custom_text": True, "vision_cfg": vision, "text_cfg": text, "init_logit_bias": -10}
    (tmp_path / "of-timm.json").write_text(json.dumps(config))
    clip = load_backbone(f"{tmp_path / 'of-timm.json'}:random")
    images = torch.randn(2, 3, clip.resolution, clip.resolution)
    assert (clip.resolution, clip.vision_depth, clip.vision_width, clip.patches) == (160, 9, 96, 100)
    torch.testing.assert_close(clip.encode_image(images, local=True).cls, clip.clip.encode_image(images))
    tokens = clip.embed_text(["a photo of a dog.", "a cat"])
    expected = clip.clip.encode_text(clip.tokenizer(["a photo of a dog.", "a cat"]))
    torch.testing.assert_close(clip.encode_text(tokens.embeddings, tokens.eot), expected)
