"""ProGrad: CoOp whose gradient may not go against the one that would keep it near zero-shot CLIP.

Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, arXiv:2205.14865.
Code by the authors: https://github.com/BeierZhu/Prompt-align, ProGrad.public/trainers/prograd.py and the step in
Dassl.ProGrad.pytorch/dassl/engine/trainer.py

    kl  = -T^2 * mean_b sum_c softmax(z'_b / T)_c log softmax(z_b / T)_c
    g   = a - w * <a, b> / |b|^2 * b   where <a, b> < 0,   else a

with logits z of the learned context and z' of zero-shot CLIP in the dataset's template, for the same random view of an
image; a and b are the gradients of CE and of kl with respect to the whole context. SGD steps along g: kl has no other
effect. With w = 1 (the authors' lambda) g is orthogonal to b.

Odd points of the authors' code, kept here:
  - a context of n tokens that starts from words has them last, and before them zeros, without noise;
  - so many of the words' tokens are learned as there are words between blanks. A comma is a token of its own: in
    `a type of pet, a photo of a {}.` the last `a` stays a fixed token before the name;
  - templates are the authors' own, with the domain first, so that the name stays at the end;
  - they decide by the whole batch; weight decay and momentum come after it. Here it is the whole step's gradient, if
    its images are in several groups;
  - kl is a cross-entropy: a divergence and the teacher's entropy, which is constant.

Differs from it: the context, its gradients and the projection are in float32; the teacher reads the features of the
one frozen image tower, where they encode each image twice; words behind the name, which no template of theirs has, stay
there; the name always stands behind the context; text is cut at the longest prompt, and the tokens before the class
name are encoded once for all classes (equal to rounding). Their experiments are with RN50.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.data.class_names import FROM_DATASET, ClassNames
from promptbench.method import Images, Method, MethodConfig, Recipe

CODE = "authors' prograd.py"
FEW_SHOT = "authors' README and scripts/prograd.sh with rn50_ep50, rn50_ep100, rn50"
BASE2NEW = "authors' scripts/base2new_train_prograd.sh, which are for 4 shots and RN50"
SOFTER_ON = ("oxford_flowers", "dtd", "eurosat")
SOFTER = {shots: {"weight": 0.8} for shots in (8, 16)}
FEWER = {1: 50, 2: 100, 4: 100}


def recipe(epochs: int, origin: Literal["authors", "transferred"], source: str) -> Recipe:
    """What all trainings share."""
    return Recipe(epochs=epochs, lr=0.002, batch=32, origin=origin, source=source)


BY_SHOTS = replace(recipe(200, "authors", FEW_SHOT), epochs_at=FEWER)


class ProGrad(Method):
    """One learned context for all classes, its gradients aligned with the teacher's."""

    category = "text, regularised"
    parameters_vit_b16 = 8192
    authors_half = ("ctx",)
    learned_prompts = ("ctx",)
    frozen_image_tower = True
    guides = ("kl",)
    authors_templates: ClassVar = {
        "oxford_pets": "a type of pet, a photo of a {}.",
        "oxford_flowers": "a type of flower, a photo of a {}.",
        "fgvc_aircraft": "a type of aircraft, a photo of a {}.",
        "dtd": "a texture of {}.",
        "food101": "a type of food, a photo of {}.",
    }
    recipes: ClassVar = {
        ("few_shot", "imagenet"): recipe(50, "authors", FEW_SHOT),
        **{("few_shot", name): replace(BY_SHOTS, overrides_at=SOFTER) for name in SOFTER_ON},
        ("few_shot", "*"): BY_SHOTS,
        ("domain_generalization", "*"): recipe(50, "authors", "authors' scripts/eval.sh with their model of ImageNet"),
        ("base2new", "imagenet"): recipe(50, "transferred", BASE2NEW),
        ("base2new", "*"): recipe(100, "transferred", BASE2NEW),
        ("cross_dataset", "*"): recipe(50, "transferred", "its recipe for ImageNet"),
        ("ood", "*"): recipe(50, "transferred", "its recipe for ImageNet"),
        ("*", "*"): recipe(100, "transferred", "its base2new recipe; none was published for this protocol"),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of all published experiments but a few of lambda."""

        n_ctx: int = field(default=16, metadata={"source": f"{FEW_SHOT}; context tokens, the initial words among them"})
        ctx_init: str = field(
            default=FROM_DATASET,
            metadata={
                "source": f"{CODE}; '': random; 'dataset': the words of the template below, of the dataset trained on; "
                "or others, or any template with {}"
            },
        )
        weight: float = field(default=1.0, metadata={"source": f"{FEW_SHOT}, LAMBDA; the share of a conflict removed"})
        temperature: float = field(default=1.0, metadata={"source": "authors' configs, T; of both softmaxes in kl"})
        template: str = field(
            default=FROM_DATASET,
            metadata={"source": f"{CODE}; the teacher's text: 'dataset': each dataset's; or any with {{}}"},
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.weight < 0:
                raise UsageError(f"'weight' must be at least 0, not {self.weight}.")
            if self.temperature <= 0:
                raise UsageError(f"'temperature' must be more than 0, not {self.temperature}.")
            if self.template != FROM_DATASET:
                ClassNames((), template=self.template)  # refuses what names no place for the name

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        n, width = config.n_ctx, backbone.text_width
        self.ctx = nn.Parameter(torch.zeros(n, width) if config.ctx_init else prompts.random_context(n, width))
        self.words: str | None = None

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        if self.words is None:
            self.words = self.start()
        self.sentences = prompts.sentences(self.backbone, self.words, len(self.ctx), names)
        templates = self.templates_of_classes(self.config.template)
        self.teacher = prompts.FrozenTexts(self.backbone, templates, self.class_names)

    @torch.no_grad()
    def start(self) -> str:
        """Puts the initial words in the last places of the context; all that then stands around a class name."""
        if not self.config.ctx_init:
            return ""
        wanted = self.config.ctx_init
        if wanted == FROM_DATASET:
            wanted = self.templates_of_classes(names=self.trained_names)[0]
        words, n = prompts.words_of(wanted), len(self.ctx)
        before, _ = prompts.around(words)
        count = len(before.split())
        if count > n:
            raise UsageError(f"n_ctx is {n}, but the initial words '{before}' are {count}; set n_ctx to at least that.")
        self.ctx[n - count :] = prompts.from_words(self.backbone, words, count)
        return " ".join([prompts.PLACEHOLDER] * (n - count) + [words])

    def encode_classes(self) -> Tensor:
        return self.sentences.encode(self.backbone, self.ctx)

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        features, T = self.encode_images(images), self.config.temperature
        logits = self.classify(features, self.text_features()).logits
        with torch.no_grad():
            target = (self.classify(features, self.teacher.features()).logits / T).softmax(dim=-1)
        return {"ce": F.cross_entropy(logits, labels), "kl": T**2 * F.cross_entropy(logits / T, target)}

    def combine_gradients(self, gradients: Mapping[str, list[Tensor]]) -> list[Tensor]:
        pairs = zip(gradients["ce"], gradients["kl"], strict=True)
        return [projected(a, b, self.config.weight) for a, b in pairs]


def projected(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The gradient `a` without a share `weight` of what goes against `b`, where anything does."""
    dot, square = (a.float() * b.float()).sum(), b.float().square().sum()
    return a - torch.where(dot < 0, weight * dot / square, 0) * b
