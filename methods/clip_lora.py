"""CLIP-LoRA: low-rank changes of the attention weights in both towers, one setting for every dataset.

Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024, arXiv:2405.18541.
Code by the authors: https://github.com/MaxZanella/CLIP-LoRA, lora.py and loralib

    W x  becomes  W x + s B A drop(x),    s = alpha / sqrt(r)
    p(c | x) = softmax_c( 100 * cos(f(x), g("a photo of a <name of c>.")) )

for the matrices W of q, k and v in all blocks of both towers f and g, with A (r, d) uniform as a linear layer's, and
B (d, r) zero at first. `drop` sets a quarter of the entries of a branch's input to 0 in training, by a mask for each
matrix, and the weights themselves see all of it.

Odd points of the authors' code, kept here:
  - the scale is divided by the root of the rank, not by the rank;
  - one template on all datasets, and one setting for all numbers of shots but the steps, 500 for each image of a class;
  - the decay of AdamW acts on A and B, not on their product.

Differs from it: CLIP's own logit scale in the place of the literal 100, which released CLIPs have; learned tensors and
towers in float32, where theirs runs in half precision by autocast; the images are CoOp's, where theirs are drawn after
the validation images from the same stream; with `dropout=0` the gradients are those of the formula, where theirs are
taken through weights from which the change was subtracted again before the backward pass; text is cut at the longest
prompt. Positions in towers of a depth that theirs does not have are the same parts of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.clip.block import MATRICES, Change, LowRank
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Recipe

PAPER = "section 4, and the authors' main.py"
TEXT = "a photo of a"
PARTS: Mapping[str, tuple[int, int]] = {
    "all": (0, 12),
    "up": (8, 12),
    "half-up": (6, 12),
    "mid": (4, 8),
    "bottom": (0, 4),
    "half-bottom": (0, 6),
}  # of a tower with twelve blocks: the first, and the one after the last
LARGE, OF_LARGE = 24, ("all", "half-up", "half-bottom")  # blocks of ViT-L/14's image tower, and what it is offered
NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}  # of the matrices in the authors' checkpoints


def recipe(origin: Literal["authors", "transferred"], source: str) -> Recipe:
    """The one training that the authors have."""
    return Recipe(
        steps_per_shot=500,
        lr=2e-4,
        lr_end=1e-6,
        schedule="step",
        warmup_epochs=0,
        batch=32,
        drop_last=False,
        optimizer="adamw",
        weight_decay=1e-2,
        origin=origin,
        source=source,
    )


class CLIPLoRA(Method):
    """Low-rank changes of attention in both towers, no prompts."""

    category = "adapter, low-rank"
    parameters_vit_b16 = 184_320
    authors_half = None
    recipes: ClassVar = {
        ("few_shot", "*"): recipe("authors", PAPER),
        ("*", "*"): recipe("transferred", "its few-shot recipe; none was published for this protocol"),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of all the authors' experiments."""

        rank: int = field(default=2, metadata={"source": PAPER})
        alpha: float = field(default=1.0, metadata={"source": f"{PAPER}; the scale is alpha over the root of rank"})
        params: tuple[str, ...] = field(
            default=("q", "k", "v"), metadata={"source": f"{PAPER}; matrices that are changed, of q, k, v and o"}
        )
        encoder: Literal["both", "text", "vision"] = field(
            default="both", metadata={"source": f"{PAPER}; towers that are changed"}
        )
        position: Literal["all", "up", "half-up", "mid", "bottom", "half-bottom", "top3"] = field(
            default="all", metadata={"source": f"{PAPER}; blocks that are changed"}
        )
        dropout: float = field(default=0.25, metadata={"source": f"{PAPER}; of what the low-rank branches read"})

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.params or len(set(self.params)) < len(self.params) or not set(self.params) <= set(MATRICES):
                raise UsageError(f"'params' takes some of q, k, v and o, each once, not {self.params}.")
            if not 0 <= self.dropout < 1:
                raise UsageError(f"'dropout' must be at least 0 and less than 1, not {self.dropout}.")

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.frozen_image_tower = config.encoder == "text"
        self.text, self.vision = nn.ModuleDict(), nn.ModuleDict()
        if config.encoder != "vision":
            self.text = self._pairs(blocks_at(config.position, backbone.text_depth), backbone.text_width)
        if config.encoder != "text":
            self.vision = self._pairs(blocks_of_images(config.position, backbone), backbone.vision_width)

    def _pairs(self, places: Sequence[int], width: int) -> nn.ModuleDict:
        """A and B of each matrix, by block and matrix."""
        matrices = [name for name in MATRICES if name in self.config.params]

        def of_block() -> nn.ModuleDict:
            return nn.ModuleDict({name: Pair(self.config.rank, width) for name in matrices})

        return nn.ModuleDict({str(index): of_block() for index in places})

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        tokens = prompts.sentence_tokens(self.backbone, TEXT, names)
        shared = tokens.shared()
        self.start = tokens.embeddings[0, :shared]  # what all classes begin with
        self.tokens = tokens.after(shared)

    def changes(self, tower: nn.ModuleDict) -> dict[int, Change]:
        """What is changed in the blocks of a tower."""
        scale = self.config.alpha / math.sqrt(self.config.rank)
        dropout = self.config.dropout if self.training else 0.0

        def low_rank(pairs: Mapping[str, Pair]) -> dict[str, LowRank]:
            return {name: LowRank(pair.down, pair.up, scale, dropout) for name, pair in pairs.items()}

        return {int(index): Change(low_rank(pairs)) for index, pairs in tower.items()}  # type: ignore[arg-type]

    def encode_classes(self) -> Tensor:
        changes = self.changes(self.text)
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, self.start, changes=changes)

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        return self.backbone.encode_image(images, changes=self.changes(self.vision))

    def official_parameters(self) -> dict[str, nn.Parameter]:
        found = {}
        for layer, pairs in enumerate(self._changed_blocks()):
            for name, pair in pairs.items():
                found[f"layer_{layer}.{NAMES[name]}.w_lora_A"] = pair.down
                found[f"layer_{layer}.{NAMES[name]}.w_lora_B"] = pair.up
        return found

    def _changed_blocks(self) -> Iterator[Mapping[str, Pair]]:
        """The pairs of every changed block by matrix, those of the text tower first."""
        for tower in (self.text, self.vision):
            yield from tower.values()  # type: ignore[misc]


class Pair(nn.Module):
    """A low-rank change of a matrix (d, d).

    Attributes:
        down: A (r, d), uniform within 1 / sqrt(d) at first.
        up: B (d, r), zero at first.
    """

    def __init__(self, rank: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))


def blocks_at(position: str, depth: int) -> range:
    """The blocks of a tower of this depth that a position stands for.

    Of twelve blocks they are the authors'; of others the same parts, at least one block, and three for `top3`.
    """
    if position == "top3":
        return range(max(0, depth - 3), depth)
    first, end = (edge * depth // 12 for edge in PARTS[position])
    return range(first, max(end, first + 1))


def blocks_of_images(position: str, backbone: Backbone) -> range:
    """`blocks_at` of the image tower.

    Raises:
        UsageError: The tower has no blocks, or is as deep as ViT-L/14's, for which the authors have fewer positions.
    """
    depth = backbone.vision_depth
    if not depth:
        raise UsageError(
            f"Backbone '{backbone.name}' has an image tower without transformer blocks, whose weights cannot be "
            "changed; choose a ViT such as ViT-B-16, or encoder=text."
        )
    if depth == LARGE and position not in OF_LARGE:
        raise UsageError(
            f"The authors have no position '{position}' in an image tower of {LARGE} blocks, such as that of backbone "
            f"'{backbone.name}'; choose one of {', '.join(OF_LARGE)}, or encoder=text."
        )
    return blocks_at(position, depth)
