"""Text towers of other kinds: not causal, read at the last token or behind the text, with other tokenizers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from promptbench import registry
from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.clip.block import Change, LowRank
from promptbench.clip.text_tower import causal_mask, is_closed
from promptbench.config import UsageError

NAMES = ["golden retriever", "pizza", "Boeing 737-800", "annual crop land", "jack-o'-lantern"]
WORDS = "a photo of a"
TEXTS = [f"{WORDS} {name}." for name in NAMES]
K = len(TEXTS)
LENGTH = 20  # of a text
VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
SOS, EOT = 49406, 49407


@cache
def clip_tokenizer() -> Any:
    return open_clip.get_tokenizer("ViT-B-32")


@dataclass(frozen=True)
class Renamed:
    """CLIP's words between other special tokens; None for no token."""

    start: int | None
    end: int | None
    padding: int

    def __call__(self, texts: list[str], context_length: int = LENGTH) -> Tensor:
        rows = torch.full((len(texts), context_length), self.padding)
        for row, ids in zip(rows, clip_tokenizer()(texts, context_length=77).tolist(), strict=True):
            words = ids[1 : ids.index(EOT)]
            start, end = ([] if token is None else [token] for token in (self.start, self.end))
            found = [*start, *words[: context_length - len(start) - len(end)], *end]
            row[: len(found)] = torch.tensor(found, dtype=torch.long)
        return rows


@dataclass(frozen=True)
class Kind:
    """A kind of tower: what its config has besides sizes, and its tokenizer."""

    text: Mapping[str, Any]
    tokenizer: Callable[..., Tensor]
    custom: bool = True


KINDS = {
    "mobileclip-s": Kind({"no_causal_mask": True}, clip_tokenizer()),
    "clipa": Kind({"no_causal_mask": True, "pool_type": "last"}, Renamed(101, None, 0), custom=False),
    "siglip": Kind({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, Renamed(None, None, 1)),
    "siglip2": Kind({"no_causal_mask": True, "pool_type": "last", "proj_type": "none"}, Renamed(None, 1, 0)),
    "worldwide": Kind({"pool_type": "eos", "eos_id": 2}, Renamed(0, 2, 1), custom=False),
    "causal, last": Kind({"pool_type": "last"}, Renamed(SOS, EOT, 0)),
    "coca": Kind({"embed_cls": True}, clip_tokenizer()),
    "coca of other blocks": Kind({"embed_cls": True, "scale_fc": True}, clip_tokenizer()),
    "of other blocks": Kind({"no_causal_mask": True, "qk_norm": True}, clip_tokenizer()),
}
STANDARD = [name for name in KINDS if "blocks" not in name]


def build(kind: str) -> Backbone:
    """A small random model in float64, every tensor of which is random."""
    made = KINDS[kind]
    text = {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3, **made.text}
    build = open_clip.model.CustomTextCLIP if made.custom else open_clip.model.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = build(embed_dim=32 if "proj_type" in made.text else 24, vision_cfg=dict(VISION), text_cfg=text)
        for tensor in clip.parameters():
            if tensor.dim() < 2 and tensor.numel() > 1:
                tensor.data += 0.1 * torch.randn_like(tensor)
    return Backbone(clip.double(), made.tokenizer, name=f"small {kind}")


@pytest.fixture(params=KINDS)
def clip(request: pytest.FixtureRequest) -> Backbone:
    return build(request.param)


@pytest.fixture(params=STANDARD)
def standard(request: pytest.FixtureRequest) -> Backbone:
    return build(request.param)


def learned(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 * drawn).requires_grad_()


def own(clip: Backbone, texts: list[str]) -> Tensor:
    """open_clip's own features of texts."""
    return clip.clip.encode_text(clip.tokenizer(texts, context_length=clip.context_length))


@contextmanager
def patched(clip: Backbone, context: Tensor | None = None, deep: Mapping[int, Tensor] | None = None) -> Iterator[None]:
    """open_clip's tower with other embeddings, and states before blocks, behind its [SOS] if there is one."""
    tower, start, taken = getattr(clip.clip, "text", clip.clip), clip.text_form.start, []

    def put(x: Tensor, tokens: Tensor) -> Tensor:
        tokens = tokens.expand(len(x), *tokens.shape[-2:])
        return torch.cat([x[:, :start], tokens, x[:, start + tokens.shape[1] :]], dim=1)

    if context is not None:
        taken.append(tower.token_embedding.register_forward_hook(lambda module, given, x: put(x, context)))
    for index, tokens in (deep or {}).items():
        block = tower.transformer.resblocks[index]
        hook = block.register_forward_pre_hook(lambda module, given, tokens=tokens: (put(given[0], tokens), *given[1:]))
        taken.append(hook)
    yield
    for hook in taken:
        hook.remove()


def same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    pairs = zip(
        *(torch.autograd.grad(x.sin().sum(), inputs, retain_graph=True) for x in (found, expected)), strict=True
    )
    for a, b in pairs:
        assert b.abs().max() > 1e-9
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_plain_texts_equal_open_clip(clip: Backbone) -> None:
    longest = " ".join(["a"] * (clip.context_length - clip.text_form.start - clip.text_form.end))
    for texts in (TEXTS, [*TEXTS, longest], ["a " + longest[4:]]):
        tokens = clip.embed_text(texts)
        torch.testing.assert_close(clip.encode_text(tokens.embeddings, tokens.eot), own(clip, texts), rtol=0, atol=1e-9)
    with pytest.raises(UsageError, match=f"longer than the {LENGTH} tokens"):
        clip.embed_text([longest + " a"])


@pytest.mark.parametrize("budget", [2 * 2**30, 1])
def test_prompts_equal_open_clip_with_gradients(clip: Backbone, budget: int) -> None:
    """A learned context and deep prompts; through the prefix where there is one, and in parts."""
    clip.memory_budget = budget
    sentences = prompts.sentences(clip, WORDS, 4, NAMES)
    context, deep = learned(4, 32), {1: learned(2, 32, seed=1), 2: learned(3, 32, seed=2)}
    with patched(clip, context, deep):
        expected = own(clip, TEXTS)
    same(sentences.encode(clip, context, deep), expected, [context, *deep.values()])
    both = sentences.encode(clip, torch.stack([context, learned(4, 32, seed=5)]), deep)
    torch.testing.assert_close(both[0], expected, rtol=0, atol=1e-9)
    assert not torch.allclose(both[1], expected, atol=1e-2)


def test_layer_equals_open_clip(clip: Backbone) -> None:
    tokens = clip.embed_text(TEXTS)
    found = clip.encode_text(
        tokens.embeddings, tokens.eot, layer=lambda index, block, x, mask: block(x, attn_mask=mask)
    )
    torch.testing.assert_close(found, own(clip, TEXTS), rtol=0, atol=1e-9)


@pytest.mark.parametrize("behind_a_prefix", [True, False])
def test_changes_and_prompts_by_class_equal_open_clip(standard: Backbone, behind_a_prefix: bool) -> None:
    down, up, by_class = learned(2, 32), learned(32, 2, seed=1), {2: learned(K, 3, 32, seed=2)}
    changes = {
        i: Change({"v": LowRank(down, up, 0.5)}, lambda block, x: (block.ln_1(x) @ down.T) @ up.T) for i in (0, 2)
    }
    merged = copy.deepcopy(standard)
    tower = getattr(merged.clip, "text", merged.clip)
    taken = []
    for i in (0, 2):
        block = tower.transformer.resblocks[i]
        packed = block.attn._parameters.pop("in_proj_weight").data
        block.attn.in_proj_weight = torch.cat([packed[:64], packed[64:] + 0.5 * up @ down])
        hook = block.register_forward_hook(lambda block, given, y: y + (block.ln_1(given[0]) @ down.T) @ up.T)
        taken.append(hook)
    with patched(merged, None, by_class):
        expected = own(merged, TEXTS)
    tokens, shared = standard.embed_text(TEXTS), 4 if behind_a_prefix else 0
    prefix = tokens.embeddings[0, :shared] if shared else None
    rest = tokens.after(shared)
    found = standard.encode_text(rest.embeddings, rest.eot, prefix, changes=changes, deep_by_class=by_class)
    same(found, expected, [down, up, *by_class.values()])


def test_inserted_tokens_are_seen_by_all(standard: Backbone) -> None:
    """With a prefix and without, and against whole sequences where [EOT] is not followed by a token of its own."""
    tokens, inserted = standard.embed_text(TEXTS), {1: learned(2, 32), 2: learned(2, 32, seed=1)}
    form, start = standard.text_form, standard.text_form.start
    found = standard.encode_text(tokens.embeddings, tokens.eot, inserted=inserted)
    prefixed = tokens.after(3)
    shared = standard.encode_text(prefixed.embeddings, prefixed.eot, tokens.embeddings[0, :3], inserted=inserted)
    torch.testing.assert_close(shared, found, rtol=0, atol=1e-9)
    tower = getattr(standard.clip, "text", standard.clip)
    if is_closed(tower):
        return
    x = tokens.embeddings + standard.text_positions[: tokens.ids.shape[1]]
    for i, block in enumerate(tower.transformer.resblocks):
        if i in inserted:
            given = inserted[i].expand(K, -1, -1)
            x = torch.cat([x[:, :start], given, x[:, start + 2 * (i == 2) :]], dim=1)
        x = block(x, attn_mask=causal_mask(x.shape[1], x.shape[1], x) if form.causal else None)
    read = torch.full((K,), x.shape[1] - 1) if form.pool == "last" else tokens.eot + 2
    x = tower.ln_final(x[torch.arange(K), read])
    projection = tower.text_projection
    x = x if projection is None else projection(x) if isinstance(projection, nn.Linear) else x @ projection
    same(found, x, list(inserted.values()))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_context_of_words_is_those_words(clip: Backbone, position: str) -> None:
    """CoOp before training, wherever the class name stands, says what the tower says of the sentence."""
    coop = registry.load("methods", "coop")
    method = coop(coop.Config(ctx_init=WORDS, class_token_position=position), clip)
    method.ctx.data = method.ctx.data.double()
    method.set_classes(NAMES)
    form = {"end": "{words} {name}.", "middle": "a photo {name} of a.", "front": "{name} a photo of a."}[position]
    expected = own(clip, [form.format(words=WORDS, name=name) for name in NAMES])
    torch.testing.assert_close(method.encode_classes(), expected, rtol=0, atol=1e-9)


def test_a_method_that_runs_blocks_itself_is_told_so(standard: Backbone) -> None:
    tower = getattr(standard.clip, "text", standard.clip)
    if standard.text_form.whole or is_closed(tower):
        with pytest.raises(UsageError, match="this method runs the blocks itself: choose a causal CLIP"):
            standard.run_text(lambda blocks, part: torch.zeros(K, 32), K, 10, learns=False)
    else:
        states = torch.zeros(K, 32, dtype=torch.float64)
        assert standard.run_text(lambda blocks, part: states, K, 10, learns=False).shape == (K, standard.embed_dim)


def test_what_a_tower_lacks_is_said() -> None:
    class HuggingFace(nn.Module):
        transformer = nn.Linear(2, 2)

    class Clip(nn.Module):
        def __init__(self, text: nn.Module) -> None:
            super().__init__()
            self.text = text

    with pytest.raises(UsageError, match=r"'roberta' has a text tower that prompts cannot enter: it is not made of"):
        Backbone(Clip(HuggingFace()), clip_tokenizer(), name="roberta")
    clip = build("coca").clip
    clip.text.pool_type = "none"
    with pytest.raises(UsageError, match="reads its feature as pool_type 'none'"):
        Backbone(clip, clip_tokenizer())
