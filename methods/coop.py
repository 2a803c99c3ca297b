"""CoOp: the words around the class name become learned vectors.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134.
Code by the authors: https://github.com/KaiyangZhou/CoOp

    p(c | x) = softmax_c( exp(s) * cos(f(x), g([SOS] v_1 ... v_n <name of c> . [EOT])) )

with image tower f, text tower g, CLIP's logit scale s, and the learned context v.

Differs from it: the context stays in float32; text is cut at the longest prompt, and the tokens before the class name
are encoded once for all classes (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.method import Method, MethodConfig, Preset, Recipe

PAPER = "CoOp, section 4.1, and the authors' COOP.md and scripts"
COCOOP = "CoCoOp, section 4, and the comments in the authors' scripts/cocoop"
RANDOM_16: Mapping[str, object] = {"ctx_init": "", "n_ctx": 16}  # the context of the few-shot experiments


class CoOp(Method):
    """One learned context for all classes, or one for each."""

    category = "text"
    parameters_vit_b16 = 2048
    authors_half = ("ctx",)
    learned_prompts = ("ctx",)
    frozen_image_tower = True
    recipes: ClassVar = {
        ("base2new", "imagenet"): Recipe(epochs=50, lr=0.002, batch=32, origin="authors", source=COCOOP),
        ("base2new", "*"): Recipe(epochs=200, lr=0.002, batch=32, origin="authors", source=COCOOP),
        ("cross_dataset", "*"): Recipe(epochs=50, lr=0.002, batch=32, origin="authors", source=COCOOP),
        ("domain_generalization", "*"): Recipe(epochs=50, lr=0.002, batch=32, origin="authors", source=COCOOP),
        ("ood", "*"): Recipe(epochs=50, lr=0.002, batch=32, origin="transferred", source="its recipe for ImageNet"),
        ("few_shot", "imagenet"): Recipe(
            epochs=50, lr=0.002, batch=32, origin="authors", source=PAPER, overrides=RANDOM_16
        ),
        ("few_shot", "*"): Recipe(
            epochs=200,
            epochs_at={1: 50, 2: 100, 4: 100},
            lr=0.002,
            batch=32,
            origin="authors",
            source=PAPER,
            overrides=RANDOM_16,
        ),
    }
    presets: ClassVar = {
        "50": Preset(recipe={"epochs": 50, "origin": "authors"}, source=COCOOP),
        "200": Preset(recipe={"epochs": 200, "origin": "authors"}, source=COCOOP),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of CoOp in the CoCoOp paper's base-to-new comparison."""

        n_ctx: int | None = field(
            default=None,
            metadata={
                "source": "context tokens; None: as many as the words, 16 without words",
                "tokens_of": "ctx_init",
            },
        )
        ctx_init: str = field(
            default="a photo of a",
            metadata={"source": f"CoCoOp scripts, vit_b16_ctxv1; {prompts.STARTS}", "template": True},
        )
        class_token_position: Literal["end", "middle", "front"] = field(default="end", metadata={"source": "same"})
        csc: bool = field(default=False, metadata={"source": "same; True: a context for every class"})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = prompts.words_of(config.ctx_init)
        self.n_ctx = prompts.context_length(self.words, config.n_ctx, backbone)
        self.transfers = not config.csc
        self.transfers_reason = "class-specific contexts exist for the training classes only" if config.csc else ""
        prompts.check_position(self.words, config.class_token_position, config.csc)
        n = 0 if config.csc else self.n_ctx
        self.ctx = nn.Parameter(prompts.initial_context(backbone, self.words, n))  # (n, d), or (K, n, d) in set_classes

    def set_classes(self, names: Sequence[str]) -> None:
        if self.config.csc:
            self.ctx = prompts.for_each_class(self.ctx, len(names), self.n_ctx)
        super().set_classes(names)
        position = self.config.class_token_position
        self.arranged = prompts.arranged(self.backbone, self.words, self.n_ctx, names, position, self.config.csc)

    def encode_classes(self) -> Tensor:
        return self.arranged.encode(self.backbone, self.ctx)
