"""PromptSRC: prompts in both towers, held near frozen CLIP and averaged over the epochs.

Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023,
arXiv:2307.06948.
Code by the authors: https://github.com/muzairkhattak/PromptSRC

    loss = CE + 25 * |g - g'|_1 + 10 * |f - f'|_1 + KL(q' || q) / (B * K),   v = sum_e w_e v_e,

with normalised features f, g of the prompted towers, f', g' and probabilities q' of frozen CLIP (g' averaged over
templates), means over all entries, and the prompts v_e after epoch e weighted by a Gaussian over the epochs.

Differs from it: the teacher reads the dataset's own templates instead of 60 of ImageNet's; prompts stay in float32; any
CLIP width works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench import prompts
from promptbench.backbone import Backbone
from promptbench.method import Images, Method, MethodConfig, Prediction, Recipe

BASE2NEW = "authors' config vit_b16_c2_ep20_batch4_4+4ctx"


class PromptSRC(Method):
    """Independent deep prompts in both towers with three consistency terms."""

    category = "multi-modal"
    parameters_vit_b16 = 46_080
    recipes: ClassVar = {("*", "*"): Recipe(epochs=20, lr=0.0025, batch=4, origin="authors", source=BASE2NEW)}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the base-to-new experiments."""

        n_ctx: int = field(default=4, metadata={"source": BASE2NEW})
        ctx_init: str = field(default="a photo of a", metadata={"source": BASE2NEW})
        depth: int = field(default=9, metadata={"source": BASE2NEW, "at_most": ("text_depth", "vision_depth")})
        text_weight: float = field(default=25.0, metadata={"source": f"{BASE2NEW}, TEXT_LOSS_WEIGHT"})
        image_weight: float = field(default=10.0, metadata={"source": f"{BASE2NEW}, IMAGE_LOSS_WEIGHT"})
        epoch_mean: float = field(default=15.0, metadata={"source": f"{BASE2NEW}, GPA_MEAN; epochs from 1"})
        epoch_std: float = field(default=1.0, metadata={"source": f"{BASE2NEW}, GPA_STD"})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        n, deep = config.n_ctx, range(config.depth - 1)
        self.words = prompts.words_of(config.ctx_init)
        self.ctx = nn.Parameter(prompts.from_words(backbone, self.words, n))
        self.deep_text = nn.ParameterList(prompts.random_context(n, backbone.text_width) for _ in deep)
        self.visual = nn.Parameter(prompts.random_context(n, backbone.vision_width))
        self.deep_visual = nn.ParameterList(prompts.random_context(n, backbone.vision_width) for _ in deep)
        self._average: list[Tensor] = []

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        tokens = prompts.sentence_tokens(self.backbone, self.words, names)
        self.start = tokens.embeddings[0, :1]  # [SOS]
        self.tokens = tokens.after(1 + self.config.n_ctx)
        self._teacher: Tensor | None = None

    def encode_classes(self) -> Tensor:
        deep = dict(enumerate(self.deep_text, start=1))
        prefix = prompts.join(self.start, self.ctx)
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, prefix, deep)

    def image_features(self, images: Images | Tensor) -> Tensor:
        """(B, D) of the prompted tower."""
        return self.backbone.encode_image(images, self.visual, dict(enumerate(self.deep_visual, start=1))).cls

    def forward(self, images: Images | Tensor) -> Prediction:
        return self.classify(self.image_features(images), self.text_features())

    @torch.no_grad()
    def teacher_text(self) -> Tensor:
        """(K, D) of frozen CLIP, mean over the dataset's templates, not normalised."""
        if self._teacher is None:
            template = self.class_names.template
            templates = (template,) if isinstance(template, str) else template
            tokens = self.backbone.embed_text(
                [t.format(prompts.readable(name)) for t in templates for name in self.class_names]
            )
            features = self.backbone.encode_text(tokens.embeddings, tokens.eot)
            self._teacher = features.unflatten(0, (-1, len(self.class_names))).mean(dim=0)
        return self._teacher

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        image, text = self.image_features(images), self.text_features()
        with torch.no_grad():
            frozen_image, frozen_text = self.backbone.encode_image(images).cls, self.teacher_text()
            target = self.classify(frozen_image, frozen_text).logits.log_softmax(dim=-1)
        logits = self.classify(image, text).logits
        return {
            "ce": F.cross_entropy(logits, labels),
            "text": self.config.text_weight * distance(text, frozen_text),
            "image": self.config.image_weight * distance(image, frozen_image),
            "logits": F.kl_div(logits.log_softmax(-1), target, reduction="sum", log_target=True) / logits.numel(),
        }

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        weight = epoch_weights(epochs, self.config.epoch_mean, self.config.epoch_std)[epoch]
        if epoch == 0:
            self._average = [torch.zeros_like(p) for p in self.parameters()]
        for mean, parameter in zip(self._average, self.parameters(), strict=True):
            mean.add_(weight * parameter)
            if epoch == epochs - 1:
                parameter.copy_(mean)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of normalised features."""
    return F.l1_loss(F.normalize(x, dim=-1), F.normalize(y, dim=-1))


def epoch_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Gaussian weights of the epochs, counted from 1, with sum 1."""
    at = torch.arange(1, epochs + 1, dtype=torch.float64)
    return (-0.5 * ((at - mean) / std) ** 2).softmax(dim=0).tolist()  # softmax: a mean far beyond the end underflows
