"""MaPLe: prompts in both towers, the visual ones projected from the textual.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.
Code by the authors: https://github.com/muzairkhattak/multimodal-prompt-learning

In layer i of the first J (`depth`) layers of both towers, n (`n_ctx`) tokens are replaced by learned ones: P_i in the
text tower, F_i(P_i) in the image tower, F_i a linear map from the text width to the vision width. After layer J the
tokens are carried on. In the text tower P_0 starts as the first n words of `ctx_init`, whose other words stay fixed.

Differs from it: everything learned stays in float32; any CLIP width works; text is cut at the longest prompt, and the
tokens before the class name are encoded once for all classes (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Recipe

BASE2NEW = "authors' config vit_b16_c2_ep5_batch4_2ctx"
CROSS = "authors' config vit_b16_c2_ep5_batch4_2ctx_cross_datasets"


class MaPLe(Method):
    """Coupled deep prompts in the text and image towers."""

    category = "multi-modal"
    parameters_vit_b16 = 3_555_072
    authors_half = ("ctx", "proj.")
    learned_prompts = ("ctx", "compound_prompts_text")
    recipes: ClassVar = {
        ("base2new", "*"): Recipe(epochs=5, lr=0.0035, batch=4, origin="authors", source=BASE2NEW),
        ("cross_dataset", "*"): Recipe(
            epochs=2, lr=0.0026, batch=4, overrides={"depth": 3}, origin="authors", source=CROSS
        ),
        ("domain_generalization", "*"): Recipe(
            epochs=2, lr=0.0026, batch=4, overrides={"depth": 3}, origin="authors", source=CROSS
        ),
        ("ood", "*"): Recipe(
            epochs=2,
            lr=0.0026,
            batch=4,
            overrides={"depth": 3},
            origin="transferred",
            source="its cross-dataset recipe",
        ),
        ("few_shot", "*"): Recipe(
            epochs=5, lr=0.0035, batch=4, origin="transferred", source="its base2new recipe; none was published"
        ),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the base-to-new experiments."""

        n_ctx: int | None = field(
            default=2, metadata={"source": f"{BASE2NEW}; None: as many as the words", "tokens_of": "ctx_init"}
        )
        ctx_init: str = field(
            default="a photo of a", metadata={"source": f"{BASE2NEW}; {prompts.STARTS}", "template": True}
        )
        depth: int = field(
            default=9,
            metadata={
                "source": f"{BASE2NEW}; layers that receive prompts, the first included",
                "at_most": ("text_depth", "vision_depth"),
            },
        )

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = prompts.words_for(config.ctx_init, config.n_ctx)
        n = prompts.length_of(backbone, self.words) if config.n_ctx is None else config.n_ctx
        text, vision = backbone.text_width, backbone.vision_width
        self.ctx = nn.Parameter(prompts.initial_context(backbone, self.words, n))
        self.proj = nn.Linear(text, vision)
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(prompts.random_context(n, text)) for _ in range(config.depth - 1)
        )
        one = nn.Linear(text, vision)  # the authors' code copies one initialisation to all deep layers
        self.compound_prompt_projections = nn.ModuleList(deepcopy(one) for _ in range(config.depth - 1))

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.sentences = prompts.sentences(self.backbone, self.words, len(self.ctx), names)

    def encode_classes(self) -> Tensor:
        deep = dict(enumerate(self.compound_prompts_text, start=1))
        return self.sentences.encode(self.backbone, self.ctx, deep)

    def visual_prompts(self) -> list[Tensor]:
        """(n, d) for each prompted layer of the image tower."""
        deep = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        return [self.proj(self.ctx), *(project(prompt) for project, prompt in deep)]

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        first, *deep = self.visual_prompts()
        return self.backbone.encode_image(images, first, dict(enumerate(deep, start=1)))

    def official_parameters(self) -> dict[str, nn.Parameter]:
        return {f"prompt_learner.{name}": parameter for name, parameter in self.named_parameters()}
