"""Tip-Adapter: a cache of the training images' features beside zero-shot CLIP, without any training.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv:2111.03930.
Code by the authors: https://github.com/gaopengcuhk/Tip-Adapter, main.py, utils.py and configs

    logits(x) = exp(s) * f(x) W^T + alpha * exp(-beta * (1 - f(x) F^T)) V

with normalised image feature f(x), CLIP's logit scale s, zero-shot weights W (K, D), the normalised mean over the
templates of normalised text features (on ImageNet seven), keys F (N, D) and values V (N, K). The key of one of the N
training images is the mean over ten random views of features that are not normalised, then normalised; its value is the
one-hot label.

Odd points of the authors' code, kept here:
  - the search tries beta_i = 0.1 + i (b - 0.1) / 200 and alpha_j = 0.1 + j (a - 0.1) / 20 from i = j = 0 on, so that
    the ends b and a themselves are never tried; the first of equally accurate pairs wins, beta by beta, and the values
    before the search do not take part in it.

Differs from it: alpha and beta are the same on all datasets, and nothing is searched, unless a preset asks for it. On
ImageNet the authors search on the test images, which is not done: validation images are then training images that the
sample leaves over. The factor 100 of the authors is CLIP's logit scale, which is 100 in released models. Each training
image is in the cache once, where their sampler repeats images of a class with fewer than it should have. A class
without a training image has values all the same, zeros. What stands for cosines is the logits over the logit scale, the
cache's part included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.method import Images, Method, MethodConfig, Prediction, Preset

from .zeroshot import SEVEN

CONFIGS = "authors' configs/*.yaml"


class Chosen(NamedTuple):
    """What the authors chose for a dataset: the first alpha, and the ends of the search for beta and for alpha."""

    alpha: float
    beta_end: float
    alpha_end: float


# From the authors' configs: `init_alpha` and `search_scale`; `init_beta` is 1 in all of them.
AUTHORS = {
    "caltech101": Chosen(3.0, 12.0, 5.0),
    "dtd": Chosen(2.0, 13.0, 13.0),
    "eurosat": Chosen(2.0, 12.0, 10.0),
    "fgvc_aircraft": Chosen(5.0, 30.0, 30.0),
    "food101": Chosen(1.17, 10.0, 10.0),
    "imagenet": Chosen(1.17, 7.0, 3.0),
    "oxford_flowers": Chosen(10.0, 50.0, 50.0),
    "oxford_pets": Chosen(1.17, 7.0, 3.0),
    "stanford_cars": Chosen(3.0, 20.0, 10.0),
    "sun397": Chosen(1.17, 12.0, 10.0),
    "ucf101": Chosen(3.0, 7.0, 3.0),
}
ELSEWHERE = AUTHORS["imagenet"]  # on datasets that the authors did not use
BETAS, ALPHAS = 200, 20  # values that the search tries, `search_step` in the authors' configs


class TipAdapter(Method):
    """One key and one value for every training image; nothing is learned."""

    category = "cache"
    parameters_vit_b16 = 0
    trains = False
    frozen_image_tower = True
    transfers = "subset"
    transfers_reason = "the cache holds images of the training classes only"
    shown_scale = (0.5, 1.0)
    kept: ClassVar[tuple[str, ...]] = ("keys", "values", "alpha", "beta")
    authors_templates: ClassVar = {"imagenet": SEVEN}
    presets: ClassVar = {
        "init": Preset(config={"alpha": None}, source=f"{CONFIGS}, init_alpha: another for each dataset"),
        "searched": Preset(
            config={"search": "few"},
            source="ours: alpha and beta searched in the authors' grid on min(shots, 4) validation images of a class",
        ),
        "authors": Preset(
            config={"alpha": None, "search": "all"},
            source="authors' main.py: alpha and beta searched on all validation images, many more than the shots",
        ),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """How much the cache counts, and how sharply it looks."""

        alpha: float | None = field(
            default=1.17,
            metadata={"source": f"{CONFIGS}, init_alpha of ImageNet and three others; None: that of the dataset"},
        )
        beta: float = field(default=1.0, metadata={"source": f"{CONFIGS}, init_beta of every dataset"})
        views: int = field(
            default=10,
            metadata={"source": f"{CONFIGS}, augment_epoch; 0: images as they are evaluated", "at_least": 0},
        )
        search: Literal["none", "few", "all"] = field(
            default="none",
            metadata={
                "source": "ours; few: alpha and beta are searched on min(shots, 4) validation images of a class; all: "
                "on all validation images, as in the authors' main.py"
            },
        )

    keys: Tensor  # (N, D)
    values: Tensor  # (N, K)
    alpha: Tensor
    beta: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.shown_views = config.views
        self.settings_by_dataset = config.alpha is None
        if config.search != "none":
            self.validates, self.tries = config.search, BETAS * ALPHAS
        self.remember(torch.empty(0, backbone.embed_dim))  # until `prepare`
        self.register_buffer("values", torch.empty(0, 0))
        self.register_buffer("alpha", torch.tensor(0.0))  # until the dataset is known
        self.register_buffer("beta", torch.tensor(config.beta))

    def remember(self, keys: Tensor) -> None:
        """Keep keys (N, D)."""
        self.register_buffer("keys", keys)

    def set_classes(self, names: Sequence[str]) -> None:
        first = not self.trained_names
        super().set_classes(names)
        templates = self.templates_of_classes(names=self.trained_names)
        self.texts = prompts.ensemble(self.backbone, templates, self.class_names)
        if first:
            chosen, wanted = self.chosen_by_authors(), self.config.alpha
            self.alpha.fill_(chosen.alpha if wanted is None else wanted)

    def chosen_by_authors(self) -> Chosen:
        """What the authors chose for the dataset of the training."""
        return AUTHORS.get(self.trained_names.dataset, ELSEWHERE)

    def encode_classes(self) -> Tensor:
        return self.texts.encode(self.backbone, normalised=True)

    def prepare(self, batches: Iterable[tuple[Images, Tensor]]) -> None:
        pairs = [(self.backbone.encode_image(images).cls.float(), labels) for images, labels in batches]
        features, labels = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))  # of all views
        keys = features.unflatten(0, (max(1, self.config.views), -1)).mean(dim=0)  # (N, D)
        self.remember(F.normalize(keys, dim=-1))
        self.values = F.one_hot(labels[: len(keys)], len(self.class_names)).float()

    def forward(self, images: Images | Tensor) -> Prediction:
        image = self.backbone.encode_image(images).cls
        zero_shot = self.classify(image, self.text_features()).logits
        columns = self.columns()
        with torch.autocast(image.device.type, enabled=False):  # in float32 under any precision, like the rest
            cached = sharpened(self.affinity(image), self.beta) @ columns  # (B, K)
            logits = zero_shot + self.alpha * cached
            return Prediction(logits, logits / self.backbone.logit_scale.float())

    def affinity(self, image: Tensor) -> Tensor:
        """Cosines (B, N) of image features (B, D) and keys; those of -F are not quite, for they lose their length 1."""
        return F.normalize(image.float(), dim=-1) @ self.keys.float().T

    def columns(self) -> Tensor:
        """The values (N, K) of the current classes.

        Raises:
            UsageError: There are none yet.
        """
        if not len(self.values):
            raise UsageError(f"{type(self).__name__} scores nothing before `prepare` has shown it training images.")
        rows = self.rows()
        return self.values if rows == list(range(self.values.shape[1])) else self.values[:, rows]

    def choose(self, batches: Iterable[tuple[Images, Tensor]]) -> None:
        chosen = self.chosen_by_authors()
        betas = steps_to(chosen.beta_end, BETAS)
        alphas = self.alpha.new_tensor(steps_to(chosen.alpha_end, ALPHAS))
        right = torch.stack([self.right(images, labels, betas, alphas) for images, labels in batches]).sum(dim=0)
        best = int(right.flatten().argmax())  # the first of equals
        self.beta.fill_(betas[best // ALPHAS])
        self.alpha.copy_(alphas[best % ALPHAS])

    def right(self, images: Images | Tensor, labels: Tensor, betas: Sequence[float], alphas: Tensor) -> Tensor:
        """How many of the images each pair of settings classifies right: (betas, alphas)."""
        image = self.backbone.encode_image(images).cls
        zero_shot = self.classify(image, self.text_features()).logits
        affinity, columns = self.affinity(image), self.columns()
        counts = []
        for beta in betas:
            cached = sharpened(affinity, beta) @ columns
            logits = zero_shot + alphas.view(-1, 1, 1) * cached  # (alphas, B, K)
            counts.append((logits.argmax(dim=-1) == labels).sum(dim=-1))
        return torch.stack(counts)

    def diagnostics(self, images: Images | Tensor) -> dict[str, float]:
        return {"alpha": float(self.alpha), "beta": float(self.beta)}


def sharpened(affinity: Tensor, beta: Tensor | float) -> Tensor:
    """How much each key counts, (B, N): 1 for an affinity of 1, and the less below it the larger beta is."""
    return (beta * affinity - beta).exp()


def steps_to(end: float, count: int) -> list[float]:
    """So many values from 0.1 on at equal distances, up to the last before `end`."""
    return [0.1 + i * (end - 0.1) / count for i in range(count)]
