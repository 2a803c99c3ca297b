"""TCP: inside the text tower, the context gives way to states made from the class's own hand-written text.

Yao et al., "TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model", CVPR 2024, arXiv:2311.18231.
Code by the authors: https://github.com/htyao89/Textual-based_Class-aware_prompt_tuning, trainers/tcp.py and
trainers/clip_text/model.py

    t_c  = g(template(c)) / |g(template(c))|
    C_c  = h(t_c),   h = Linear, QuickGELU, Linear with D / 4 hidden units and 4 d outputs, read as 4 tokens
    g_c  = g([SOS] v_1 ... v_n <name of c> <words of the dataset> [EOT];  tokens 1 ... 4 become C_c before block J)
    loss = CE + w * (1 - mean_c cos(g_c, t_c))

with text tower g and the learned context v. Blocks (`layer` J) count from 0. C_c carries no position, nothing of v is
left in its place, and v acts through what later tokens have read of it in the blocks before J.

Literal in the authors' code, and here: 4 class prompts, whatever `n_ctx` is (a shorter context is filled up to 4 with
fixed placeholders, which C_c replaces with it); D / 4 hidden units; QuickGELU, whatever the towers have.
Literal there, settings here: block 8 of 12, as deep in proportion on other towers; w = 8, which the weight in their
scripts has no effect on.

Odd points of the authors' code, kept here:
  - two tables of texts: t_c is read in `template`, and behind the name in the prompt stand other words, as
    `, a type of car` without a full stop. UCF101's `person doing` stands before the name and is not learned;
  - Adam's eps is 1e-3, by an edit of Dassl that their README asks for, against NaN in half precision. It is part of the
    method: with 1e-8 another model is trained.

Differs from it: everything learned and t_c are in float32, where theirs is in half precision; on a dataset that their
table has not, the words behind the name are those of its own template; a context of more than 4 tokens moves the name
back, which theirs would overwrite; text is cut at the longest prompt, and up to block J the tokens before the class
name are encoded once for all classes (equal to rounding).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.data.class_names import FROM_DATASET, ClassNames
from promptbench.method import Images, Method, MethodConfig, Recipe

CODE = "authors' tcp.py"
SCRIPTS = "authors' scripts/base2new_train.sh with vit_b16_ep100_ctxv1"
SHORTER = f"{SCRIPTS}; 25 epochs by train.py"
CLASS_PROMPTS = 4
REDUCTION = 4  # of the joint dimension to the hidden units
AROUND: Mapping[str, str] = {
    "oxford_pets": "{}, a type of pet.",
    "oxford_flowers": "{}, a type of flower.",
    "fgvc_aircraft": "{}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "{}.",
    "stanford_cars": "{}, a type of car",
    "food101": "{}, a type of food.",
    "sun397": "{}.",
    "caltech101": "{}.",
    "ucf101": "person doing {}.",
    "imagenet": "{}.",
    "imagenetv2": "{}.",
    "imagenet_sketch": "{}.",
    "imagenet_a": "{}.",
    "imagenet_r": "{}.",
}  # what stands behind the context, by dataset


def recipe(epochs: int, origin: Literal["authors", "transferred"], source: str) -> Recipe:
    """What all trainings share."""
    return Recipe(epochs=epochs, lr=0.002, batch=32, optimizer="adam", eps=1e-3, origin=origin, source=source)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TCP(Method):
    """One learned context for all classes, and deep prompts of every class by a network."""

    category = "text, class-aware"
    parameters_vit_b16 = 331_904
    authors_half = ("",)  # all
    learned_prompts = ("ctx",)
    frozen_image_tower = True
    authors_templates: ClassVar = {
        "fgvc_aircraft": "a photo of an aircraft {}.",
        "dtd": "a photo of a {}, a type of texture.",
        "food101": "a photo of a {}, a type of food.",
    }
    recipes: ClassVar = {
        ("base2new", "imagenet"): recipe(25, "authors", SHORTER),
        ("base2new", "sun397"): recipe(25, "authors", SHORTER),
        ("base2new", "*"): recipe(50, "authors", SCRIPTS),
        ("cross_dataset", "*"): recipe(25, "transferred", "its base2new recipe for ImageNet; no script was published"),
        ("domain_generalization", "*"): recipe(25, "transferred", "its base2new recipe for ImageNet"),
        ("ood", "*"): recipe(25, "transferred", "its base2new recipe for ImageNet"),
        ("few_shot", "imagenet"): recipe(25, "transferred", "its base2new recipe; no script was published"),
        ("few_shot", "sun397"): recipe(25, "transferred", "its base2new recipe; no script was published"),
        ("*", "*"): recipe(50, "transferred", "its base2new recipe; no script was published for this protocol"),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of all published experiments."""

        n_ctx: int | None = field(
            default=4, metadata={"source": f"{SCRIPTS}; context tokens; none: as many as the words, 16 without words"}
        )
        ctx_init: str = field(
            default="", metadata={"source": f"{SCRIPTS}; '': random; or the context's first words, as 'a photo of a'"}
        )
        layer: int = field(
            default=8,
            metadata={
                "source": f"{CODE}; the block of 12, from 0 on, before which the prompts of a class come in",
                "at_most": ("text_depth",),
                "of_depth": 12,
                "below": True,
            },
        )
        weight: float = field(default=8.0, metadata={"source": f"{CODE}; of the pull towards the hand-written text"})
        template: str = field(
            default=FROM_DATASET,
            metadata={"source": f"{CODE}; the text pulled to and read: 'dataset': each dataset's; or any with {{}}"},
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.weight < 0:
                raise UsageError(f"'weight' must be at least 0, not {self.weight}.")
            if prompts.NAME in self.ctx_init or self.ctx_init == FROM_DATASET:
                raise UsageError(
                    f"'ctx_init' takes words alone, such as 'a photo of a', and not {self.ctx_init!r}: what stands "
                    "around a class name is a matter of its dataset."
                )
            if self.template != FROM_DATASET:
                ClassNames((), template=self.template)  # refuses what names no place for the name

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        words, joint, width = prompts.words_of(config.ctx_init), backbone.embed_dim, backbone.text_width
        n = prompts.context_length(words, config.n_ctx, backbone)
        self.ctx = nn.Parameter(prompts.initial_context(backbone, words, n))
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(joint, joint // REDUCTION),
                relu=QuickGELU(),
                linear2=nn.Linear(joint // REDUCTION, CLASS_PROMPTS * width),
            )
        )

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        n = len(self.ctx)
        words = " ".join([*[prompts.PLACEHOLDER] * max(n, CLASS_PROMPTS), self.around_the_name()])
        self.sentences = prompts.sentences(self.backbone, words, n, names)
        templates = self.templates_of_classes(self.config.template)
        self.targets = prompts.FrozenTexts(self.backbone, templates, self.class_names)

    def around_the_name(self) -> str:
        """The fixed words of the prompt, a template."""
        _, behind = prompts.around(self.class_names.first_template)
        return AROUND.get(self.class_names.dataset, f"{prompts.NAME}{behind}")

    def class_prompts(self) -> Tensor:
        """C (K, 4, d)."""
        states = self.meta_net(self.targets.features())
        return states.unflatten(-1, (CLASS_PROMPTS, -1))

    def encode_classes(self) -> Tensor:
        deep = {self.config.layer: self.class_prompts()}
        return self.sentences.encode(self.backbone, self.ctx, deep_by_class=deep)

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        text = self.text_features()
        logits = self.classify(self.encode_images(images), text).logits
        pull = 1 - F.cosine_similarity(text.float(), self.targets.features(), dim=-1).mean()
        return {"ce": F.cross_entropy(logits, labels), "kg": self.config.weight * pull}
