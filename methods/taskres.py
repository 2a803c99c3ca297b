"""TaskRes: zero-shot CLIP's text features plus a learned residual for each class.

Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023, arXiv:2211.10277.
Code by the authors: https://github.com/geekyutao/TaskRes, trainers/taskres.py, train_regular.sh and configs

    p(c | x) = softmax_c( exp(s) * cos(f(x), t_c + alpha * r_c) )

with image features f(x), CLIP's logit scale s, text features t_c (D) of class c, and the learned residuals r (K, D),
which start at 0.

Odd points of the authors' code, kept here:
  - text features are not normalised, so that alpha r_c is small beside their length of about 10; those of several
    templates are averaged as they are. On ImageNet these are the seven and `a photo of a {}.`;
  - class names are read as they are spelled, with underscores;
  - alpha is 0.5 in the scripts, and 1.0 on Flowers; the default of their code, 1.0, is nowhere else.

Differs from it: text is cut at the longest prompt (equal to rounding), and encoded in float32, not in half precision.
The authors' stronger row, TaskRes*, begins with text features that were trained before, and is not this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.method import Method, MethodConfig, Recipe

from .zeroshot import SEVEN

SCRIPT = "authors' train_regular.sh and configs adam_lr2e-3_B256_ep*.yaml; 100 epochs at 1, 2 and 4 shots"
IMAGENET = "authors' train_regular.sh and configs adam_lr2e-4_B256_ep*.yaml; 100 epochs at 1, 2 and 4 shots"
GENERALIZATION = "authors' config generalization_vit16.yaml"
FEWER = {1: 100, 2: 100, 4: 100}  # epochs by shots
FLOWERS: dict[str, Any] = {"alpha": 1.0}


def recipe(
    origin: Literal["authors", "transferred"],
    source: str,
    lr: float = 0.002,
    epochs_at: Mapping[int, int] = FEWER,
    **overrides: object,
) -> Recipe:
    """What all the authors' trainings have in common."""
    return Recipe(
        epochs=200,
        epochs_at=epochs_at,
        lr=lr,
        batch=256,
        optimizer="adam",
        overrides=overrides,
        origin=origin,
        source=source,
    )


class TaskRes(Method):
    """One residual for each class of the training."""

    category = "adapter, task residual"
    parameters_vit_b16 = 0  # one joint dimension for every class: none before the classes are known
    frozen_image_tower = True
    transfers = "subset"
    transfers_reason = "residuals are learned for the training classes only"
    official_unused = ("base_text_features",)
    authors_templates: ClassVar = {"imagenet": (*SEVEN, "a photo of a {}.")}
    recipes: ClassVar = {
        ("few_shot", "imagenet"): recipe("authors", IMAGENET, 0.0002),
        ("few_shot", "oxford_flowers"): recipe("authors", SCRIPT, **FLOWERS),
        ("few_shot", "*"): recipe("authors", SCRIPT),
        ("domain_generalization", "imagenet"): recipe("authors", GENERALIZATION, 0.0002, {}),
        ("base2new", "imagenet"): recipe("transferred", "its few-shot recipe for ImageNet", 0.0002),
        ("base2new", "oxford_flowers"): recipe("transferred", "its few-shot recipe for Flowers", **FLOWERS),
        ("cross_dataset", "imagenet"): recipe("transferred", "its few-shot recipe for ImageNet", 0.0002),
        ("ood", "imagenet"): recipe("transferred", "its few-shot recipe for ImageNet", 0.0002),
        ("*", "*"): recipe("transferred", "its few-shot recipe; none was published for this protocol"),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """How much the residuals count."""

        alpha: float = field(default=0.5, metadata={"source": "authors' train_regular.sh; 1.0 on Flowers"})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.residuals = nn.Parameter(torch.empty(0, backbone.embed_dim))  # until the classes are known

    def set_classes(self, names: Sequence[str]) -> None:
        first = not self.trained_names
        super().set_classes(names)
        templates = self.templates_of_classes(names=self.trained_names)
        self.texts = prompts.FrozenTexts(self.backbone, templates, self.class_names, normalised=False, as_spelled=True)
        self.at = torch.tensor(self.rows(), device=self.backbone.device)  # of the current classes, (K,)
        if first:
            self.residuals = nn.Parameter(torch.zeros(len(self.class_names), self.backbone.embed_dim))  # (K, D)

    def encode_classes(self) -> Tensor:
        return self.texts.features() + self.config.alpha * self.residuals.index_select(0, self.at)

    def official_parameters(self) -> dict[str, nn.Parameter]:
        return {"text_feature_residuals": self.residuals}
