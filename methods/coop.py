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
from promptbench.config import UsageError
from promptbench.method import Method, MethodConfig, Preset, Recipe

PAPER = "CoOp, section 4.1, and the authors' COOP.md and scripts"
COCOOP = "CoCoOp, section 4, and the comments in the authors' scripts/cocoop"
RANDOM_16: Mapping[str, object] = {"ctx_init": "", "n_ctx": 16}  # the context of the few-shot experiments


class CoOp(Method):
    """One learned context for all classes, or one for each."""

    category = "text"
    parameters_vit_b16 = 2048
    authors_half = ("ctx",)
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
        if config.csc and self.words:
            raise UsageError("csc=true takes random contexts: set ctx_init='' and n_ctx, as the authors' code does.")
        if prompts.NAME in self.words and config.class_token_position != "end":
            raise UsageError(
                f"class_token_position={config.class_token_position} puts the name elsewhere than the template "
                f"'{self.words}' does; leave it at end, or set ctx_init to the words before the name alone."
            )
        self.ctx = nn.Parameter(
            prompts.from_words(backbone, self.words, self.n_ctx)  # (n, d)
            if self.words
            else prompts.random_context(0 if config.csc else self.n_ctx, backbone.text_width)
        )

    def set_classes(self, names: Sequence[str]) -> None:
        if self.config.csc:
            self._grow(len(names))
        super().set_classes(names)
        words = self.words or " ".join(["X"] * self.n_ctx)
        self.tokens = prompts.sentence_tokens(self.backbone, words, names)  # (K, L, d)
        before = {"end": self.n_ctx, "middle": self.n_ctx // 2, "front": 0}[self.config.class_token_position]
        lengths = prompts.name_lengths(self.backbone, names)
        start = self.tokens.start
        self.arrangement = prompts.arrangement(self.tokens.ids.shape[1], lengths, self.n_ctx, before, start)
        self.shared = start if self.config.csc else start + before  # tokens that all classes begin with

    def _grow(self, classes: int) -> None:
        """A context (K, n, d) for every class, once it is known how many there are."""
        if self.ctx.dim() == 2:
            self.ctx = nn.Parameter(prompts.random_context(classes, self.n_ctx, self.backbone.text_width))
        elif len(self.ctx) != classes:
            raise UsageError(
                f"csc=true: {len(self.ctx)} contexts were learned, and {classes} classes are to be scored."
            )

    def encode_classes(self) -> Tensor:
        start = self.tokens.embeddings[0, : self.tokens.start]  # [SOS]
        learned = self.shared - len(start)
        prefix = prompts.join(start, self.ctx[:learned]) if learned else start
        if learned == self.n_ctx:  # all of the context precedes the name
            embeddings = self.tokens.embeddings[:, self.shared :]
        else:
            embeddings = prompts.arrange(self.tokens, self.ctx, self.arrangement, self.shared)
        return self.backbone.encode_text(embeddings, self.tokens.eot - self.shared, prefix)
