"""Zero-shot CLIP: class names in hand-written templates, nothing learned.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv:2103.00020.
Code by the authors: https://github.com/openai/CLIP; templates per dataset: https://github.com/KaiyangZhou/CoOp,
trainers/zsclip.py.

    p(c | x) = softmax_c( exp(s) * cos(f(x), t_c) ),   t_c = sum_j g(template_j(c)) / |g(template_j(c))|

with one template j or several (an ensemble; CoOp's seven for ImageNet, trainers/zsclip.py, ZeroshotCLIP2).

Differs from it: text is cut at the longest prompt (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from promptbench.clip import prompts
from promptbench.data.class_names import ClassNames
from promptbench.method import Method, MethodConfig, Preset

SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)  # OpenAI's selection for ImageNet


class ZeroShot(Method):
    """The baseline that every prompt-learning method starts from."""

    category = "baseline"
    parameters_vit_b16 = 0
    trains = False
    frozen_image_tower = True
    presets: ClassVar = {
        "generic": Preset(config={"template": "a photo of a {}."}, source="the same template on every dataset"),
        "ensemble": Preset(config={"template": "ensemble"}, source="CoOp's ZeroshotCLIP2 on all but ImageNet"),
        "seven": Preset(config={"template": "seven"}, source="CoOp's ZeroshotCLIP2 on ImageNet"),
    }
    baseline: ClassVar = {"@ensemble": "all that is learned, in the place of which are several templates"}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """The words around the class name."""

        template: str = field(
            default="dataset",
            metadata={
                "source": "authors of CoOp, trainers/zsclip.py; 'dataset': each dataset's own; 'seven': seven for "
                "ImageNet; 'ensemble': both; or any with {}"
            },
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.template not in ("dataset", "seven", "ensemble"):
                ClassNames((), template=self.template)  # refuses what names no place for the name

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.texts = prompts.ensemble(self.backbone, self.templates(), self.class_names)

    def templates(self) -> tuple[str, ...]:
        """The templates that the text features are averaged over."""
        wanted = self.config.template
        if wanted in ("seven", "ensemble"):
            self.texts_told = "ensemble"
            return SEVEN if wanted == "seven" else (*SEVEN, *self.templates_of_classes())
        return self.templates_of_classes(wanted)

    def encode_classes(self) -> Tensor:
        return self.texts.encode(self.backbone, normalised=True)
