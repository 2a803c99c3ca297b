"""CLAP: a linear probe that starts at zero-shot CLIP and is held there, each class as far as CLIP knows it.

Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024,
arXiv:2312.12730.
Code by the authors: https://github.com/jusiro/CLAP, trainers/adapters.py, scripts/adapt.sh and configs

    p(c | x) = softmax_c( exp(s) * cos(f(x), w_c) )
    loss     = CE + mean_c lambda_c |w_c - t_c|^2

with image features f(x), CLIP's logit scale s, text features t_c (D) of class c, the learned prototypes w (K, D), which
start at t, and multipliers lambda_c: the mean probability that zero-shot CLIP gives class c on random views of its
training images. Without the constraint it is the paper's ZS-LP, the preset `zs_lp`.

Odd points of the authors' code, kept here:
  - the constraint is a mean over the classes, where the paper has a sum, and acts on features that are not normalised,
    of a length of about 10;
  - the multipliers are never updated, although the paper speaks of an augmented Lagrangian: its outer step belongs to a
    setting that no released script uses;
  - text features of several templates are averaged as they are, on ImageNet the seven and `a photo of a {}.`; class
    names are read as they are spelled, with underscores.

Differs from it: the authors draw each epoch's images, as many as there are, at random from the pool of all views, so
that an epoch may hold an image several times, and fill a batch from it where there are fewer images than that; here an
epoch holds every image once, in the view whose turn it is, of the same pool (`train_views` of the recipe, which should
be `views`), and a batch may be smaller. A class without a training image has a multiplier of 1, where theirs is NaN.
Text is cut at the longest prompt (equal to rounding), and encoded in float32, not in half precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.method import Images, Method, MethodConfig, Preset, Recipe

from .zeroshot import SEVEN

SCRIPTS = "authors' scripts/adapt.sh and configs/trainers/SGD_lr1e-1_B256_ep300.yaml"
CODE = "authors' trainers/adapters.py"


def recipe(origin: Literal["authors", "transferred"], source: str) -> Recipe:
    """The authors' only training; the pool of views is `train_views` here."""
    return Recipe(
        epochs=300,
        lr=0.1,
        batch=256,
        weight_decay=0.0,
        train_views=20,
        origin=origin,
        source=source,
        selection="none",  # what the paper asks for: one setting for all datasets and shots, no validation images
    )


class CLAP(Method):
    """One prototype for each class of the training."""

    category = "adapter, constrained linear probe"
    parameters_vit_b16 = 0  # one joint dimension for every class: none before `prepare`
    frozen_image_tower = True
    transfers = "subset"
    transfers_reason = "there are prototypes for the training classes only"
    kept = ()  # the prototypes are enough
    official_unused = ("base_text_features",)
    authors_templates: ClassVar = {"imagenet": (*SEVEN, "a photo of a {}.")}
    recipes: ClassVar = {
        ("few_shot", "*"): recipe("authors", SCRIPTS),
        ("domain_generalization", "*"): recipe("authors", SCRIPTS),
        ("*", "*"): recipe("transferred", "its few-shot recipe; none was published for this protocol"),
    }
    presets: ClassVar = {
        "zs_lp": Preset(config={"constraint": "none"}, source="ZS-LP of the paper and of the authors' scripts")
    }
    controls: ClassVar = {"": {"@zs_lp": "the constraint that holds prototypes at zero-shot CLIP"}}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """What holds the prototypes, and the views that say how tightly."""

        views: int = field(
            default=20,
            metadata={
                "source": f"{CODE}; of each training image, for the multipliers; 0: images as they are evaluated",
                "at_least": 0,
            },
        )
        constraint: Literal["l2", "none"] = field(
            default="l2", metadata={"source": "authors' scripts for CLAP; none: those for ZS-LP"}
        )

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.shown_views = config.views
        self.prototypes = nn.Parameter(torch.empty(0, backbone.embed_dim))  # until `prepare`

    def set_classes(self, names: Sequence[str]) -> None:
        first = not self.trained_names
        super().set_classes(names)
        if first:
            templates = self.templates_of_classes()
            self.texts = prompts.ensemble(self.backbone, templates, self.class_names, as_spelled=True)
        self.at = torch.tensor(self.rows(), device=self.backbone.device)  # of the current classes, (K,)

    def prepare(self, batches: Iterable[tuple[Images, Tensor]]) -> None:
        self.start = self.texts.encode(self.backbone, normalised=False)  # (K, D)
        if not len(self.prototypes):  # else they were loaded before
            self.prototypes = nn.Parameter(self.start.clone())
        if self.config.constraint == "l2":
            self.multipliers = self.certainty(batches)

    def certainty(self, batches: Iterable[tuple[Images, Tensor]]) -> Tensor:
        """The mean probability that zero-shot CLIP gives each class on its own images, (K,); 1 without any."""
        K = len(self.class_names)
        sums = counts = self.start.new_zeros(K)
        for images, labels in batches:
            logits = self.classify(self.backbone.encode_image(images), self.start).logits
            own = F.one_hot(labels, K).float()  # (B, K)
            sums = sums + (own * logits.softmax(dim=-1)).sum(dim=0)
            counts = counts + own.sum(dim=0)
        return torch.where(counts > 0, sums / counts, 1.0)

    def encode_classes(self) -> Tensor:
        if not len(self.prototypes):
            raise UsageError("CLAP scores nothing before `prepare` has made prototypes.")
        return self.prototypes.index_select(0, self.at)

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        terms = super().loss(images, labels)
        if self.config.constraint == "l2":
            terms["constraint"] = (self.multipliers * self.distances()).mean()
        return terms

    def distances(self) -> Tensor:
        """Squared distance (K,) of each prototype from where it started."""
        return (self.prototypes - self.start).square().sum(dim=-1)
