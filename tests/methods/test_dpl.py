"""DPL-R keeps what its docstring says: the algebra, what it equals at its ends, and who reads whom."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.checks.plugin.subject import vit_b16
from promptbench.clip import block as blocks
from promptbench.clip.load import load_backbone
from promptbench.clip.prompts import other_classes
from promptbench.config import UsageError
from promptbench.training.fit import fit

NAMES = ("dog", "golden_retriever", "2012 Ferrari 458 Italia Coupe")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LABELS = torch.tensor([0, 1, 2])
LADDER = [f"step{i}" for i in range(1, 8)]
DPL = registry.load("methods", "dpl")
MODULE: Any = sys.modules[DPL.__module__]


@pytest.fixture(scope="module")
def clip(tiny_name: str) -> pb.Backbone:
    """The tiny random CLIP, loaded once: nothing here may change it."""
    return load_backbone(tiny_name)


@pytest.fixture(scope="module")
def pixels(clip: pb.Backbone) -> Tensor:
    return torch.randn(3, 3, clip.resolution, clip.resolution, generator=torch.Generator().manual_seed(0))


def fresh(backbone: pb.Backbone, preset: str = "", names: tuple[str, ...] = NAMES, **config: object) -> Any:
    return pb.create_method(f"dpl@{preset}" if preset else "dpl", backbone, names, **config)


def make(backbone: pb.Backbone, preset: str = "", names: tuple[str, ...] = NAMES, **config: object) -> Any:
    """DPL-R with learned tensors as far from their first values as a trained one's."""
    return fill(fresh(backbone, preset, names, **config))


def fill(method: pb.Method) -> pb.Method:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return method


def step(method: pb.Method, pixels: Tensor) -> None:
    """Gradients of the loss, in every learned tensor that has some."""
    sum(method.loss(pixels, LABELS).values()).backward()  # type: ignore[union-attr]


@torch.no_grad()
def logits(method: pb.Method, pixels: Tensor) -> Tensor:
    return method(pixels).logits


@torch.no_grad()
def prompt_states(method: Any) -> list[Tensor]:
    """The text prompts of every layer, (1 or K, n, d)."""
    found = []

    def states(resblocks: Any, part: slice) -> Tensor:
        found.extend([prompts for _, prompts, _ in method.layers(resblocks, part)])
        return method.states(resblocks, part)

    method.backbone.run_text(states, len(method.class_names), method.length(), learns=False)
    return found


# The algebra ----------------------------------------------------------------------------------------------------------


def block_of(width: int, heads: int) -> Any:
    """One block of CLIP whose attention is far from even."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = open_clip.transformer.ResidualAttentionBlock(width, heads).eval().requires_grad_(False)
        for parameter in block.attn.parameters():
            parameter.normal_(std=0.05 if parameter.dim() > 1 else 0.3)
    return block


@pytest.mark.parametrize(
    "width, heads, tokens, n, causal", [(768, 12, 197, 8, False), (512, 8, 77, 4, True), (96, 3, 17, 4, False)]
)
def test_two_parts_mixed_by_lambda_are_joint_attention(
    width: int, heads: int, tokens: int, n: int, causal: bool
) -> None:
    """Prompts are tokens 1 to n, as words are; under the causal mask the rows behind them are compared."""
    block = block_of(width, heads)
    x = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(2))
    mask = torch.full((tokens, tokens), float("-inf")).triu(1) if causal else torch.zeros(tokens, tokens)
    is_prompt = (torch.arange(tokens) >= 1) & (torch.arange(tokens) < 1 + n)
    q, context = blocks.queries_keys_values(block, x)
    sides = [blocks.KeysValues(*(t[..., side, :] for t in context)) for side in (is_prompt, ~is_prompt)]
    seen_p, scores_p = MODULE.look(q, sides[0], mask[:, is_prompt] < 0)
    seen_x, scores_x = MODULE.look(q, sides[1], mask[:, ~is_prompt] < 0)
    gate = MODULE.share(scores_p, scores_x)
    found = blocks.close(block, x, MODULE.merged((1 - gate) * seen_x + gate * seen_p))
    behind = slice(1 + n, None)
    torch.testing.assert_close(found[:, behind], block(x, attn_mask=mask)[:, behind], rtol=0, atol=1e-5)


@torch.no_grad()
def by_hand(method: Any, name: str, sentence: str) -> Tensor:
    """The text feature (D,) of one class by the docstring's formulas, head by head; its prompts read `sentence`."""
    clip, prompts, n = method.backbone.clip, method.text_prompts, len(method.text_prompts[0])

    def frozen(name: str) -> list[Tensor]:
        ids = method.backbone.tokenizer([method.config.ctx_init.format(name.replace("_", " "))])[0]
        x = (clip.token_embedding(ids) + clip.positional_embedding)[: int(ids.argmax()) + 1].unsqueeze(0)
        states = [x]
        for block in clip.transformer.resblocks:
            states.append(block(states[-1], attn_mask=torch.full((x.shape[1],) * 2, float("-inf")).triu(1)))
        return [state[0] for state in states]

    own, other = frozen(name), frozen(sentence)
    P, eot = own[0][1 : 1 + n], own[0][-1:]
    for i, block in enumerate(clip.transformer.resblocks):
        P = P + prompts[i] if i < len(prompts) else P
        h, w, b = block.attn.num_heads, block.attn.in_proj_weight, block.attn.in_proj_bias

        def heads(x: Tensor, block: Any = block, h: int = h, w: Tensor = w, b: Tensor = b) -> list[list[Tensor]]:
            parts = F.linear(block.ln_1(x), w, b).chunk(3, dim=-1)
            return [list(part.chunk(h, dim=-1)) for part in parts]

        of_own, of_other, of_p, of_eot = heads(own[i]), heads(other[i]), heads(P), heads(eot)
        seen_eot, seen_p = [], []
        beta = float(method.beta[i]) if i < len(method.beta) else 0.0
        for j in range(h):
            q, k, v = (part[j] for part in of_own)
            weights = (q[-1] @ k.T / k.shape[-1] ** 0.5).softmax(dim=-1)
            gate = weights[1 : 1 + n].sum()
            keys, values = (torch.cat([t[:1], t[1 + n : -1], e[j]]) for t, e in ((k, of_eot[1]), (v, of_eot[2])))
            query = of_eot[0][j] / k.shape[-1] ** 0.5
            of_x = (query @ keys.T).softmax(dim=-1) @ values
            of_prompts = (query @ of_p[1][j].T).softmax(dim=-1) @ of_p[2][j]
            seen_eot.append((1 - gate) * of_x + gate * of_prompts)
            rows = []
            for r in range(n):
                query = of_p[0][j][r] / k.shape[-1] ** 0.5
                keys, values = (torch.cat([t[:1], e[j][: r + 1]]) for t, e in ((k, of_p[1]), (v, of_p[2])))
                before = (query @ keys.T).softmax(dim=-1) @ values
                behind = (query @ of_other[1][j][1 + n :].T).softmax(dim=-1) @ of_other[2][j][1 + n :]
                rows.append((1 - beta) * before + beta * behind)
            seen_p.append(torch.stack(rows))
        eot = block_end(block, eot, torch.cat(seen_eot, dim=-1))
        P = block_end(block, P, torch.cat(seen_p, dim=-1))
    return (clip.ln_final(eot) @ clip.text_projection)[0]


def block_end(block: Any, x: Tensor, seen: Tensor) -> Tensor:
    x = x + block.attn.out_proj(seen)
    return x + block.mlp(block.ln_2(x))


@pytest.mark.parametrize("template", ["a photo of a {}.", "these {} things, large"])
@pytest.mark.parametrize("preset", ["", "other-sentence"])
@pytest.mark.parametrize("depth", [2, 4])
def test_class_texts_are_those_of_the_formulas(clip: pb.Backbone, preset: str, depth: int, template: str) -> None:
    method = make(clip, preset, depth_text=depth, ctx_init=template)
    read = [NAMES[i] for i in other_classes(NAMES)] if preset else NAMES
    expected = [by_hand(method, name, sentence) for name, sentence in zip(NAMES, read, strict=True)]
    with torch.no_grad():
        torch.testing.assert_close(method.encode_classes(), torch.stack(expected), **CLOSE)


def test_patches_read_prompts_beside_each_other_through_a_gate(clip: pb.Backbone, pixels: Tensor) -> None:
    method = make(clip, depth_vision=2)
    with torch.no_grad():
        x = clip.clip.visual._embeds(pixels)
        for i, block in enumerate(clip.clip.visual.transformer.resblocks):
            q, own = blocks.queries_keys_values(block, x)
            seen, _ = MODULE.look(q, own)
            if i < 2:
                of_prompts = blocks.keys_values(block, method.visual.prompts[i])
                seen = seen + method.visual.gates[i].view(-1, 1, 1) * MODULE.look(q, of_prompts)[0]
            x = blocks.close(block, x, MODULE.merged(seen))
        expected = clip.clip.visual.ln_post(x)
        found = method.encode_images(pb.Images(pixels, dense=True))
        torch.testing.assert_close(found.cls, expected[:, 0] @ clip.clip.visual.proj, **CLOSE)
        torch.testing.assert_close(found.patches, expected[:, 1:], **CLOSE)
        torch.testing.assert_close(method.encode_images(pixels).cls, found.cls, **CLOSE)


# Frozen CLIP at first -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["", "text", "other-sentence", "all-rows", "beta-off", "step2", "step3", "step4"])
def test_without_delta_and_beta_class_texts_are_those_of_clip(clip: pb.Backbone, preset: str) -> None:
    ids = clip.tokenizer(["a photo of a " + name.replace("_", " ") + "." for name in NAMES])
    with torch.no_grad():
        expected = clip.clip.encode_text(ids)
        torch.testing.assert_close(fresh(clip, preset).encode_classes(), expected, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(make(clip, preset).encode_classes(), expected, atol=1e-2)


@pytest.mark.parametrize("preset", ["", "visual", "control-gated", "step6"])
def test_without_gates_image_features_are_those_of_clip(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    method = make(clip, preset)
    with torch.no_grad():
        expected = clip.clip.encode_image(pixels)
        assert not torch.allclose(method.encode_images(pixels).cls, expected, atol=1e-2)
        method.visual.gates.zero_()
        torch.testing.assert_close(method.encode_images(pixels).cls, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preset", ["", "text", "visual"])
def test_the_first_logits_are_zero_shot(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    zeroshot = pb.create_method("zeroshot@generic", clip, NAMES)
    torch.testing.assert_close(logits(fresh(clip, preset), pixels), logits(zeroshot, pixels), **CLOSE)


@pytest.mark.parametrize("preset", ["text", "visual"])
def test_a_tower_without_prompts_stays_frozen(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    method, zeroshot = make(clip, preset), pb.create_method("zeroshot@generic", clip, NAMES)
    with torch.no_grad():
        text = F.normalize(method.encode_classes(), dim=-1)
        frozen_text, frozen_image = zeroshot.encode_classes(), clip.encode_image(pixels).cls
        assert torch.allclose(method.encode_images(pixels).cls, frozen_image, **CLOSE) == (preset == "text")
        assert torch.allclose(text, F.normalize(frozen_text, dim=-1), **CLOSE) == (preset == "visual")


# The control, and the steps from it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("words", ["a photo of a", "one of these {} things, large"])
def test_the_first_step_is_ivlp(clip: pb.Backbone, pixels: Tensor, depth: int, words: str) -> None:
    config = {"ctx_init": words, "n_ctx_vision": 3, "depth_text": depth, "depth_vision": depth}
    ivlp: Any = fill(pb.create_method("ivlp", clip, NAMES, n_ctx_text=3 if "{}" in words else 4, **config))
    ours = make(clip, "step1", **config)
    text = [ivlp.ctx, *ivlp.text_prompts]
    for a, b in zip([*text, *ivlp.visual_prompts], [*ours.text_prompts, *ours.visual_prompts], strict=True):
        assert torch.equal(a, b)  # the same first values, too
    for method in (ivlp, ours):
        step(method, pixels)
    torch.testing.assert_close(logits(ours, pixels), logits(ivlp, pixels), rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_classes(), ivlp.encode_classes(), rtol=0, atol=5e-6)
        one, other = (method.encode_images(pb.Images(pixels, dense=True)) for method in (ours, ivlp))
    assert torch.equal(one.cls, other.cls) and torch.equal(one.local, other.local)
    for a, b in zip(text, ours.text_prompts, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    for a, b in zip(ivlp.visual_prompts, ours.visual_prompts, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prompts", ["carried", "replaced"])
def test_own_gates_of_all_rows_are_joint_attention(clip: pb.Backbone, prompts: str) -> None:
    method = make(clip, "step1", prompts=prompts)
    n, layers = 4, prompt_states(method)
    first = layers[0][0] - clip.text_positions[1 : 1 + n]
    deep = {i: states[0] for i, states in enumerate(layers[1:], start=1)}
    prefix = torch.cat([method.tokens.embeddings[0, :1], first])
    tokens = method.tokens.after(1 + n)
    with torch.no_grad():
        joint = clip.encode_text(tokens.embeddings, tokens.eot, prefix, deep)
        torch.testing.assert_close(method.encode_classes(), joint, **CLOSE)


def config_of(preset: str) -> dict[str, Any]:
    config = DPL.Config(**(DPL.presets[preset].config if preset else {}))
    return {f.name: getattr(config, f.name) for f in fields(config)}


def differing(one: str, other: str) -> set[str]:
    return {name for name, value in config_of(one).items() if value != config_of(other)[name]}


def test_every_step_of_the_ladder_changes_one_setting(clip: pb.Backbone, pixels: Tensor) -> None:
    changes = [differing(*pair) for pair in itertools.pairwise(LADDER)]
    assert all(len(names) == 1 for names in changes)
    assert set().union(*changes) == differing("step1", "") and not differing("step7", "")
    found = [logits(make(clip, preset), pixels) for preset in LADDER]
    apart = [float((a - b).abs().max()) > 1e-3 for a, b in itertools.pairwise(found)]
    assert apart == [True] * 5 + [False]  # the rate of training shows in no forward pass


@pytest.mark.parametrize(
    "preset, other, changed",
    [
        ("text", "", {"modality"}),
        ("visual", "", {"modality"}),
        ("other-sentence", "", {"sentence"}),
        ("text-other-sentence", "text", {"sentence"}),
        ("beta-off", "", {"beta"}),
        ("all-rows", "", {"readers"}),
        ("text-control", "step1", {"modality", "gates_vision", "visual_lr"}),
        ("control-gated", "step1", {"gates_vision", "visual_lr"}),
        ("control-gated", "", {"prompts", "readers", "gates_text", "beta"}),
    ],
)
def test_what_presets_change(preset: str, other: str, changed: set[str]) -> None:
    assert differing(preset, other) == changed


def test_the_text_control_is_the_text_of_ivlp(clip: pb.Backbone, pixels: Tensor) -> None:
    ivlp: Any = fill(pb.create_method("ivlp@promptsrc", clip, NAMES))
    ours = make(clip, "text-control")
    assert ours.frozen_image_tower
    with torch.no_grad():
        expected = ivlp.classify(clip.encode_image(pixels), ivlp.encode_classes()).logits
    torch.testing.assert_close(logits(ours, pixels), expected, rtol=0, atol=1e-4)


# Who reads whom -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["beta-off", "step4", "text-control"])
def test_prompts_that_read_no_name_are_run_once_for_all_classes(clip: pb.Backbone, preset: str) -> None:
    assert [len(states) for states in prompt_states(make(clip, preset))] == [1] * 4


def test_prompts_read_the_name_of_their_class_or_of_another(clip: pb.Backbone) -> None:
    own, other = prompt_states(make(clip)), prompt_states(make(clip, "other-sentence"))
    assert [len(states) for states in own] == [1, 3, 3, 3]
    assert all(float((states - states[:1]).abs().max()) > 1e-2 for states in own[1:])
    order = other_classes(NAMES)
    for a, b in zip(own[1:], other[1:], strict=True):
        torch.testing.assert_close(a[order], b, **CLOSE)
    alone = [logits(make(clip, preset, NAMES[1:2]), torch.zeros(1, 3, 32, 32)) for preset in ("", "other-sentence")]
    assert torch.equal(*alone)


READING = ["", "all-rows", "other-sentence", "beta-off", "step1", "step2", "step3"]


@pytest.mark.parametrize("preset", [preset for preset in READING if preset != "other-sentence"])
def test_padding_changes_no_feature(clip: pb.Backbone, preset: str) -> None:
    with torch.no_grad():
        together = make(clip, preset).encode_classes()
        for i, name in enumerate(NAMES):
            torch.testing.assert_close(make(clip, preset, (name,)).encode_classes()[0], together[i], **CLOSE)
        longest = make(clip, preset, (*NAMES, "dog " * 70)).encode_classes()
    torch.testing.assert_close(longest[:3], together, **CLOSE)


@pytest.mark.parametrize("preset", READING)
def test_logits_go_with_the_classes(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    method, order = make(clip, preset), [2, 0, 1]
    before = logits(method, pixels)
    method.set_classes([NAMES[i] for i in order])
    torch.testing.assert_close(logits(method, pixels), before[:, order], rtol=0, atol=1e-4)


# What learns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counted, config",
    [
        (18_432 + 9 + 27_648 + 108, {}),  # 9 layers of 4 words of 512 with beta, of 4 prompts of 768 with 12 gates
        (36_864 + 9 + 27_648 + 108, {"ctx_init": "one two three four five six seven eight"}),
        (24_576 + 11 + 36_864 + 144, {"depth_text": 12, "depth_vision": 12}),  # what the last block reads is not read
        (18_432 + 9, {"modality": "text"}),
        (27_648 + 108, {"modality": "visual"}),
        (46_080, DPL.presets["step1"].config),
    ],
)
def test_numbers_of_parameters(counted: int, config: dict[str, Any]) -> None:
    method = DPL(DPL.Config(**config), vit_b16())
    assert sum(parameter.numel() for parameter in method.parameters()) == counted


def test_gradients_reach_all_but_ungated_prompts_from_the_first_step(clip: pb.Backbone, pixels: Tensor) -> None:
    method = fresh(clip)
    step(method, pixels)
    reached = {name for name, p in method.named_parameters() if p.grad.any()}
    assert reached == {f"text_prompts.{i}" for i in range(4)} | {"beta", "visual.gates"}
    assert method.beta.grad.all() and method.visual.gates.grad.all()
    assert not any(weight.requires_grad for weight in clip.clip.parameters())


def test_the_visual_group_has_a_rate_of_its_own(clip: pb.Backbone) -> None:
    text, visual = fresh(clip).parameter_groups()
    assert len(text["params"]) == 5 and "lr_scale" not in text
    assert len(visual["params"]) == 5 and visual["lr_scale"] == 0.3
    (alone,) = fresh(clip, "visual", visual_lr=0.5).parameter_groups()
    assert alone["lr_scale"] == 0.5 and len(fresh(clip, "text").parameter_groups()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset in DPL.presets if preset != "step7"])
def test_every_preset_keeps_the_contract(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    config = partial(DPL.Config, **DPL.presets[preset].config)
    cls = type("Preset", (DPL,), {"Config": config, "__module__": DPL.__module__})
    for name in ("prediction_has_its_shape", "gradients_reach_everything_learned", "other_classes"):
        check = next(check for check in kit.CHECKS if check.__name__ == f"check_{name}")
        assert not kit.run_check(check, cls, clip)
    method = make(clip, preset)
    step(method, pixels)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


# The framework's promises ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["", "all-rows", "other-sentence", "beta-off", "step1"])
def test_the_memory_budget_changes_nothing(tiny: pb.Backbone, pixels: Tensor, preset: str) -> None:
    def everything() -> Iterator[Tensor]:
        method = make(tiny, preset)
        step(method, pixels)
        yield from (logits(method, pixels), *(p.grad for p in method.parameters()))
        yield torch.tensor(list(method.diagnostics(pixels).values()))

    whole = list(everything())
    tiny.memory_budget = 1  # one class at a time
    for a, b in zip(whole, everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["", "step1"])
def test_reduced_precision_rounds_the_same_numbers(clip: pb.Backbone, pixels: Tensor, preset: str) -> None:
    method, exact = make(clip, preset), logits(make(clip, preset), pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(method, pixels)
        rounded = logits(method, pixels)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05 * float(exact.abs().max()))
    assert all(p.grad.dtype == torch.float32 for p in method.parameters())
    assert torch.equal(logits(method, pixels), exact)


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
        ({"ctx_init": ""}, "its words are the prompts"),
        ({"sentence": "other", "beta": "zero"}, "set beta=learned"),
        ({"sentence": "other", "modality": "visual"}, "modality=text"),
        ({"depth_vision": 0}, "modality=text"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(clip: pb.Backbone, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make(clip, **config)


def test_the_template_is_encoded_when_it_is_read_once_for_all_steps(
    clip: pb.Backbone, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a sweep, methods are told classes for their prompts' lengths alone."""
    calls, encode = [], MODULE.template_of
    monkeypatch.setattr(MODULE, "template_of", lambda *given: calls.append(1) or encode(*given))
    method = make(clip)
    method.set_classes(NAMES[:2])
    assert not calls
    for names in (NAMES, NAMES[::-1]):
        method.set_classes(names)
        for _ in range(2):
            step(method, pixels)
    assert len(calls) == 2


# Its figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, reported",
    [
        ("", {"gate/text": 4, "gate/vision": 4, "beta": 3}),
        ("text", {"gate/text": 4, "beta": 3}),
        ("visual", {"gate/vision": 4}),
        ("step1", {"gate/text": 4}),
    ],
)
def test_diagnostics_are_named_by_layer_and_leave_no_trace(
    clip: pb.Backbone, pixels: Tensor, preset: str, reported: dict[str, int]
) -> None:
    method = make(clip, preset)
    before, found = logits(method, pixels), method.diagnostics(pixels)
    names: set[str] = set()
    for name, layers in reported.items():
        names |= {f"{name}/{layer}" for layer in range(1, layers + 1)}
    assert set(found) == names and all(isinstance(figure, float) for figure in found.values())
    assert all(0 < figure < 1 for name, figure in found.items() if name.startswith("gate/text"))
    assert torch.equal(logits(method, pixels), before) and found == method.diagnostics(pixels)


def test_frozen_gates_are_those_of_the_template_and_own_ones_move(clip: pb.Backbone, pixels: Tensor) -> None:
    """Those of the first block from its own attention weights, averaged by hand."""
    found = [make(clip, preset).diagnostics(pixels)["gate/text/1"] for preset in ("step3", "step4")]
    block, shares = clip.clip.transformer.resblocks[0], []
    with torch.no_grad():
        for name in NAMES:
            ids = clip.tokenizer([f"a photo of a {name.replace('_', ' ')}."])[0]
            x = (clip.clip.token_embedding(ids) + clip.clip.positional_embedding)[: int(ids.argmax()) + 1]
            x = block.ln_1(x.unsqueeze(0))
            _, weights = block.attn(x[:, -1:], x, x, need_weights=True)
            shares.append(float(weights[0, 0, 1:5].sum()))
    assert found[1] == pytest.approx(sum(shares) / 3, rel=1e-5)
    assert abs(found[0] - found[1]) > 1e-4
    all_rows = make(clip, "all-rows").diagnostics(pixels)["gate/text/1"]
    assert all_rows == pytest.approx(found[1], rel=1e-5)
