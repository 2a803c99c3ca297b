"""CLIP-Adapter: a small network behind the image tower, mixed with what goes into it.

Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024, arXiv:2110.04544.
Code by the authors: https://github.com/gaopengcuhk/CLIP-Adapter, clip_adapter.py

    p(c | x) = softmax_c( exp(s) * cos(r A(f(x)) + (1 - r) f(x), t_c) ),   A(f) = relu(W_2 relu(W_1 f))

with image features f(x) (D), not normalised, text features t_c in one template, CLIP's logit scale s, the learned
weights W_1 (D / 4, D) and W_2 (D, D / 4) without biases, and the ratio r.

Odd points of the authors' code, kept here:
  - a ReLU follows the second layer, too, so that A only adds;
  - the ratio is 0.2 on every dataset, where the paper chooses one for each;
  - the adapter of the text features, which the paper has as well, is not in it.

Differs from it: text is encoded once, not anew in every step, and cut at the longest prompt (equal to rounding). The
authors published no training settings; the recipe is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Recipe

CODE = "authors' clip_adapter.py"
RATE = "ours; rate, batch and epochs are those that LP++ (Huang et al., CVPR 2024, arXiv:2404.02285) lists for it"


class CLIPAdapter(Method):
    """Adapts image features, whatever the classes are."""

    category = "adapter"
    parameters_vit_b16 = 131_072
    frozen_image_tower = True
    recipes: ClassVar = {("*", "*"): Recipe(epochs=200, lr=0.01, batch=32, origin="ours", source=RATE)}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Size and share of the adapter."""

        reduction: int = field(default=4, metadata={"source": f"{CODE}; D over the width between the two layers"})
        ratio: float = field(default=0.2, metadata={"source": f"{CODE}; share of the adapted features, 0 to 1"})

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.ratio <= 1:
                raise UsageError(f"'ratio' is from 0 to 1, not {self.ratio}.")

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        D = backbone.embed_dim
        between = D // config.reduction
        if not between:
            raise UsageError(f"reduction={config.reduction} leaves nothing of {D} dimensions; choose at most {D}.")
        first, second = nn.Linear(D, between, bias=False), nn.Linear(between, D, bias=False)
        self.fc = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.texts = prompts.ensemble(self.backbone, self.templates_of_classes(), self.class_names)

    def encode_classes(self) -> Tensor:
        return self.texts.encode(self.backbone, normalised=True)

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        features = self.backbone.encode_image(images)
        ratio, cls = self.config.ratio, features.cls
        return replace(features, cls=ratio * self.fc(cls) + (1 - ratio) * cls)
