"""PromptSRC: prompts in both towers, held near frozen CLIP and averaged over the epochs.

Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023,
arXiv:2307.06948.
Code by the authors: https://github.com/muzairkhattak/PromptSRC, trainers/promptsrc.py

    loss = CE + 25 * mean |g - g'| + 10 * mean |f - f'| + sum_bk q'_bk log(q'_bk / q_bk) / (B * K)
    v    = sum_e w_e v_e,   w_e = N(e; mean, std) / sum_e' N(e'; mean, std),   e = 1 ... all epochs

with normalised features g (K, D) of the class texts and f (B, D) of the images in the prompted towers, g' and f' in
frozen CLIP, and class probabilities q and q'. Prompts are laid out as in IVLP: T_i replace the tokens after [SOS] in
layer i of the text tower, V_i those after the patches in layer i of the image tower.

Odd points of the authors' code, kept here:
  - g' is the mean over 60 templates of features that were not normalised; every dataset is given those of ImageNet;
  - the last term is divided by the number of classes too, so it is K times smaller than a divergence per image;
  - the weights w_e sum to 1 over the epochs that are trained; the warm-up epoch is the first of them;
  - training never sees the average: it takes the place of the prompts once, after the last step of the last epoch.
    Prompts and momentum run on from v_e till then, and checkpoints of earlier epochs hold v_e.

Differs from it: prompts stay in float32, where the authors round them to half precision at every use; only what is
learned is averaged, where theirs sums up CLIP's frozen half-precision weights as well; text is cut at the longest
prompt, and the tokens before the class name are encoded once for all classes (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Recipe

BASE2NEW = "authors' config vit_b16_c2_ep20_batch4_4+4ctx"
CROSS = f"{BASE2NEW}_cross_datasets"
FEW_SHOT = "authors' config vit_b16_c2_ep50_batch4_4+4ctx_few_shot"
LATE_FEW_SHOT = f"{FEW_SHOT}, the lines that its comment names for this dataset"
SHALLOWER: dict[str, Any] = {"depth_text": 3, "depth_vision": 3, "epoch_mean": 6.0, "epoch_std": 10.0}
ALL_EPOCHS: dict[str, Any] = {"epoch_mean": 30.0, "epoch_std": 30.0}
ALL_EPOCHS_ON = ("imagenet", "caltech101", "oxford_pets", "food101", "ucf101", "sun397")
LATE_EPOCHS: dict[str, Any] = {"epoch_mean": 45.0, "epoch_std": 5.0}
LATE_EPOCHS_ON = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")


def recipe(origin: Literal["authors", "transferred"], source: str, epochs: int = 20, **overrides: object) -> Recipe:
    """What all the authors' trainings have in common."""
    return Recipe(epochs=epochs, lr=0.0025, batch=4, overrides=overrides, origin=origin, source=source)


class PromptSRC(Method):
    """Independent deep prompts in both towers with three consistency terms."""

    category = "multi-modal, independent, regularised"
    parameters_vit_b16 = 46_080
    authors_half = ("ctx",)
    learned_prompts = ("ctx", "text_prompts", "visual_prompts")
    reads_frozen = "training"
    recipes: ClassVar = {
        ("base2new", "*"): recipe("authors", BASE2NEW),
        ("cross_dataset", "*"): recipe("authors", CROSS, **SHALLOWER),
        ("domain_generalization", "*"): recipe("authors", CROSS, **SHALLOWER),
        ("ood", "*"): recipe("transferred", "its cross-dataset recipe", **SHALLOWER),
        **{("few_shot", name): recipe("authors", FEW_SHOT, 50, **ALL_EPOCHS) for name in ALL_EPOCHS_ON},
        **{("few_shot", name): recipe("authors", LATE_FEW_SHOT, 50, **LATE_EPOCHS) for name in LATE_EPOCHS_ON},
        ("few_shot", "*"): recipe("transferred", "its few-shot recipe for ImageNet and five others", 50, **ALL_EPOCHS),
        ("*", "*"): recipe("transferred", "its base2new recipe; none was published for this protocol"),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the base-to-new experiments."""

        n_ctx_text: int | None = field(
            default=4, metadata={"source": f"{BASE2NEW}; None: as many as the words", "tokens_of": "ctx_init"}
        )
        n_ctx_vision: int = field(default=4, metadata={"source": BASE2NEW})
        depth_text: int = field(
            default=9,
            metadata={"source": f"{BASE2NEW}; layers that receive prompts, 1 is shallow", "at_most": ("text_depth",)},
        )
        depth_vision: int = field(
            default=9,
            metadata={"source": f"{BASE2NEW}; layers that receive prompts, 1 is shallow", "at_most": ("vision_depth",)},
        )
        ctx_init: str = field(
            default="a photo of a", metadata={"source": f"{BASE2NEW}; {prompts.STARTS}", "template": True}
        )
        text_weight: float = field(default=25.0, metadata={"source": f"{BASE2NEW}, TEXT_LOSS_WEIGHT"})
        image_weight: float = field(default=10.0, metadata={"source": f"{BASE2NEW}, IMAGE_LOSS_WEIGHT"})
        epoch_mean: float = field(default=15.0, metadata={"source": f"{BASE2NEW}, GPA_MEAN; epochs count from 1"})
        epoch_std: float = field(default=1.0, metadata={"source": f"{BASE2NEW}, GPA_STD"})
        teacher: Literal["imagenet", "dataset"] = field(
            default="imagenet",
            metadata={"source": "authors' imagenet_templates.py; 'dataset': the frozen text reads the dataset's own"},
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.epoch_std <= 0:
                raise UsageError(f"'epoch_std' must be more than 0, not {self.epoch_std}.")

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = prompts.words_for(config.ctx_init, config.n_ctx_text)
        n = prompts.length_of(backbone, self.words) if config.n_ctx_text is None else config.n_ctx_text
        text, vision = backbone.text_width, backbone.vision_width
        self.ctx = nn.Parameter(prompts.initial_context(backbone, self.words, n))
        self.text_prompts = nn.ParameterList(
            nn.Parameter(prompts.random_context(n, text)) for _ in range(config.depth_text - 1)
        )
        self.visual_prompts = nn.ParameterList(
            nn.Parameter(prompts.random_context(config.n_ctx_vision, vision)) for _ in range(config.depth_vision)
        )
        self._average: list[Tensor] = []

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.sentences = prompts.sentences(self.backbone, self.words, len(self.ctx), names)
        self.templates: Sequence[str] = IMAGENET_TEMPLATES
        if self.config.teacher == "imagenet":
            self.texts_told = "ensemble"
        else:
            self.templates = self.templates_of_classes()
        self._frozen_text: Tensor | None = None

    def encode_classes(self) -> Tensor:
        return self.sentences.encode(self.backbone, self.ctx, dict(enumerate(self.text_prompts, start=1)))

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        first, *deep = self.visual_prompts
        return self.backbone.encode_image(images, first, dict(enumerate(deep, start=1)))

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():  # first: what is kept for gradients would stand beside what this takes
            frozen_image, frozen_text = self.backbone.encode_image(images).cls, self.frozen_text()
            target = self.classify(frozen_image, frozen_text).logits.log_softmax(dim=-1)  # (B, K)
        image, text = self.encode_images(images).cls, self.text_features()
        logits = self.classify(image, text).logits  # (B, K)
        divergence = F.kl_div(logits.log_softmax(dim=-1), target, reduction="sum", log_target=True)
        return {
            "ce": F.cross_entropy(logits, labels),
            "text": self.config.text_weight * distance(text, frozen_text),
            "image": self.config.image_weight * distance(image, frozen_image),
            "logits": divergence / logits.numel(),
        }

    @torch.no_grad()
    def frozen_text(self) -> Tensor:
        """What frozen CLIP says of the current classes: (K, D), mean over templates, not normalised."""
        if self._frozen_text is None:
            texts = prompts.ensemble(self.backbone, self.templates, self.class_names)
            self._frozen_text = texts.encode(self.backbone, normalised=False)
        return self._frozen_text

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        weight = epoch_weights(epochs, self.config.epoch_mean, self.config.epoch_std)[epoch]
        if epoch == 0:
            self._average = [torch.zeros_like(parameter) for parameter in self.parameters()]
        for average, parameter in zip(self._average, self.parameters(), strict=True):
            average.add_(parameter, alpha=weight)
            if epoch == epochs - 1:
                parameter.copy_(average)

    def training_state(self) -> dict[str, Tensor]:
        return {str(index): average for index, average in enumerate(self._average)}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        self._average = [state[str(index)] for index in range(len(state))]

    def official_parameters(self) -> dict[str, nn.Parameter]:
        first, *deep = self.visual_prompts
        text = {f"text_encoder.transformer.resblocks.{i}.VPT_shallow": p for i, p in enumerate(self.text_prompts, 1)}
        vision = {f"image_encoder.transformer.resblocks.{i}.VPT_shallow": p for i, p in enumerate(deep, 1)}
        return {"prompt_learner.ctx": self.ctx, **text, "image_encoder.VPT": first, **vision}


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference, over all entries, of features (..., D) once they are normalised."""
    return F.l1_loss(F.normalize(x.float(), dim=-1), F.normalize(y.float(), dim=-1))


def epoch_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Gaussian weights of the epochs, counted from 1, with sum 1."""
    at = torch.arange(1, epochs + 1, dtype=torch.float64)
    return (-0.5 * ((at - mean) / std) ** 2).softmax(dim=0).tolist()  # a mean far beyond the end does not underflow


# 60 of the 80 that OpenAI published for ImageNet, in the authors' order.
IMAGENET_TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
)
