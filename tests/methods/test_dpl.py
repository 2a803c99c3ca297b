"""DPL-R keeps what its specification asks: the algebra, what it equals at its ends, and who reads whom."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.checks.plugin.subject import vit_b16
from promptbench.clip.load import load_backbone
from promptbench.config import UsageError
from promptbench.training.fit import fit

NAMES = ("dog", "golden_retriever", "2012 Ferrari 458 Italia Coupe")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LABELS = torch.tensor([0, 1, 2])
LADDER = [f"r{i}" for i in range(1, 9)]
DPL = registry.load("methods", "dpl")
MODULE: Any = sys.modules[DPL.__module__]


@pytest.fixture(scope="module")
def clip(tiny_name: str) -> pb.Backbone:
    """The tiny random CLIP, loaded once: nothing here may change it."""
    return load_backbone(tiny_name)


@pytest.fixture(scope="module")
def pixels(clip: pb.Backbone) -> Tensor:
    return torch.randn(3, 3, clip.resolution, clip.resolution, generator=torch.Generator().manual_seed(0))


def make(backbone: pb.Backbone, preset: str = "", names: tuple[str, ...] = NAMES, **config: object) -> pb.Method:
    """DPL-R with prompts as large as a trained one's."""
    method = pb.create_method(f"dpl@{preset}" if preset else "dpl", backbone, names, **config)
    return fill(method)


def fill(method: pb.Method) -> pb.Method:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return method


def features(method: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        layer = method.towers["vision"].layer if "vision" in method.towers else None
        return method.encode_classes(), method.run_image_tower(pixels, layer).cls


def block_of(width: int, heads: int) -> Any:
    """One block of CLIP whose attention is far from even."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = open_clip.transformer.ResidualAttentionBlock(width, heads).eval().requires_grad_(False)
        for parameter in block.attn.parameters():
            parameter.normal_(std=0.05 if parameter.dim() > 1 else 0.3)
    return block


def tokens_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def tower(prompts: int, width: int, rule: str = "exact", strength: float = 0.0, **other: Any) -> Any:
    """A tower whose layers after the first find the prompts where they are."""
    own = nn.ParameterList([torch.zeros(prompts, width)])
    settings = {"reads": "both", "carry": 0.0, **other}
    return MODULE.Tower(own, rule, strength, **settings)


def causal(length: int) -> Tensor:
    return torch.full((length, length), float("-inf")).triu(1)


def sentences(lengths: tuple[int, ...], n: int, width: int) -> tuple[Tensor, Tensor]:
    """Marked texts with n prompts after them (N, L + n, d), and as float mask (N, L + n, L + n) who may look where."""
    longest = max(lengths)
    x = tokens_of(len(lengths), longest + n, width)
    mask = torch.zeros(len(lengths), longest + n, longest + n)
    mask[:, :longest, :longest] = causal(longest)
    for i, length in enumerate(lengths):
        x[i, length:longest] = MODULE.MARK
        mask[i, longest:, length:longest] = float("-inf")
    return x, mask


# T1 and T3: the algebra ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "width, heads, tokens, n, start, bias",
    [(768, 12, 197, 8, None, 0.0), (512, 8, 77, 4, 1, 0.0), (96, 3, 17, 4, None, 1.5), (96, 3, 12, 4, 1, -2.0)],
)
def test_exact_parts_equal_joint_attention_and_a_bias_equals_a_float_mask(
    width: int, heads: int, tokens: int, n: int, start: int | None, bias: float
) -> None:
    block, x = block_of(width, heads), tokens_of(2, tokens + n, width)
    mask = None if start is None else causal(tokens + n)
    ours = tower(n, width, "bias" if bias else "exact", bias, start=start)
    shifted = torch.zeros(tokens + n, tokens + n) if mask is None else mask.clone()
    instance = ~ours.is_prompt(x)
    shifted[instance.nonzero(), ~instance] += bias
    torch.testing.assert_close(ours.layer(1, block, x, mask), block(x, attn_mask=shifted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_exact_parts_equal_joint_attention_beside_whole_sentences(bias: float) -> None:
    lengths, n, width, heads = (6, 9, 12), 4, 96, 3
    block, (x, mask) = block_of(width, heads), sentences(lengths, n, width)
    found = tower(n, width, "bias", bias, padded=True).layer(1, block, x, causal(12))
    mask[:, :12, 12:] += bias
    joint = block(x, attn_mask=mask.repeat_interleave(heads, dim=0))
    real = tower(n, width).real(x)
    torch.testing.assert_close(found[real], joint[real], rtol=0, atol=1e-5)
    assert (found[~real] == MODULE.MARK).all()


# T2: strength 0 is frozen CLIP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["add", "const"])
def test_strength_0_is_zero_shot_clip(clip: pb.Backbone, pixels: Tensor, rule: str) -> None:
    method = make(clip, rule_text=rule, rule_vision=rule, strength_text=0.0, strength_vision=0.0)
    text, image = features(method, pixels)
    ids = clip.tokenizer(["a photo of a " + name.replace("_", " ") + "." for name in NAMES])
    with torch.no_grad():
        torch.testing.assert_close(text, clip.clip.encode_text(ids), **CLOSE)
        torch.testing.assert_close(image, clip.clip.encode_image(pixels), **CLOSE)
        zeroshot = pb.create_method("zeroshot@generic", clip, NAMES)
        torch.testing.assert_close(method(pixels).logits, zeroshot(pixels).logits, **CLOSE)
        assert not torch.allclose(make(clip)(pixels).logits, zeroshot(pixels).logits, atol=1e-2)


@pytest.mark.parametrize("preset", ["text", "visual"])
def test_a_tower_without_prompts_is_frozen_clip(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    text, image = features(make(clip, preset), pixels)
    both_text, both_image = features(make(clip), pixels)
    zeroshot = pb.create_method("zeroshot@generic", clip, NAMES)
    with torch.no_grad():
        frozen_text, frozen_image = zeroshot.encode_classes(), clip.encode_image(pixels).cls
    text = torch.nn.functional.normalize(text, dim=-1)
    assert torch.allclose(image, frozen_image) == (preset == "text")
    assert torch.allclose(text, frozen_text, **CLOSE) == (preset == "visual")
    assert not torch.allclose(both_image, frozen_image) and not torch.allclose(both_text, frozen_text)


# T4: padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["r1", "r4", "r6", "r8"])
def test_padding_changes_no_feature(clip: pb.Backbone, preset: str) -> None:
    with torch.no_grad():
        together = make(clip, preset).encode_classes()
        for i, name in enumerate(NAMES):
            torch.testing.assert_close(make(clip, preset, (name,)).encode_classes()[0], together[i], **CLOSE)
        longest = make(clip, preset, (*NAMES, "dog " * 70)).encode_classes()
    torch.testing.assert_close(longest[:3], together, **CLOSE)


# T5 and T6: who reads whom ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["r2", "r5"])
def test_what_replaced_prompts_read_has_no_effect(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    """Prompts that every layer replaces leave nothing of their own rows; carried ones do."""

    def spread(carry: float) -> float:
        reads = ("both", "prompts", "instance")
        methods = [make(clip, preset, reads_text=r, reads_vision=r, carry=carry) for r in reads]
        outputs = [torch.cat([t.flatten() for t in features(method, pixels)]) for method in methods]
        return max(float((a - b).abs().max()) for a, b in itertools.combinations(outputs, 2))

    assert spread(carry=0.0) == 0.0
    assert spread(carry=0.5) > 1e-3


def prompt_rows(method: Any) -> Tensor:
    """States of the text prompts after the last block, (K, n, d)."""
    seen = []
    text = method.towers["text"]

    def layer(index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        seen.append(text.layer(index, block, x, mask))
        return seen[-1]

    with torch.no_grad():
        method.encode_texts(layer)
    return text.apart(seen[-1])[1]


@pytest.mark.parametrize(
    "preset, layout", [("r2", "classic"), ("r6", "sentence"), ("r7", "sentence"), ("r7", "classic")]
)
def test_text_prompts_differ_between_classes_only_where_they_read_the_whole_sentence(
    clip: pb.Backbone, preset: str, layout: str
) -> None:
    rows = prompt_rows(make(clip, preset, layout=layout))
    spread = float((rows - rows[:1]).abs().max())
    assert spread > 1e-2 if (preset, layout) == ("r7", "sentence") else spread < 1e-6


# T7: what learns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counted, config",
    [
        (46_080, {}),
        (23_040, {"n_ctx_text": 2, "n_ctx_vision": 2}),
        (64_512, {"n_ctx_text": 2, "n_ctx_vision": 8}),
        (61_440, {"depth_text": 12, "depth_vision": 12}),
        (172_032, {"n_ctx_vision": 16, "depth_text": 12, "depth_vision": 12}),
        (18_432, {"modality": "text"}),
        (27_648, {"modality": "visual"}),
    ],
)
def test_numbers_of_parameters_are_those_of_the_specification(counted: int, config: dict[str, Any]) -> None:
    method = DPL(DPL.Config(**config), vit_b16())
    assert sum(parameter.numel() for parameter in method.parameters()) == counted


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["r1", "r2", "r3", "r4", "r6", "text", "visual", "const"])
def test_every_preset_keeps_the_contract(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    config = partial(DPL.Config, **DPL.presets[preset].config)
    cls = type("Preset", (DPL,), {"Config": config, "__module__": DPL.__module__})
    for name in ("prediction_has_its_shape", "gradients_reach_everything_learned", "other_classes"):
        check = next(check for check in kit.CHECKS if check.__name__ == f"check_{name}")
        assert not kit.run_check(check, cls, clip)
    method = make(clip, preset)
    sum(method.loss(pixels, LABELS).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


# T8: the control ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["r1", "r2"])
@pytest.mark.parametrize("depth", [2, 4])
def test_the_first_steps_with_ln_pre_are_ivlp(clip: pb.Backbone, pixels: Tensor, preset: str, depth: int) -> None:
    config = {"n_ctx_text": 4, "n_ctx_vision": 4, "depth_text": depth, "depth_vision": depth}
    ivlp = fill(pb.create_method("ivlp@promptsrc", clip, NAMES, **config))
    ours = make(clip, preset, ln_pre=True, **config)
    text = [ivlp.ctx, *ivlp.text_prompts]
    ours.load_state_dict(
        {f"text_prompts.{i}": p for i, p in enumerate(text)}
        | {f"visual_prompts.{i}": p for i, p in enumerate(ivlp.visual_prompts)}
    )
    for method in (ivlp, ours):
        sum(method.loss(pixels, LABELS).values()).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels).logits, ivlp(pixels).logits, rtol=0, atol=1e-4)
    for a, b in zip(text, ours.text_prompts, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    for a, b in zip(ivlp.visual_prompts, ours.visual_prompts, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_the_first_two_steps_are_equal_and_no_others(clip: pb.Backbone, pixels: Tensor) -> None:
    logits = [make(clip, preset)(pixels).logits.detach() for preset in LADDER]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in itertools.pairwise(logits[1:]))
    assert torch.equal(logits[-1], make(clip)(pixels).logits)


# The framework's promises -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["r2", "r8"])
def test_the_memory_budget_changes_nothing(tiny: pb.Backbone, pixels: Tensor, preset: str) -> None:
    def step() -> Iterator[Tensor]:
        method = make(tiny, preset)
        sum(method.loss(pixels, LABELS).values()).backward()  # type: ignore[union-attr]
        yield from (method(pixels).logits.detach(), *(p.grad for p in method.parameters() if p.grad is not None))

    whole = list(step())
    tiny.memory_budget = 1  # one class at a time
    for a, b in zip(whole, step(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_short_training_lowers_the_loss(clip: pb.Backbone, pixels: Tensor) -> None:
    method = pb.create_method("dpl", clip, NAMES)
    recipe = replace(DPL.recipes["*", "*"], epochs=12, lr=0.1, warmup_epochs=0)
    with torch.no_grad():
        before = float(method.loss(pixels, LABELS)["ce"])
    fit(method, recipe, DataLoader([(pb.Images(pixels), LABELS)], batch_size=None), 1, seed=0)
    with torch.no_grad():
        assert float(method.loss(pixels, LABELS)["ce"]) < 0.7 * before


def test_depths_beyond_the_tower_are_refused_if_asked_for_and_capped_if_not(clip: pb.Backbone) -> None:
    assert (make(clip).config.depth_text, make(clip).config.depth_vision) == (4, 4)
    with pytest.raises(UsageError, match="vision_depth"):
        make(clip, depth_vision=5)


@pytest.mark.parametrize(
    "config, said",
    [
        ({"rule_text": "joint"}, "layout=classic and reads_text=both"),
        ({"rule_vision": "joint"}, "reads_vision=both"),
        ({"depth_vision": 0}, "modality=text"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(clip: pb.Backbone, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make(clip, **config)


# The gates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["r1", "r2", "r8", "text", "visual"])
def test_gates_are_shares_by_layer_and_leave_no_trace(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    method: Any = make(clip, preset)
    before = method(pixels).logits.detach()
    gates = method.attention_gates(pixels)
    towers = {"text": ("text",), "visual": ("vision",)}.get(preset, ("text", "vision"))
    assert set(gates) == {f"{tower}/{rows}" for tower in towers for rows in ("instance", "prompts")}
    assert all(len(means) == 4 and all(0 < mean < 1 for mean in means) for means in gates.values())
    assert torch.equal(method(pixels).logits, before) and gates == method.attention_gates(pixels)


def test_gates_of_equal_logits_are_shares_of_tokens() -> None:
    """Corollary C1: with equal logits lambda is M / (M + n)."""
    block = block_of(96, 3)
    with torch.no_grad():
        block.attn.in_proj_weight.zero_()
    x, _ = sentences((6, 12), 4, 96)
    found = tower(4, 96, padded=True)
    meter = MODULE.measured(found, lambda layer: layer(1, block, x, causal(12)))
    by_hand = torch.tensor([4 / (4 + seen) for length in (6, 12) for seen in range(1, length + 1)]).mean()
    assert meter[0] == pytest.approx([float(by_hand)], rel=1e-5)
    assert meter[1] == pytest.approx([(4 / 10 + 4 / 16) / 2], rel=1e-5)


def test_gates_do_not_depend_on_the_memory_budget(tiny: pb.Backbone, pixels: Tensor) -> None:
    method: Any = make(tiny)
    whole = method.attention_gates(pixels)
    tiny.memory_budget = 1
    for rows, means in method.attention_gates(pixels).items():
        assert means == pytest.approx(whole[rows], rel=1e-5)
