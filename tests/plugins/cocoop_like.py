"""CoCoOp: CoOp's context, shifted for each image by a small network.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
Code by the authors: https://github.com/KaiyangZhou/CoOp, trainers/cocoop.py.

    v_m(x) = v_m + h(f(x) / |f(x)|)
    p(c | x) = softmax_c( exp(s) * cos(f(x), g([SOS] v_1(x) ... v_n(x) <name of c> . [EOT])) )

with image tower f, text tower g and h = Linear-ReLU-Linear with D / 16 hidden units.

Differs from it: everything learned stays in float32; all images of a batch are encoded together; text is cut at the
longest prompt, and an image's context is encoded once for all classes (equal to rounding).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from promptbench import prompts
from promptbench.backbone import Backbone
from promptbench.method import Images, Method, MethodConfig, Prediction, Recipe

SCRIPT = "authors' scripts/cocoop, vit_b16_c4_ep10_batch1_ctxv1"


class CoCoOp(Method):
    """A context and the network that shifts it."""

    category = "text, per image"
    parameters_vit_b16 = 35_360
    frozen_image_tower = True
    recipes: ClassVar = {("*", "*"): Recipe(epochs=10, lr=0.002, batch=1, origin="authors", source=SCRIPT)}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the base-to-new experiments."""

        ctx_init: str = field(default="a photo of a", metadata={"source": SCRIPT})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = prompts.words_of(config.ctx_init)
        self.ctx = nn.Parameter(prompts.from_words(backbone, self.words, len(self.words.split())))
        hidden = backbone.embed_dim // 16
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(backbone.embed_dim, hidden),
                relu=nn.ReLU(),
                linear2=nn.Linear(hidden, backbone.text_width),
            )
        )

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        tokens = prompts.sentence_tokens(self.backbone, self.words, names)
        self.start = tokens.embeddings[0, :1]  # [SOS]
        self.tokens = tokens.after(1 + len(self.ctx))

    def forward(self, images: Images | Tensor) -> Prediction:
        image = self.backbone.encode_image(images).cls
        return self.classify(image, self.conditional_text(image))

    def conditional_text(self, image: Tensor) -> Tensor:
        """Text features (B, K, D) for image features (B, D)."""
        shift = self.meta_net(F.normalize(image, dim=-1)).unsqueeze(1)  # (B, 1, d)
        prefix = prompts.join(self.start, self.ctx + shift)  # (B, 1 + n, d)
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, prefix)
