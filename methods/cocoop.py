"""CoCoOp: CoOp's context, shifted for each image by a small network.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
Code by the authors: https://github.com/KaiyangZhou/CoOp, trainers/cocoop.py

    v_m(x) = v_m + h(f(x) / |f(x)|),   h = Linear, ReLU, Linear with D / 16 hidden units
    p(c | x) = softmax_c( exp(s) * cos(f(x), g([SOS] v_1(x) ... v_n(x) <name of c> . [EOT])) )

with image tower f, text tower g, CLIP's logit scale s, the learned context v and the meta network h, whose one output
is added to all n context tokens.

The control `cocoop@noise` is trained and evaluated with noise in the place of f(x) / |f(x)|, of its mean and standard
deviation: the same network with as many parameters, which is told nothing of the image. Were the noise there at
evaluation alone, the network would be misled and not uninformed.

Differs from it: everything learned stays in float32; images of a batch are encoded together, as many as fit the
backbone's memory budget, where the authors loop over images; text is cut at the longest prompt, and an image's context
is encoded once for all classes (equal to rounding).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.method import Images, Method, MethodConfig, Prediction, Recipe

SCRIPTS = "authors' scripts/cocoop with vit_b16_c4_ep10_batch1_ctxv1"
REDUCTION = 16  # of the joint dimension to the hidden units of the meta network


class CoCoOp(Method):
    """A context that depends on the image."""

    category = "text"
    parameters_vit_b16 = 35_360
    authors_half = ("",)  # all
    learned_prompts = ("ctx",)
    image_conditional = True
    frozen_image_tower = True
    recipes: ClassVar = {
        ("base2new", "*"): Recipe(epochs=10, lr=0.002, batch=1, origin="authors", source=SCRIPTS),
        ("cross_dataset", "*"): Recipe(epochs=10, lr=0.002, batch=1, origin="authors", source=SCRIPTS),
        ("domain_generalization", "*"): Recipe(epochs=10, lr=0.002, batch=1, origin="authors", source=SCRIPTS),
        ("*", "*"): Recipe(
            epochs=10,
            lr=0.002,
            batch=1,
            origin="transferred",
            source="its recipe for all that was published: base to new classes, other datasets and domains",
        ),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of all published experiments."""

        n_ctx: int | None = field(
            default=None,
            metadata={
                "source": "context tokens; None: as many as the words, 16 without words",
                "tokens_of": "ctx_init",
            },
        )
        ctx_init: str = field(
            default="a photo of a", metadata={"source": f"{SCRIPTS}; {prompts.STARTS}", "template": True}
        )

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = prompts.words_of(config.ctx_init)
        n, width = prompts.context_length(self.words, config.n_ctx, backbone), backbone.text_width
        joint = backbone.embed_dim
        self.ctx = nn.Parameter(
            prompts.from_words(backbone, self.words, n) if self.words else prompts.random_context(n, width)
        )
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(joint, joint // REDUCTION),
                relu=nn.ReLU(),
                linear2=nn.Linear(joint // REDUCTION, width),
            )
        )

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.sentences = prompts.sentences(self.backbone, self.words, len(self.ctx), names)

    def forward(self, images: Images | Tensor) -> Prediction:
        features = self.encode_images(images)
        return self.classify(features, self.conditional_text(features.cls))

    def conditional_text(self, image: Tensor) -> Tensor:
        """Text features (B, K, D), not normalised, for image features (B, D)."""
        return self.sentences.encode(self.backbone, self.ctx + self.shift(image).unsqueeze(1))

    def images_at_once(self) -> int:
        return self.backbone.images_within_budget(self.sentences.tokens.eot)

    def shift(self, image: Tensor) -> Tensor:
        """What is added to every context token, (B, d), for image features (B, D)."""
        return self.meta_net(self.condition(F.normalize(image, dim=-1)))
