"""What a method changes within the towers equals open_clip's blocks on whole sequences, with its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from promptbench.clip import block as blocks
from promptbench.clip import text_tower
from promptbench.clip.backbone import Backbone
from promptbench.clip.block import Change, LowRank
from promptbench.clip.text_tower import Layout, causal_mask, pack
from promptbench.config import UsageError

NAMES = ["golden retriever", "pizza", "Boeing 737-800", "annual crop land", "jack-o'-lantern"]
TEXTS = [f"a photo of a {name}." for name in NAMES]
K = len(TEXTS)
MATRICES = "qkvo"
Masks = Mapping[tuple[int, str], Tensor]


@pytest.fixture
def exact(tiny: Backbone) -> Backbone:
    """The tiny CLIP in float64, where equal means equal."""
    return tiny.double()


@pytest.fixture
def pixels(exact: Backbone) -> Tensor:
    return learned(3, 3, exact.resolution, exact.resolution).detach()


def learned(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (0.3 * drawn).requires_grad_()


class Learned:
    """Changes of some blocks of a tower of this width, and all tensors that they learn."""

    def __init__(
        self, width: int, what: str, at: Sequence[int] = (0, 1, 3), dropout: float = 0.0, dtype: Any = torch.float64
    ) -> None:
        self.width, self.what, self.dropout, self.dtype = width, what, dropout, dtype
        self.tensors: list[Tensor] = []
        self.changes = {i: self.change(i) for i in at}

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """(rank, width) and (width, rank), which no other pair equals."""
        seed = len(self.tensors)
        down = learned(rank, self.width, seed=seed, dtype=self.dtype)
        up = learned(self.width, rank, seed=seed + 1, dtype=self.dtype)
        self.tensors += [down, up]
        return down, up

    def change(self, index: int) -> Change:
        ranks = {name: rank for rank, name in enumerate(MATRICES, start=1) if name in self.what}
        low_rank = {name: LowRank(*self.pair(rank), 0.7, self.dropout) for name, rank in ranks.items()}
        if "b" not in self.what:
            return Change(low_rank)
        inner, outer = self.pair(3)
        return Change(low_rank, lambda block, x: (block.ln_1(x) @ inner.T).tanh() @ outer.T)


def whole_block(block: Any, x: Tensor, mask: Tensor | None, change: Change | None) -> Tensor:
    """open_clip's own block with merged weights, and what stands beside it."""
    if change is None:
        return block(x, attn_mask=mask)
    d, weights = x.shape[-1], {name: m.scale * m.up @ m.down for name, m in change.low_rank.items()}
    packed = block.attn.in_proj_weight + torch.cat([weights.get(name, x.new_zeros(d, d)) for name in "qkv"])
    out = block.attn.out_proj.weight + weights.get("o", x.new_zeros(d, d))
    merged = {"attn.in_proj_weight": packed, "attn.out_proj.weight": out}
    y = functional_call(block, merged, (x,), {"attn_mask": mask})
    return y if change.beside is None else y + change.beside(block, x)


def dropping_block(block: Any, x: Tensor, mask: Tensor | None, change: Change, masks: Mapping[str, Tensor]) -> Tensor:
    """A block on whole sequences, written out, whose low-rank branches see their input through given masks."""

    def product(name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        matrix = change.low_rank[name]
        return x @ weight.T + bias + matrix.scale * (x * masks[name]) @ matrix.down.T @ matrix.up.T

    h, seen = block.attn.num_heads, block.ln_1(x)
    weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    parts = [product(name, seen, w, b) for name, w, b in zip("qkv", weights, biases, strict=True)]
    q, k, v = (part.unflatten(-1, (h, -1)).transpose(1, 2) for part in parts)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    read = ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(-2)
    x = x + product("o", read, block.attn.out_proj.weight, block.attn.out_proj.bias)
    return x + block.mlp(block.ln_2(x))


def whole_texts(
    clip: Backbone,
    prefix: Tensor,
    deep: Mapping[int, Tensor] | None = None,
    changes: Mapping[int, Change] | None = None,
    deep_by_class: Mapping[int, Tensor] | None = None,
    inserted: Mapping[int, Tensor] | None = None,
    masks: Masks | None = None,
) -> Tensor:
    """Text features (S, K, D) of the texts behind a prefix (S, n, d), by whole padded sequences."""
    tokens, S, n = clip.embed_text(TEXTS), len(prefix), prefix.shape[1]
    rest = tokens.embeddings[:, n:]
    x = torch.cat([prefix.unsqueeze(1).expand(-1, K, -1, -1), rest.expand(S, *rest.shape)], dim=2)
    x, eot = x + clip.text_positions[: x.shape[2]], tokens.eot
    for i, block in enumerate(clip.clip.transformer.resblocks):
        if i in (deep or {}):
            prompts = deep[i].view(-1, 1, *deep[i].shape[-2:]).expand(S, K, -1, -1)
            x = torch.cat([x[:, :, :1], prompts, x[:, :, 1 + prompts.shape[2] :]], dim=2)
        if i in (deep_by_class or {}):
            prompts = deep_by_class[i].expand(S, -1, -1, -1)
            x = torch.cat([x[:, :, :1], prompts, x[:, :, 1 + prompts.shape[2] :]], dim=2)
        if i in (inserted or {}):
            again = i > min(inserted)
            eot = eot if again else eot + len(inserted[i])
            rest = x[:, :, 1 + len(inserted[i]) * again :]
            x = torch.cat([x[:, :, :1], inserted[i].expand(S, K, -1, -1), rest], dim=2)
        mask, flat = causal_mask(x.shape[2], x.shape[2], x), x.flatten(0, 1)
        if masks is None:
            flat = whole_block(block, flat, mask, (changes or {}).get(i))
        else:
            own = {name: masks[i, name].flatten(0, 1) for name in MATRICES}
            flat = dropping_block(block, flat, mask, changes[i], own)
        x = flat.unflatten(0, (S, K))
    return clip.clip.ln_final(x[:, torch.arange(K), eot]) @ clip.clip.text_projection


def same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Asserts equality of features and of all gradients, none of which is zero."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    pairs = zip(
        *(torch.autograd.grad(x.sin().sum(), inputs, retain_graph=True) for x in (found, expected)), strict=True
    )
    for a, b in pairs:
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def texts_behind(clip: Backbone, n: int) -> tuple[Tensor, Tensor]:
    rest = clip.embed_text(TEXTS).after(n)
    return rest.embeddings, rest.eot


def deep_prompts(clip: Backbone, images: int) -> dict[int, Tensor]:
    return {1: learned(images, 2, clip.text_width, seed=1), 2: learned(2, clip.text_width, seed=2)}


# Changes of blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*MATRICES, "b", "qv", "qkvob"])
@pytest.mark.parametrize("images", [1, 2])
def test_changes_of_text_blocks_equal_whole_sequences(exact: Backbone, what: str, images: int) -> None:
    prefix, deep = learned(images, 5, exact.text_width), deep_prompts(exact, images)
    made = Learned(exact.text_width, what)
    found = exact.encode_text(*texts_behind(exact, 5), prefix, deep, changes=made.changes)
    expected = whole_texts(exact, prefix, deep, made.changes)
    same(found, expected, [prefix, *deep.values(), *made.tensors])
    with torch.no_grad():  # the weights themselves are changed
        merged = exact.encode_text(*texts_behind(exact, 5), prefix, deep, changes=made.changes)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("what", ["qkv", "ob"])
def test_changes_of_texts_without_a_prefix(exact: Backbone, what: str) -> None:
    tokens, made = exact.embed_text(TEXTS), Learned(exact.text_width, what)
    found = exact.encode_text(tokens.embeddings, tokens.eot, changes=made.changes)
    same(found, whole_texts(exact, tokens.embeddings[:1, :1], changes=made.changes)[0], made.tensors)


def test_changes_that_do_not_learn_leave_gradients_to_others(exact: Backbone) -> None:
    prefix, made = learned(1, 5, exact.text_width), Learned(exact.text_width, "qkvo")
    frozen = {}
    for i, change in made.changes.items():
        matrices = {name: LowRank(m.down.detach(), m.up.detach(), m.scale) for name, m in change.low_rank.items()}
        frozen[i] = Change(matrices)
    found = exact.encode_text(*texts_behind(exact, 5), prefix, changes=frozen)
    same(found, whole_texts(exact, prefix, changes=made.changes), [prefix])


def test_weights_are_merged_where_nothing_learns_alone(
    exact: Backbone, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def merged(weight: Tensor, changes: Any) -> Tensor:
        calls.append(len(weight))
        return weight

    monkeypatch.setattr(blocks, "merged", merged)
    exact.memory_budget = 1  # however many chunks there are
    for encode, width in ((text_of, exact.text_width), (exact.encode_image, exact.vision_width)):
        changes = Learned(width, "qo", at=(1,)).changes
        given = exact if encode is text_of else pixels
        encode(given, changes=changes)
        assert not calls
        with torch.no_grad():
            encode(given, changes=changes)
        assert calls == [3 * width, width]
        calls.clear()


def whole_image(
    clip: Backbone,
    pixels: Tensor,
    prompts: Tensor | None = None,
    deep: Mapping[int, Tensor] | None = None,
    changes: Mapping[int, Change] | None = None,
    inserted: Mapping[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """All tokens after all blocks and `ln_post` (B, tokens, d), and the value path (B, P, d)."""
    visual, changes = clip.clip.visual, changes or {}
    x = visual._embeds(pixels)
    tokens, last = x.shape[1], len(visual.transformer.resblocks) - 1
    if prompts is not None:
        x = torch.cat([x, visual.ln_pre(prompts).expand(len(x), -1, -1)], dim=1)
    for i, block in enumerate(visual.transformer.resblocks):
        for replaced in (deep or {}, inserted or {}):
            if i in replaced:
                x = torch.cat([x[:, :tokens], replaced[i].expand(len(x), *replaced[i].shape[-2:])], dim=1)
        if i == last:
            own = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype).fill_diagonal_(0)
            dense = whole_block(block, x, own, changes.get(i))[:, 1:tokens]  # every token reads itself alone
        x = whole_block(block, x, None, changes.get(i))
    return visual.ln_post(x), visual.ln_post(dense)


@pytest.mark.parametrize("what", [*MATRICES, "b", "qkvob"])
@pytest.mark.parametrize("replaced", [None, (), (1,), (1, 2, 3)])
def test_changes_of_image_blocks_equal_whole_sequences(
    exact: Backbone, pixels: Tensor, what: str, replaced: tuple[int, ...] | None
) -> None:
    prompts = None if replaced is None else learned(2, exact.vision_width, seed=7)
    deep = {i: learned(2, exact.vision_width, seed=i) for i in replaced or ()}
    made = Learned(exact.vision_width, what)
    inputs = [*made.tensors, *deep.values(), *([] if prompts is None else [prompts])]
    whole, dense = whole_image(exact, pixels, prompts, deep, made.changes)
    cls = exact.encode_image(pixels, prompts, deep, changes=made.changes).cls
    same(cls, whole[:, 0] @ exact.clip.visual.proj, inputs)
    features = exact.encode_image(pixels, prompts, deep, local=True, changes=made.changes)
    torch.testing.assert_close(features.cls, cls, rtol=0, atol=1e-9)
    local = torch.cat([features.patches, features.local_unprojected], dim=1)
    learning = inputs if what not in "qk" else made.tensors[:-2]  # the value path has no queries and keys
    same(local, torch.cat([whole[:, 1:17], dense], dim=1), learning)
    torch.testing.assert_close(features.local, dense @ exact.clip.visual.proj, rtol=0, atol=1e-9)
    with torch.no_grad():
        merged = exact.encode_image(pixels, prompts, deep, local=True, changes=made.changes)
    torch.testing.assert_close(merged.local, features.local, rtol=0, atol=1e-9)
    torch.testing.assert_close(merged.cls, cls, rtol=0, atol=1e-9)


@pytest.mark.parametrize("learns", [True, False])
def test_changes_go_with_other_precisions(exact: Backbone, pixels: Tensor, learns: bool) -> None:
    clip = exact.float()
    made = Learned(clip.text_width, "qkvob", dtype=torch.float32)
    of_images = Learned(clip.vision_width, "qkvob", dtype=torch.float32)
    prefix = learned(1, 5, clip.text_width, dtype=torch.float32)
    by_class = {2: learned(K, 2, clip.text_width, dtype=torch.bfloat16)}

    def features() -> list[Tensor]:
        text = clip.encode_text(*texts_behind(clip, 5), prefix, changes=made.changes, deep_by_class=by_class)
        return [text, clip.encode_image(pixels.float(), changes=of_images.changes).cls]

    with torch.set_grad_enabled(learns):
        expected = features()
        with torch.autocast("cpu", torch.bfloat16):
            found = features()
    for a, b in zip(found, expected, strict=True):
        assert torch.nn.functional.cosine_similarity(a.float(), b.float()).min() > 0.998


# Tokens within the tower ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(2,), (1, 2), (3,), (1, 3)])
@pytest.mark.parametrize("images", [1, 2])
def test_prompts_by_class_equal_whole_sequences(exact: Backbone, at: tuple[int, ...], images: int) -> None:
    prefix, made = learned(images, 5, exact.text_width), Learned(exact.text_width, "qob")
    by_class = {i: learned(K, 3, exact.text_width, seed=i) for i in at}
    deep = {1: learned(images, 4, exact.text_width, seed=9)}
    options = {"deep": deep, "changes": made.changes, "deep_by_class": by_class}
    found = exact.encode_text(*texts_behind(exact, 5), prefix, **options)
    same(found, whole_texts(exact, prefix, **options), [prefix, *deep.values(), *by_class.values(), *made.tensors])
    found = exact.encode_text(*texts_behind(exact, 5), prefix, deep_by_class=by_class)
    same(found, whole_texts(exact, prefix, deep_by_class=by_class), [*by_class.values()])


def test_prompts_by_class_may_reach_into_the_name(exact: Backbone) -> None:
    prefix, by_class = learned(1, 2, exact.text_width), {2: learned(K, 4, exact.text_width)}
    found = exact.encode_text(*texts_behind(exact, 2), prefix, deep_by_class=by_class)
    same(found, whole_texts(exact, prefix, deep_by_class=by_class), [prefix, *by_class.values()])
    tokens = exact.embed_text(TEXTS)
    alone = exact.encode_text(tokens.embeddings, tokens.eot, deep_by_class=by_class)
    same(alone, whole_texts(exact, tokens.embeddings[:1, :1], deep_by_class=by_class)[0], [*by_class.values()])


@pytest.mark.parametrize("at", [(0,), (2,), (1, 2, 3), (3,)])
@pytest.mark.parametrize("images", [1, 2])
def test_tokens_inserted_in_texts_equal_whole_sequences(exact: Backbone, at: tuple[int, ...], images: int) -> None:
    prefix, made = learned(images, 5, exact.text_width), Learned(exact.text_width, "qob")
    options = {"inserted": {i: learned(3, exact.text_width, seed=i) for i in at}, "changes": made.changes}
    inputs = [*options["inserted"].values(), *made.tensors]
    found = exact.encode_text(*texts_behind(exact, 5), prefix, **options)
    same(found, whole_texts(exact, prefix, **options), [prefix, *inputs])
    tokens = exact.embed_text(TEXTS)
    alone = exact.encode_text(tokens.embeddings, tokens.eot, **options)
    same(alone, whole_texts(exact, tokens.embeddings[:1, :1], **options)[0], inputs)


@pytest.mark.parametrize("at", [(0,), (2,), (1, 2, 3), (3,)])
@pytest.mark.parametrize("local", [False, True])
def test_tokens_inserted_in_images_equal_whole_sequences(
    exact: Backbone, pixels: Tensor, at: tuple[int, ...], local: bool
) -> None:
    inserted = {i: learned(2, exact.vision_width, seed=i) if i < 2 else learned(3, 2, 64, seed=i) for i in at}
    made = Learned(exact.vision_width, "qob")
    whole, dense = whole_image(exact, pixels, changes=made.changes, inserted=inserted)
    features = exact.encode_image(pixels, local=local, changes=made.changes, inserted=inserted)
    assert features.inserted.shape == (3, 2, exact.vision_width)
    same(features.inserted, whole[:, 17:], [*inserted.values(), *made.tensors])
    same(features.cls, whole[:, 0] @ exact.clip.visual.proj, [*inserted.values(), *made.tensors])
    if local:
        same(features.patches, whole[:, 1:17], made.tensors)
        torch.testing.assert_close(features.local_unprojected, dense, rtol=0, atol=1e-9)
    assert exact.encode_image(pixels).inserted is None


# Chunks and dropout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts_at_once", [1, 2, 7])
def test_chunks_change_nothing(exact: Backbone, texts_at_once: int) -> None:
    prefix, made = learned(2, 5, exact.text_width), Learned(exact.text_width, "qkvob")
    by_class = {2: learned(K, 3, exact.text_width, seed=5)}
    options = {"prefix": prefix, "changes": made.changes, "deep_by_class": by_class}
    whole = exact.encode_text(*texts_behind(exact, 5), **options)
    exact.memory_budget = 1
    while exact.texts_within_budget(10) < texts_at_once:
        exact.memory_budget *= 2
    same(exact.encode_text(*texts_behind(exact, 5), **options), whole, [prefix, *by_class.values(), *made.tensors])


def test_padding_disturbs_nothing(exact: Backbone) -> None:
    """Rows that whole texts do not fill hold tokens that nobody reads, and that must be finite all the same."""
    names = [f"{'very ' * (k % 5)}{name}" for k, name in enumerate(5 * NAMES)]
    tokens = exact.embed_text([f"a photo of a {name}." for name in names])
    packing = pack(layout_of(tokens.eot), tokens.embeddings.shape[1], tokens.eot.device)
    assert packing.sources.numel() > sum(packing.layout.lengths) and len(packing.sources) > 1
    assert (packing.mask == 0).any(dim=-1).all()  # what looks nowhere is no number in some versions of torch
    made = Learned(exact.text_width, "qkvob")
    found = exact.encode_text(tokens.embeddings, tokens.eot, changes=made.changes)
    alone = [
        exact.encode_text(tokens.embeddings[k, None], tokens.eot[k, None], changes=made.changes) for k in (0, 7, 24)
    ]
    same(found[[0, 7, 24]], torch.cat(alone), made.tensors)


def test_chunks_are_recomputed_where_only_a_function_beside_learns(
    exact: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tensors are in a closure, so nobody sees that it learns."""
    made, ran, run_again = Learned(exact.text_width, "b"), [], text_tower.checkpoint

    def checkpoint(*args: Any, **options: Any) -> Any:
        ran.append(args)
        return run_again(*args, **options)

    monkeypatch.setattr(text_tower, "checkpoint", checkpoint)
    exact.memory_budget = 1
    tokens = exact.embed_text(TEXTS)
    text = exact.encode_text(tokens.embeddings, tokens.eot, changes=made.changes)
    assert len(ran) == K and all(gradient.any() for gradient in torch.autograd.grad(text.sum(), made.tensors))


def layout_of(eot: Tensor) -> Layout:
    """Of causal texts whose [EOT] stands there."""
    read = tuple(eot.tolist())
    return Layout(tuple(place + 1 for place in read), read)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every mask that is drawn from now on, in order."""
    drawn = []

    def dropped(x: Tensor, probability: float) -> Tensor:
        drawn.append(torch.nn.functional.dropout(torch.ones_like(x), probability))
        return x * drawn[-1]

    monkeypatch.setattr(blocks, "dropped", dropped)
    return drawn


@pytest.mark.parametrize("options", ["", "deep", "deep_by_class", "inserted"])
def test_texts_drop_each_by_masks_of_its_own(exact: Backbone, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed texts equal padded ones with the same mask for each token."""
    S, n, L = 2, 5, exact.embed_text(TEXTS).embeddings.shape[1]
    prefix, made = learned(S, n, exact.text_width), Learned(exact.text_width, "qkvo", range(4), dropout=0.25)
    more = {
        "": {},
        "deep": {"deep": deep_prompts(exact, S)},
        "deep_by_class": {"deep_by_class": {2: learned(K, 2, exact.text_width)}},
        "inserted": {"inserted": {1: learned(2, exact.text_width), 3: learned(2, exact.text_width, seed=1)}},
    }[options]
    drawn = recorded(monkeypatch)
    found = exact.encode_text(*texts_behind(exact, n), prefix, changes=made.changes, **more)
    eot, masks = exact.embed_text(TEXTS).eot, {}
    order = [*product(range(3), MATRICES), *product([3], "kvqo")]
    for (i, name), mask in zip(order, drawn, strict=True):
        m = 2 if options == "inserted" and i else 0
        packing = pack(layout_of(eot + m), L + m, eot.device)
        mask = mask.flatten(1, 2)
        if i == 3 and name in "qo":  # of [EOT] alone
            masks[i, name] = torch.ones(S, K, L + m, mask.shape[-1], dtype=mask.dtype)
            masks[i, name][:, torch.arange(K), eot + m] = mask[:, packing.order]
        else:
            masks[i, name] = mask[:, packing.places(0, L + m)]
    for mask in masks.values():
        rows = mask[:, torch.arange(K), eot + mask.shape[2] - L].flatten(0, 1)
        assert len(rows.unique(dim=0)) == S * K and {*mask.unique().tolist()} <= {0.0, 1.0, 1 / 0.75}
    same(found, whole_texts(exact, prefix, changes=made.changes, masks=masks, **more), [prefix, *made.tensors])


def test_images_drop_each_by_masks_of_its_own(exact: Backbone, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, made = learned(2, exact.vision_width), Learned(exact.vision_width, "kvo", range(4), dropout=0.5)
    deep = {i: learned(2, exact.vision_width, seed=i) for i in (1, 2)}
    drawn = recorded(monkeypatch)
    exact.encode_image(pixels, prompts, deep, changes=made.changes)
    assert len(drawn) > 4 * 3 and all(len(mask) == 3 for mask in drawn)
    for mask in drawn:
        assert len(mask.flatten(0, 1).unique(dim=0)) == mask.shape[:2].numel()


def test_image_blocks_drop_what_they_are_given(
    exact: Backbone, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, visual = Learned(exact.vision_width, "qkvo", range(4), dropout=0.25), exact.clip.visual
    drawn = recorded(monkeypatch)
    cls = exact.encode_image(pixels, changes=made.changes).cls
    x, masks = visual._embeds(pixels), iter(drawn)
    for i, block in enumerate(visual.transformer.resblocks):
        own = {name: padded(next(masks), x) for name in MATRICES}
        x = dropping_block(block, x, None, made.changes[i], own)
    same(cls, visual.ln_post(x[:, 0]) @ visual.proj, made.tensors)


def padded(mask: Tensor, x: Tensor) -> Tensor:
    """A mask of the first tokens of x, 1 for the others."""
    return torch.cat([mask, torch.ones_like(x[:, mask.shape[1] :])], dim=1)


def test_recomputed_chunks_drop_the_same_again(exact: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, made = learned(2, 5, exact.text_width), Learned(exact.text_width, "qkvo", dropout=0.25)
    exact.memory_budget = 1

    def gradients() -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        found = exact.encode_text(*texts_behind(exact, 5), prefix, changes=made.changes)
        torch.rand(5)  # what others draw in between
        return torch.autograd.grad(found.sin().sum(), [prefix, *made.tensors])

    ran: list[slice] = []

    def at_once(run: Callable[[slice], Tensor], part: slice, **options: Any) -> Tensor:
        ran.append(part)
        return run(part)

    chunked = gradients()
    monkeypatch.setattr(text_tower, "checkpoint", at_once)
    for a, b in zip(chunked, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert len(ran) == 2 * K


# What is refused ------------------------------------------------------------------------------------------------------


def text_of(clip: Backbone, **options: Any) -> Tensor:
    return clip.encode_text(*texts_behind(clip, 3), learned(3, clip.text_width), **options)


def test_what_contradicts_itself_is_refused(exact: Backbone, pixels: Tensor) -> None:
    d, made = exact.text_width, Learned(exact.text_width, "q")

    def layer(index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return block(x, attn_mask=mask)

    cases: list[tuple[str, dict[str, Any]]] = [
        ("layer", {"layer": layer, "changes": made.changes}),
        ("blocks 0 to 3", {"changes": {4: Change()}}),
        ("not of 'x'", {"changes": {0: Change({"x": LowRank(learned(1, d), learned(d, 1))})}}),
        ("blocks 1 to 3", {"deep_by_class": {0: learned(K, 2, d)}}),
        (r"\(5, m, d\)", {"deep_by_class": {1: learned(2, d)}}),
        ("too short", {"deep_by_class": {1: learned(K, 7, d)}}),
        ("blocks 0 to 3", {"inserted": {4: learned(2, d)}}),
        ("give as many", {"inserted": {1: learned(2, d), 2: learned(3, d)}}),
        ("same places", {"inserted": {1: learned(2, d)}, "deep": {2: learned(2, d)}}),
    ]
    for said, options in cases:
        with pytest.raises(ValueError, match=said):
            text_of(exact, **options)
    d = exact.vision_width
    cases = [
        ("layer", {"layer": layer, "changes": made.changes}),
        ("blocks 0 to 3", {"changes": {-1: Change()}}),
        ("blocks 0 to 3", {"inserted": {4: learned(2, d)}}),
        ("give as many", {"inserted": {1: learned(2, d), 2: learned(3, d)}}),
        ("without prompts", {"inserted": {1: learned(2, d)}, "prompts": learned(2, d)}),
    ]
    for said, options in cases:
        with pytest.raises(ValueError, match=said):
            exact.encode_image(pixels, **options)


def test_towers_of_other_blocks_are_refused(exact: Backbone, pixels: Tensor) -> None:
    clip = Backbone(exact.clip, exact.tokenizer, name="odd")
    clip.clip.visual.transformer.resblocks[1].ln_attn = torch.nn.LayerNorm(64)
    with pytest.raises(UsageError, match=r"Backbone 'odd' has an image tower whose blocks are not built as CLIP's"):
        clip.encode_image(pixels, changes={0: Change()})
    clip.clip.transformer.resblocks[1].ln_attn = torch.nn.LayerNorm(48)
    clip = Backbone(exact.clip, exact.tokenizer, name="odd")
    with pytest.raises(UsageError, match=r"Backbone 'odd' has a text tower whose blocks are not built as CLIP's"):
        text_of(clip, changes={0: Change()})
