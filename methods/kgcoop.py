"""KgCoOp: CoOp with a pull of every class's text towards its hand-written one.

Yao et al., "Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization", CVPR 2023, arXiv:2303.13283.
Code by the authors: https://github.com/htyao89/KgCoOp, KgCoOp/trainers/kgcoop.py

    loss = CE + w * (1 - mean_c cos(g_c, t_c))
    g_c  = g([SOS] v_1 ... v_n <name of c> . [EOT]),   t_c = g(template(c))

with text tower g, the learned context v, and the mean over all classes trained on, not those in the batch. Images meet
g_c alone, as in CoOp.

Odd points of the authors' code, kept here:
  - the learned prompt starts as "a photo of a" on every dataset, whatever the dataset's template t_c is made of;
  - textures have another template than CoOp's, `a photo of a {}, a type of texture.`;
  - their checkpoints hold a vector and a network that nothing uses: they are passed over.

Differs from it: any initial words work; the name stands behind the context and all classes share it (class-specific
contexts can be set there, and were never published); the context and t_c are in float32, where their second CLIP stays
in half precision; text is cut at the longest prompt, and the tokens before the class name are encoded once for all
classes (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.data.class_names import FROM_DATASET, ClassNames
from promptbench.method import Images, Method, MethodConfig, Recipe

SCRIPTS = "authors' scripts/base2new_train.sh and run.sh with vit_b16_ep100_ctxv1"
FEW_SHOT = "authors' scripts/xd_train.sh, 4 shots of all classes of every dataset, with vit_b16_ep100_ctxv1"


def recipe(origin: Literal["authors", "transferred"], source: str) -> Recipe:
    """All trainings are the same."""
    return Recipe(epochs=100, lr=0.002, batch=128, origin=origin, source=source)


class KgCoOp(Method):
    """One learned context for all classes, held near hand-written texts."""

    category = "text, regularised"
    parameters_vit_b16 = 2048
    authors_half = ("ctx",)
    learned_prompts = ("ctx",)
    official_unused = ("bias_vectors", "meta_net.")
    frozen_image_tower = True
    authors_templates: ClassVar = {"dtd": "a photo of a {}, a type of texture."}
    recipes: ClassVar = {
        ("base2new", "*"): recipe("authors", SCRIPTS),
        ("few_shot", "*"): recipe("authors", FEW_SHOT),
        ("*", "*"): recipe("transferred", "its recipe for all that was published: new classes and few shots"),
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
            default="a photo of a", metadata={"source": f"authors' kgcoop.py; {prompts.STARTS}", "template": True}
        )
        weight: float = field(default=8.0, metadata={"source": f"{SCRIPTS}, W; of the pull"})
        template: str = field(
            default=FROM_DATASET,
            metadata={"source": "authors' kgcoop.py; the text pulled to: 'dataset': each dataset's; or any with {}"},
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.weight < 0:
                raise UsageError(f"'weight' must be at least 0, not {self.weight}.")
            if self.template != FROM_DATASET:
                ClassNames((), template=self.template)  # refuses what names no place for the name

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = prompts.words_of(config.ctx_init)
        n = prompts.context_length(self.words, config.n_ctx, backbone)
        self.ctx = nn.Parameter(prompts.initial_context(backbone, self.words, n))

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.sentences = prompts.sentences(self.backbone, self.words, len(self.ctx), names)
        templates = self.templates_of_classes(self.config.template)
        self.targets = prompts.FrozenTexts(self.backbone, templates, self.class_names)

    def encode_classes(self) -> Tensor:
        return self.sentences.encode(self.backbone, self.ctx)

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        text = self.text_features()
        logits = self.classify(self.encode_images(images), text).logits
        pull = 1 - F.cosine_similarity(text.float(), self.targets.features(), dim=-1).mean()
        return {"ce": F.cross_entropy(logits, labels), "kg": self.config.weight * pull}
