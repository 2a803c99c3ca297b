"""IVLP: independent deep prompts in both towers, the uncoupled baseline of MaPLe and PromptSRC.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117; and as a baseline in Khattak et al.,
"Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023, arXiv:2307.06948.
Code by the authors: https://github.com/muzairkhattak/multimodal-prompt-learning, trainers/independentVL.py

    p(c | x) = softmax_c( exp(s) * cos(f(x; V_0 ... V_{J-1}), g([SOS] T_0 <name of c> . [EOT]; T_1 ... T_{L-1})) )

T_i replace the tokens after [SOS] in layer i of the text tower, V_i those after the patches in layer i of the image
tower; after the last prompted layer they are carried on. T_0 starts as the first words of `ctx_init`, whose other words
stay fixed. With `n_ctx_vision=0` there are text prompts alone, the authors' language-only variant, and the image tower
is frozen CLIP's.

Differs from it: prompts stay in float32; text is cut at the longest prompt, and the tokens before the class name are
encoded once for all classes (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Preset, Recipe

MAPLE = "MaPLe authors' config IVLP/vit_b16_c2_ep5_batch4_2+2ctx"
CROSS = (
    "MaPLe authors' scripts/independent-vlp/xd_*.sh: the model after epoch 2 of that config, the same as of 2 epochs"
)
LANGUAGE = "MaPLe authors' config IVLP/vit_b16_c2_ep5_batch4_4ctx_language_only"
PROMPTSRC = "PromptSRC authors' config IVLP/vit_b16_c2_ep20_batch4_4+4ctx"
ELSEWHERE = "its base2new recipe; none was published for this protocol"


class IVLP(Method):
    """Text and visual prompts that know nothing of each other."""

    category = "multi-modal, independent"
    parameters_vit_b16 = 30_720
    authors_half = ("ctx",)
    learned_prompts = ("ctx", "text_prompts", "visual_prompts")
    recipes: ClassVar = {
        ("base2new", "*"): Recipe(epochs=5, lr=0.0035, batch=4, origin="authors", source=MAPLE),
        ("cross_dataset", "*"): Recipe(epochs=2, lr=0.0035, batch=4, origin="authors", source=CROSS),
        ("domain_generalization", "*"): Recipe(epochs=2, lr=0.0035, batch=4, origin="authors", source=CROSS),
        ("*", "*"): Recipe(epochs=5, lr=0.0035, batch=4, origin="transferred", source=ELSEWHERE),
    }
    presets: ClassVar = {
        "maple": Preset(source=MAPLE),
        "language-only": Preset(
            config={"n_ctx_text": 4, "n_ctx_vision": 0}, recipe={"lr": 0.0025, "origin": "authors"}, source=LANGUAGE
        ),
        "promptsrc": Preset(
            config={"n_ctx_text": 4, "n_ctx_vision": 4, "depth_text": 9, "depth_vision": 9},
            recipe={"epochs": 20, "lr": 0.0025, "origin": "authors"},
            source=PROMPTSRC,
        ),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the MaPLe paper's comparison."""

        n_ctx_text: int | None = field(
            default=2, metadata={"source": f"{MAPLE}; None: as many as the words", "tokens_of": "ctx_init"}
        )
        n_ctx_vision: int = field(
            default=2, metadata={"source": f"{MAPLE}; 0: text prompts alone, depth_vision says nothing", "at_least": 0}
        )
        depth_text: int = field(
            default=12,
            metadata={"source": f"{MAPLE}; layers that receive prompts, 1 is shallow", "at_most": ("text_depth",)},
        )
        depth_vision: int = field(
            default=12,
            metadata={
                "source": f"{MAPLE}; layers that receive prompts, 1 is shallow",
                "at_most": ("vision_depth",),
                "at_least": 0,
            },
        )
        ctx_init: str = field(
            default="a photo of a", metadata={"source": f"{MAPLE}; {prompts.STARTS}", "template": True}
        )

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.frozen_image_tower = config.n_ctx_vision == 0
        depth_vision = config.depth_vision if config.n_ctx_vision else 0
        if config.n_ctx_vision and not depth_vision:
            raise UsageError(
                "Visual prompts need a layer: set n_ctx_vision=0 for text prompts alone, or choose a ViT such as "
                "ViT-B-16."
            )
        self.words = prompts.words_for(config.ctx_init, config.n_ctx_text)
        n = prompts.length_of(backbone, self.words) if config.n_ctx_text is None else config.n_ctx_text
        text, vision = backbone.text_width, backbone.vision_width
        self.ctx = nn.Parameter(prompts.initial_context(backbone, self.words, n))
        self.text_prompts = nn.ParameterList(
            nn.Parameter(prompts.random_context(n, text)) for _ in range(config.depth_text - 1)
        )
        self.visual_prompts = nn.ParameterList(
            nn.Parameter(prompts.random_context(config.n_ctx_vision, vision)) for _ in range(depth_vision)
        )

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.sentences = prompts.sentences(self.backbone, self.words, len(self.ctx), names)

    def encode_classes(self) -> Tensor:
        deep = dict(enumerate(self.text_prompts, start=1))
        return self.sentences.encode(self.backbone, self.ctx, deep)

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        if self.frozen_image_tower:
            return super().encode_images(images)
        first, *deep = self.visual_prompts
        return self.backbone.encode_image(images, first, dict(enumerate(deep, start=1)))

    def official_parameters(self) -> dict[str, nn.Parameter]:
        text = {f"text_encoder.transformer.resblocks.{i}.VPT_shallow": p for i, p in enumerate(self.text_prompts, 1)}
        vision = {f"image_encoder.transformer.resblocks.{i}.VPT_shallow": p for i, p in enumerate(self.visual_prompts)}
        names = {"image_encoder.transformer.resblocks.0.VPT_shallow": "image_encoder.VPT"}  # the first has its own
        return {"prompt_learner.ctx": self.ctx, **text, **{names.get(name, name): p for name, p in vision.items()}}
