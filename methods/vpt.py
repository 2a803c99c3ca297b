"""VPT: learned tokens in the image tower, fixed words in the text tower.

Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv:2203.12119; on CLIP as in Khattak et al., "MaPLe: Multi-modal
Prompt Learning", CVPR 2023, arXiv:2210.03117.
Code by the authors: https://github.com/muzairkhattak/multimodal-prompt-learning, trainers/vpt.py

    p(c | x) = softmax_c( exp(s) * cos(f(x; V_0 ... V_{J-1}), g("a photo of a <name of c>.")) )

n (`n_ctx`) tokens V_0 stand after the patches, before `ln_pre`; in each of the next J - 1 layers (`depth` J, 1 is
shallow) they are replaced by V_i, without normalisation. After layer J they are carried on.

Differs from it: prompts stay in float32; text is cut at the longest prompt (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Recipe

BASE2NEW = "MaPLe authors' configs/trainers/VPT/vit_b16_c2_ep5_batch4_4"
CROSS = "MaPLe authors' scripts/vpt/xd_*.sh: the model after epoch 2 of that config, the same as of 2 epochs"
ELSEWHERE = "its base2new recipe; none was published for this protocol"
TEXT = "a photo of a"


class VPT(Method):
    """Deep or shallow visual prompts."""

    category = "visual"
    parameters_vit_b16 = 73_728
    learned_prompts = ("visual_prompts",)
    recipes: ClassVar = {
        ("base2new", "*"): Recipe(epochs=5, lr=0.0025, batch=4, origin="authors", source=BASE2NEW),
        ("cross_dataset", "*"): Recipe(epochs=2, lr=0.0025, batch=4, origin="authors", source=CROSS),
        ("domain_generalization", "*"): Recipe(epochs=2, lr=0.0025, batch=4, origin="authors", source=CROSS),
        ("*", "*"): Recipe(epochs=5, lr=0.0025, batch=4, origin="transferred", source=ELSEWHERE),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of deep VPT in the MaPLe paper's comparison."""

        n_ctx: int = field(default=8, metadata={"source": BASE2NEW})
        depth: int = field(
            default=12,
            metadata={"source": f"{BASE2NEW}; layers that receive prompts, 1 is shallow", "at_most": ("vision_depth",)},
        )

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        width = backbone.vision_width
        self.visual_prompts = nn.ParameterList(
            nn.Parameter(prompts.random_context(config.n_ctx, width)) for _ in range(config.depth)
        )

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.tokens = prompts.sentence_tokens(self.backbone, TEXT, names)

    def encode_classes(self) -> Tensor:
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot)

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        first, *deep = self.visual_prompts
        return self.backbone.encode_image(images, first, dict(enumerate(deep, start=1)))

    def official_parameters(self) -> dict[str, nn.Parameter]:
        first, *deep = self.visual_prompts
        layers = {f"image_encoder.transformer.resblocks.{i}.VPT_shallow": p for i, p in enumerate(deep, start=1)}
        return {"image_encoder.VPT": first, **layers}
