"""DPL-R: decoupled attention, in which instance tokens read prompts through a gate of constant strength.

Xu et al., "DPL: Decoupled Prompt Learning for Vision-Language Models", 2023, arXiv:2308.10061.
Code by the authors: none was published. Of the paper, https://arxiv.org/abs/2308.10061, the abstract alone was read.

RECONSTRUCTED, written without access to the full paper; compare with it before citing. What the abstract does not
say is our own, see below; this is no reproduction, and no published figure of DPL was available for comparison.

For the query q of one head let Z_P and Z_X be the sums of exp(q.k / sqrt(e)) over prompts P and over instance tokens X
(patches and [CLS], or the words), and lambda = Z_P / (Z_P + Z_X). Attention over all tokens together is exactly

    rows of X:  (1 - lambda) Attn(X, X) + lambda Attn(X, P)
    rows of P:  (1 - lambda) Attn(P, X) + lambda Attn(P, P)

where Attn(A, B) has queries of A and its softmax over B alone. DPL-R sets, in every block, with its own weights,

    rows of X:  Attn(X, X) + s Attn(X, P)
    rows of P:  Attn(P, X)

so that s = 0 is frozen CLIP. The prompts of layer l are (1 - a) P_l + a (their output of layer l - 1) up to the last
prompted layer, and are carried on after it. The loss is cross-entropy alone.

From the abstract: self-attention in four parts, some strengthened by approximation; text prompting conditioned on
language that preserves the text input; either modality or both; no regularising task.
INFERENCE: the algebra of lambda; which parts are strengthened, by the constant s; s and a; the sentence stays whole,
prompts are further tokens without positions or order, which all words read and which read the words up to [EOT], so
that they differ between classes; visual prompts join after `ln_pre`; numbers, depths, first values; the recipe, IVLP's
in https://github.com/muzairkhattak/PromptSRC, so that attention and text layout alone differ from `ivlp@promptsrc`.
Most of it is settings; the presets r1 to r8 go from that control to DPL-R one step at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import block as blocks
from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone, Layer
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Preset, Recipe

CONTROL = "as ivlp@promptsrc, the control"
DEPTH = f"{CONTROL}; layers that receive prompts"
WORDS, MAX_WORDS = "a photo of a", 4  # as in IVLP: longer contexts are random
MARK = 100.0  # in every channel of a padding token, by which a layer knows it: means of CLIP's states are far smaller
CURVE = (0.02, 0.05, 0.2, 0.5, 1.0)
HIDDEN = -1e4  # score of what a query may not see; finite, so that a row that sees nothing has gradients

Rule = Literal["joint", "exact", "bias", "const", "add"]
Reads = Literal["both", "prompts", "instance"]
RULES = "how words read prompts: joint, exact: one softmax; bias: its log-odds + s; const: 1 - s and s; add: 1 and s"
READERS = "what text prompts read: instance tokens, prompts, or both in one softmax"
READS: dict[Reads, tuple[Rule, float]] = {"both": ("exact", 0.0), "prompts": ("const", 1.0), "instance": ("const", 0.0)}

R1: dict[str, object] = {"layout": "classic", "rule_text": "joint", "rule_vision": "joint"}
R1 |= {"reads_text": "both", "reads_vision": "both", "carry": 0.0}
R2 = R1 | {"rule_text": "exact", "rule_vision": "exact"}
R3 = R2 | {"rule_vision": "add"}
R4 = R3 | {"layout": "sentence"}
R5 = R4 | {"rule_text": "add"}
R6 = R5 | {"carry": 0.01, "reads_text": "prompts", "reads_vision": "prompts"}


class DPL(Method):
    """DPL-R: prompts and instance tokens attend to each other in four separate parts."""

    title: ClassVar[str] = "DPL-R"
    reconstructed: ClassVar[bool] = True
    category = "decoupled attention"
    parameters_vit_b16 = 46_080
    recipes: ClassVar = {
        ("*", "*"): Recipe(epochs=20, lr=0.0025, batch=4, origin="ours", source=f"{CONTROL}; DPL's own is not known"),
    }
    presets: ClassVar = {
        "text": Preset(config={"modality": "text"}, source="text prompts alone"),
        "visual": Preset(config={"modality": "visual"}, source="visual prompts alone"),
        "r1": Preset(config=R1, source="IVLP, visual prompts after ln_pre"),
        "r2": Preset(config=R2, source="r1 in decoupled form, its equal"),
        "r3": Preset(config=R3, source="r2, patches read prompts with constant strength"),
        "r4": Preset(config=R4, source="r3, whole sentence"),
        "r5": Preset(config=R5, source="r4, words read prompts with constant strength"),
        "r6": Preset(config=R6, source="r5, prompts are carried from layer to layer and read each other alone"),
        "r7": Preset(config=R6 | {"reads_text": "instance"}, source="r6, text prompts read words instead"),
        "r8": Preset(source="r7, visual prompts read the patches instead: DPL-R, the default"),
        "const": Preset(config={"rule_text": "const", "rule_vision": "const"}, source="Attn(X, X) weighted with 1 - s"),
        "pp": Preset(config={"reads_text": "both", "reads_vision": "both"}, source="Attn(P, P) kept, as in CLIP"),
        **{f"a{a:g}": Preset(config={"carry": a}, source="curve over a") for a in (0.0, 0.1)},
        **{f"s{s:g}": Preset(config={"strength_text": s, "strength_vision": s}, source="curve over s") for s in CURVE},
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Numbers and depths are IVLP's in PromptSRC; all else is the reconstruction's choice."""

        modality: Literal["both", "text", "visual"] = field(default="both", metadata={"source": "ours"})
        n_ctx_text: int = field(default=4, metadata={"source": CONTROL})
        n_ctx_vision: int = field(default=4, metadata={"source": CONTROL})
        depth_text: int = field(default=9, metadata={"source": DEPTH, "at_most": ("text_depth",)})
        depth_vision: int = field(  # 0 is what a ResNet has, with modality=text
            default=9, metadata={"source": DEPTH, "at_most": ("vision_depth",), "at_least": 0}
        )
        layout: Literal["sentence", "classic"] = field(
            default="sentence", metadata={"source": "ours; prompts beside 'a photo of a <name>.', or in place of words"}
        )
        rule_text: Rule = field(default="add", metadata={"source": f"ours; {RULES}"})
        rule_vision: Rule = field(default="add", metadata={"source": "ours; the same of patches"})
        strength_text: float = field(default=0.1, metadata={"source": "ours; s"})
        strength_vision: float = field(default=0.1, metadata={"source": "ours; s"})
        reads_text: Reads = field(default="instance", metadata={"source": f"ours; {READERS}"})
        reads_vision: Reads = field(default="instance", metadata={"source": "ours; the same of visual prompts"})
        carry: float = field(default=0.01, metadata={"source": "ours; a, part of the last layer's output; 0: replaced"})
        ln_pre: bool = field(default=False, metadata={"source": "ours; true: visual prompts pass ln_pre, as in IVLP"})

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rule_text == "joint" and (self.layout, self.reads_text) != ("classic", "both"):
                raise UsageError("rule_text=joint is CLIP's own attention: set layout=classic and reads_text=both.")
            if self.rule_vision == "joint" and self.reads_vision != "both":
                raise UsageError("rule_vision=joint is CLIP's own attention: set reads_vision=both.")

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        c, n, text, vision = config, config.n_ctx_text, backbone.text_width, backbone.vision_width
        self.classic = c.layout == "classic" and c.modality != "visual"
        self.text_prompts, self.visual_prompts = nn.ParameterList(), nn.ParameterList()
        self.towers: dict[str, Tower] = {}
        if c.modality != "visual":
            first = prompts.from_words(backbone, WORDS, n) if n <= MAX_WORDS else prompts.random_context(n, text)
            self.text_prompts.extend([first, *(prompts.random_context(n, text) for _ in range(c.depth_text - 1))])
            place = {"start": 1} if self.classic else {"joins": True, "padded": True}
            self.towers["text"] = Tower(self.text_prompts, c.rule_text, c.strength_text, c.reads_text, c.carry, **place)
        if c.modality != "text":
            if not c.depth_vision:
                raise UsageError("Visual prompts need a layer: set modality=text, or choose a ViT such as ViT-B-16.")
            self.visual_prompts.extend([prompts.random_context(c.n_ctx_vision, vision) for _ in range(c.depth_vision)])
            self.towers["vision"] = Tower(
                self.visual_prompts, c.rule_vision, c.strength_vision, c.reads_vision, c.carry, joins=not c.ln_pre
            )
        self.frozen_image_tower = "vision" not in self.towers

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        n = self.config.n_ctx_text
        words = " ".join(["X"] * n) if self.classic and n > MAX_WORDS else WORDS
        tokens = prompts.sentence_tokens(self.backbone, words, names)
        shared = max(tokens.shared(), 1 + n) if self.classic else 0
        self.start = tokens.embeddings[0, :1]  # [SOS]
        self.fixed = tokens.embeddings[0, 1 + n : shared]  # words that are not learned, if n < 4
        self.tokens = tokens.after(shared)

    def encode_texts(self, layer: Layer | None) -> Tensor:
        """(K, D), the blocks run by `layer`."""
        tokens = self.tokens
        if self.classic:
            prefix = prompts.join(self.start, self.text_prompts[0], self.fixed)
            return self.backbone.encode_text(tokens.embeddings, tokens.eot, prefix, layer=layer)
        padding = torch.arange(tokens.ids.shape[1], device=tokens.ids.device) > tokens.eot.unsqueeze(1)  # (K, L)
        embeddings = tokens.embeddings.masked_fill(padding.unsqueeze(-1), MARK)
        return self.backbone.encode_text(embeddings, tokens.eot, layer=layer)

    def run_image_tower(self, images: Images | Tensor, layer: Layer | None) -> ImageFeatures:
        """Features of B images, the blocks run by `layer`."""
        first = self.visual_prompts[0] if self.config.ln_pre and layer else None
        return self.backbone.encode_image(images, first, layer=layer)

    def encode_classes(self) -> Tensor:
        return self.encode_texts(self.towers["text"].layer if "text" in self.towers else None)

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        return self.run_image_tower(images, self.towers["vision"].layer if "vision" in self.towers else None)

    def diagnostics(self, images: Images | Tensor) -> dict[str, float]:
        """Share of attention that goes to prompts, by tower, kind of row and layer."""
        gates = self.attention_gates(images).items()
        return {f"gate/{rows}/{layer}": share for rows, shares in gates for layer, share in enumerate(shares, start=1)}

    @torch.no_grad()
    def attention_gates(self, images: Images | Tensor) -> dict[str, list[float]]:
        """Mean lambda by layer of `text/instance`, `text/prompts`, `vision/instance` and `vision/prompts` rows.

        It is the share that prompts would have in one softmax; the mean is over heads, rows, and classes or images.
        """
        gates = {}
        for name, tower in self.towers.items():
            encode = self.encode_texts if name == "text" else partial(self.run_image_tower, images)
            gates[f"{name}/instance"], gates[f"{name}/prompts"] = measured(tower, encode)
        return gates


class Tower(NamedTuple):
    """How the blocks of one tower run: where its prompts stand, what replaces them, who reads whom."""

    prompts: nn.ParameterList  # P_l (n, d) of every prompted layer
    rule: Rule
    strength: float
    reads: Reads
    carry: float
    start: int | None = None  # position of the first prompt; None: the last n tokens are prompts
    joins: bool = False  # the first layer appends the prompts
    padded: bool = False  # texts of several lengths, their padding marked: a prompt is to read none of it

    def layer(self, index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """One block for tokens x (N, T, d), prompts among them or, in the first layer, about to join."""
        x = self.enter(index, x)
        if self.rule == "joint":
            return block(x, attn_mask=mask)  # type: ignore[no-any-return]
        (seen_x, mass_x), (seen_p, mass_p) = self.looks(block, x, mask)
        of_instance = weights(self.rule, self.strength, mass_p - mass_x)
        of_prompts = weights(*READS[self.reads], mass_p - mass_x)
        rows = self.is_prompt(x).unsqueeze(-1)  # (T, 1)
        kept, share = (torch.where(rows, b, a) for a, b in zip(of_instance, of_prompts, strict=True))
        heads = (kept * seen_x + share * seen_p).type_as(seen_x)  # (N, h, T, e)
        out = x + block.ls_1(block.attn.out_proj(heads.transpose(-2, -3).flatten(-2)))
        out = out + block.ls_2(block.mlp(block.ln_2(out)))
        return torch.where(self.real(x).unsqueeze(-1), out, MARK) if self.padded else out

    def enter(self, index: int, x: Tensor) -> Tensor:
        """The tokens with this layer's prompts."""
        if index >= len(self.prompts) or (index == 0 and not self.joins):
            return x
        own = self.prompts[index].expand(len(x), -1, -1)
        if index == 0:
            return torch.cat([x, own], dim=1)
        instance, last = self.apart(x)
        own, start = (1 - self.carry) * own + self.carry * last, self.first(x.shape[1])
        return torch.cat([instance[:, :start], own, instance[:, start:]], dim=1)

    def first(self, T: int) -> int:
        """Position of the first of the prompts among T tokens."""
        return T - len(self.prompts[0]) if self.start is None else self.start

    def apart(self, x: Tensor, dim: int = -2) -> tuple[Tensor, Tensor]:
        """Instance tokens, and prompts."""
        start, n = self.first(x.shape[dim]), len(self.prompts[0])
        before, prompts, after = x.split([start, n, x.shape[dim] - start - n], dim)
        return torch.cat([before, after], dim), prompts

    def is_prompt(self, x: Tensor) -> Tensor:
        """(T,), True for prompts."""
        behind = torch.arange(x.shape[1], device=x.device) - self.first(x.shape[1])
        return (behind >= 0) & (behind < len(self.prompts[0]))

    def real(self, x: Tensor) -> Tensor:
        """(N, T), False for padding."""
        return x.mean(dim=-1) < MARK / 2

    def allowed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(T, T) or (N, 1, T, T), True where a row may look at a column; `mask` is CLIP's, of the words alone."""
        if mask is None:
            return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        if not self.padded:
            return mask == 0
        n = x.shape[1] - len(mask)
        words = F.pad(mask == 0, (0, n), value=True).expand(len(x), 1, -1, -1)  # each reads all prompts
        return torch.cat([words, self.real(x)[:, None, None].expand(-1, -1, n, -1)], dim=-2)  # no prompt reads padding

    def looks(self, block: Any, x: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """`look` of all rows at the instance tokens, and at the prompts."""
        q, context = blocks.queries_keys_values(block, x)  # (N, h, T, e)
        keys, values = (self.apart(t) for t in context)
        allowed = self.apart(self.allowed(x, mask), dim=-1)
        return [look(q, *side) for side in zip(keys, values, allowed, strict=True)]


def look(q: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Attn(rows, tokens) (N, h, T, e) and log Z (N, h, T, 1); a row that may see none: a mean, and about `HIDDEN`."""
    scores = (q @ keys.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~allowed, HIDDEN)
    log_mass = scores.logsumexp(dim=-1, keepdim=True)
    return (scores - log_mass).exp().type_as(values) @ values, log_mass


def weights(rule: Rule, strength: float, odds: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of instance tokens and of prompts, (N, h, T, 1), from log(lambda / (1 - lambda))."""
    if rule in ("const", "add"):
        share = strength * (odds > HIDDEN / 2)  # 0 for a row that may see no prompt
    else:
        share = (odds + strength).sigmoid() if rule == "bias" else odds.sigmoid()
    return torch.ones_like(share) if rule == "add" else 1 - share, share


def measured(tower: Tower, encode: Callable[[Layer], object]) -> list[list[float]]:
    """Mean lambda by layer of the rows of X, and of P, while `encode` runs; texts may come in chunks."""
    sums: dict[int, Tensor] = {}  # by layer: sums and numbers (2, 2) of both kinds of row

    def layer(index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        tokens = tower.enter(index, x)
        (_, mass_x), (_, mass_p) = tower.looks(block, tokens, mask)
        gate = (mass_p - mass_x).sigmoid().mean(dim=1).squeeze(-1)  # (N, T)
        real, is_prompt = tower.real(tokens), tower.is_prompt(tokens)
        counted = torch.stack([real & ~is_prompt, real & is_prompt])  # (2, N, T)
        noted = torch.stack([(gate * counted).sum(dim=(1, 2)), counted.sum(dim=(1, 2))])
        sums[index] = sums[index] + noted if index in sums else noted
        return tower.layer(index, block, x, mask)

    encode(layer)
    return torch.stack([sums[i][0] / sums[i][1] for i in sorted(sums)]).T.tolist()  # type: ignore[no-any-return]
