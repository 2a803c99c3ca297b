"""Tip-Adapter-F: a cache of the training images' features beside zero-shot CLIP, its keys learned.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv:2111.03930.
Code by the authors: https://github.com/gaopengcuhk/Tip-Adapter

    logits(x) = exp(s) * f(x) W^T + alpha * exp(-beta * (1 - f(x) F^T)) V

with normalised image feature f(x), zero-shot classifier W (K, D), keys F (N, D), the normalised features of the N
training images, learned from there on, and values V (N, K), their one-hot labels.

Differs from it: keys come from one view of each image instead of the mean over ten random ones; alpha and beta are set,
not searched on validation images; SGD with a schedule per epoch instead of AdamW with one per step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.method import Images, Method, MethodConfig, Prediction, Recipe

CONFIGS = "authors' configs/*.yaml"


class TipAdapterF(Method):
    """Learns one key for every training image; scores the training classes only."""

    category = "adapter"
    parameters_vit_b16 = 0  # one joint dimension for every training image: none before `prepare`
    frozen_image_tower = True
    transfers = False
    kept: ClassVar = ("values",)
    transfers_reason = "the cache holds images of the training classes only"
    recipes: ClassVar = {
        ("*", "*"): Recipe(epochs=20, lr=0.002, batch=32, origin="ours", source="epochs of the authors' configs")
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """How much the cache counts, and how sharply it looks."""

        alpha: float = field(default=1.0, metadata={"source": f"{CONFIGS}, init_alpha"})
        beta: float = field(default=5.5, metadata={"source": f"{CONFIGS}, init_beta; they go from 1 to 7"})

    values: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.keys = nn.Parameter(torch.empty(0, backbone.embed_dim))  # (N, D) once the training images were seen
        self.register_buffer("values", torch.empty(0, 0))  # (N, K), not learned

    def prepare(self, batches: Iterable[tuple[Images, Tensor]]) -> None:
        features, labels = [], []
        for images, targets in batches:
            features.append(F.normalize(self.backbone.encode_image(images).cls.float(), dim=-1))
            labels.append(targets)
        self.keys = nn.Parameter(torch.cat(features))
        self.values = F.one_hot(torch.cat(labels), len(self.class_names)).float()

    def set_classes(self, names: Sequence[str]) -> None:
        if len(self.values) and len(names) != self.values.shape[1]:
            raise UsageError(f"The cache holds {self.values.shape[1]} classes, and {len(names)} are to be scored.")
        super().set_classes(names)
        template = self.class_names.template
        templates = (template,) if isinstance(template, str) else template
        shown = product(templates, map(prompts.readable, self.class_names))
        texts = [template.format(name) for template, name in shown]
        self.tokens = self.backbone.embed_text(texts)

    @torch.no_grad()
    def encode_classes(self) -> Tensor:
        features = self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot)  # (templates * K, D)
        return F.normalize(features, dim=-1).unflatten(0, (-1, len(self.class_names))).mean(dim=0)

    def forward(self, images: Images | Tensor) -> Prediction:
        image = self.backbone.encode_image(images).cls
        zero_shot = self.classify(image, self.text_features())
        if not len(self.values):
            return zero_shot
        affinity = F.normalize(image.float(), dim=-1) @ self.keys.T  # (B, N)
        cache = (-self.config.beta * (1 - affinity)).exp() @ self.values  # (B, K)
        logits = zero_shot.logits + self.config.alpha * cache
        return Prediction(logits, cosines=logits / self.backbone.logit_scale)
