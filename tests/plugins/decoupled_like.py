"""Decoupled attention: queries look at prompts and at instance tokens apart, and a gate mixes what they saw.

After Xu et al., "DPL: Decoupled Prompt Learning for Vision-Language Models", arXiv:2308.10061.
Code by the authors: none was published; the algebra below is the framework's own test of such methods, on the blocks of
https://github.com/mlfoundations/open_clip.

    A(q) = (1 - g) * attention(q; instance tokens) + g * attention(q; prompts)

With g = sigmoid(lse_P - lse_X), lse the log-sum-exp of the scaled scores over prompts (P) and instance tokens (X), this
is ordinary attention over both. Here the log-odds are shifted by a learned amount per layer, 0 at the start.

Differs from it: this is no reproduction of DPL, whose gates are not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from promptbench.clip import block as blocks
from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.method import Images, Method, MethodConfig, Prediction, Recipe


class Decoupled(Method):
    """Prompts in both towers, read through a gate."""

    category = "multi-modal"
    parameters_vit_b16 = 5144
    recipes: ClassVar = {("*", "*"): Recipe(epochs=5, lr=0.0035, batch=4, origin="ours", source="as MaPLe")}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """How many prompts."""

        n_ctx: int = field(default=4, metadata={"source": "ours"})
        ctx_init: str = field(default="a photo of a", metadata={"source": "ours"})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = prompts.words_of(config.ctx_init)
        self.ctx = nn.Parameter(prompts.from_words(backbone, self.words, config.n_ctx))
        self.visual = nn.Parameter(prompts.random_context(config.n_ctx, backbone.vision_width))
        self.text_shift = nn.Parameter(torch.zeros(backbone.text_depth))
        self.vision_shift = nn.Parameter(torch.zeros(backbone.vision_depth))

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        tokens = prompts.sentence_tokens(self.backbone, self.words, names)
        self.start = tokens.embeddings[0, :1]  # [SOS]
        self.tokens = tokens.after(1 + self.config.n_ctx)

    def text_layer(self, index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return decoupled(block, x, slice(1, 1 + self.config.n_ctx), self.text_shift[index], mask)

    def vision_layer(self, index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return decoupled(block, x, slice(x.shape[1] - self.config.n_ctx, x.shape[1]), self.vision_shift[index], mask)

    def encode_classes(self) -> Tensor:
        prefix = prompts.join(self.start, self.ctx)
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, prefix, layer=self.text_layer)

    def forward(self, images: Images | Tensor) -> Prediction:
        image = self.backbone.encode_image(images, self.visual, layer=self.vision_layer).cls
        return self.classify(image, self.text_features())


def decoupled(block: Any, x: Tensor, prompt: slice, shift: Tensor, mask: Tensor | None) -> Tensor:
    """The block with the odds of looking at the prompts multiplied by exp(shift); x is (N, tokens, d)."""
    q, (keys, values) = blocks.queries_keys_values(block, x)  # (N, h, tokens, e)
    scores = q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5  # (N, h, tokens, tokens)
    scores = scores if mask is None else scores + mask
    is_prompt = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    is_prompt[prompt] = True
    to_prompts, to_instance = (scores.masked_fill(~side, float("-inf")) for side in (is_prompt, ~is_prompt))
    sees_prompts = to_prompts.isfinite().any(dim=-1, keepdim=True)  # under the causal mask [SOS] sees none
    to_prompts = to_prompts.where(sees_prompts, 0.0)
    odds = to_prompts.logsumexp(-1, keepdim=True) - to_instance.logsumexp(-1, keepdim=True) + shift
    gate = odds.sigmoid() * sees_prompts
    seen = (1 - gate) * (to_instance.softmax(-1) @ values) + gate * (to_prompts.softmax(-1) @ values)
    x = x + block.ls_1(block.attn.out_proj(seen.transpose(-2, -3).flatten(-2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
