"""CLIP-LoRA: low-rank updates of queries, keys and values in every block of both towers.

Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024, arXiv:2405.18541.
Code by the authors: https://github.com/MaxZanella/CLIP-LoRA

    W x  becomes  W x + (a / r) * B A dropout(x)

for the projections W of q, k and v, with A (r, d) random, B (d, r) zero at the start, and a, r from the config.

Differs from it: SGD with a schedule per epoch instead of AdamW with one per step, so the learning rate is ours; class
names stand in `a photo of a {}.` on every dataset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import block as blocks
from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.method import Images, Method, MethodConfig, Prediction, Recipe

PAPER = "section 4, and the authors' run_utils.py"


class LowRank(nn.Module):
    """The updates of one block: a layer for q, k and v, (..., tokens, d) to (..., tokens, 3 d)."""

    def __init__(self, width: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(3, rank, width))
        self.up = nn.Parameter(torch.zeros(3, width, rank))
        nn.init.kaiming_uniform_(self.down.view(-1, width), a=math.sqrt(5))
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training)
        return self.scale * torch.einsum("...td,ird,ier->...tie", dropped, self.down, self.up).flatten(-2)

    def layer(self, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """The block with the updated projections."""
        h = block.ln_1(x)
        projected = F.linear(h, block.attn.in_proj_weight, block.attn.in_proj_bias) + self(h)
        q, k, v = (blocks.split_heads(block, part) for part in projected.chunk(3, dim=-1))
        return blocks.finish(block, x, q, blocks.KeysValues(k, v), mask)


class CLIPLoRA(Method):
    """Low-rank updates in both towers, no prompts."""

    category = "adapter"
    parameters_vit_b16 = 184_320
    recipes: ClassVar = {("*", "*"): Recipe(epochs=50, lr=0.002, batch=32, origin="ours", source="not yet tuned")}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the paper."""

        rank: int = field(default=2, metadata={"source": PAPER})
        alpha: float = field(default=1.0, metadata={"source": f"{PAPER}; scale = alpha / rank"})
        dropout: float = field(default=0.25, metadata={"source": PAPER})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        settings = (config.rank, config.alpha / config.rank, config.dropout)
        self.text = nn.ModuleList(LowRank(backbone.text_width, *settings) for _ in range(backbone.text_depth))
        self.vision = nn.ModuleList(LowRank(backbone.vision_width, *settings) for _ in range(backbone.vision_depth))

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.tokens = prompts.sentence_tokens(self.backbone, "a photo of a", names)

    def text_layer(self, index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.text[index].layer(block, x, mask)

    def vision_layer(self, index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.vision[index].layer(block, x, mask)

    def encode_classes(self) -> Tensor:
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, layer=self.text_layer)

    def forward(self, images: Images | Tensor) -> Prediction:
        return self.classify(self.backbone.encode_image(images, layer=self.vision_layer).cls, self.text_features())
