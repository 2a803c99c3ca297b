"""MMA: adapters beside the upper blocks of both towers, which share their middle layer.

Yang et al., "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024, doi:10.1109/CVPR52733.2024.02249.
Code by the authors: https://github.com/ZjjConan/VLM-MultiModalAdapter, trainers/mmadapter.py and clip/gsl.py

    y = block_i(x) + s * Up_i(relu(S_i(relu(Down_i(LN1_i(x)))))),    i = first layer ... last layer

for the tokens x that enter block i, with the block's own frozen LN1. Down (d to w), S (w to w) and Up (w to d) are
linear layers with biases; those of a text block and of the image block of the same number have one S. Class names stand
in a fixed text.

Odd points of the authors' code, kept here:
  - each adapter gets its gradient times 1 / s, as if its output had not been scaled, while what flows on to the blocks
    below is the true one; the decay acts on the weights as they are;
  - layers are counted from 1;
  - no warm-up: the first step has the full learning rate;
  - five epochs and one batch size on all datasets but ImageNet; a comment in run_examples.sh names others for each.

Differs from it: learned tensors and towers in float32, where theirs trains in mixed precision; text is cut at the
longest prompt, and the tokens before the class name are encoded once for all classes (equal to rounding); class texts
are encoded anew whenever what is learned has changed, where theirs keeps those of its first evaluation. In towers that
are not twelve blocks deep the layers are the same parts of the shallower one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.clip.block import Change
from promptbench.clip.prompts import NAME
from promptbench.config import UsageError
from promptbench.data.class_names import FROM_DATASET, ClassNames
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Recipe

BASE2NEW = "authors' run_examples.sh and config vit_b16_ep5"
ELSEWHERE = "its base2new recipe; none was published for this protocol"
ON_IMAGENET = "its base2new recipe for ImageNet; none was published for this protocol"
OF_BLOCKS: dict[str, Any] = {"of_depth": 12, "at_most": ("text_depth", "vision_depth")}


class MMA(Method):
    """Adapters in both towers, coupled by a layer that they share."""

    category = "adapter, coupled"
    parameters_vit_b16 = 674_560
    authors_half = None
    official_unused = ("token_embedding", "tokenized_prompts")
    recipes: ClassVar = {
        ("base2new", "imagenet"): Recipe(
            epochs=5, lr=0.0015, batch=128, warmup_epochs=0, origin="authors", source=f"{BASE2NEW}_imnet"
        ),
        ("base2new", "*"): Recipe(epochs=5, lr=0.0015, batch=16, warmup_epochs=0, origin="authors", source=BASE2NEW),
        **{
            key: Recipe(epochs=5, lr=0.0015, batch=128, warmup_epochs=0, origin="transferred", source=ON_IMAGENET)
            for key in (
                ("cross_dataset", "*"),
                ("domain_generalization", "*"),
                ("few_shot", "imagenet"),
                ("ood", "*"),
            )
        },
        ("*", "*"): Recipe(epochs=5, lr=0.0015, batch=16, warmup_epochs=0, origin="transferred", source=ELSEWHERE),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the base-to-new experiments."""

        first_layer: int = field(
            default=5, metadata={"source": f"{BASE2NEW}, ADAPTER_START; layers count from 1", **OF_BLOCKS}
        )
        last_layer: int = field(default=12, metadata={"source": f"{BASE2NEW}, ADAPTER_END", **OF_BLOCKS})
        width: int = field(default=32, metadata={"source": f"{BASE2NEW}, ADAPTER_DIM"})
        scale: float = field(default=0.001, metadata={"source": f"{BASE2NEW}, ADAPTER_SCALE"})
        ctx_init: str = field(
            default="a photo of a",
            metadata={"source": f"{BASE2NEW}; or a template with {{}}, or 'dataset': the dataset's; none is learned"},
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.first_layer > self.last_layer:
                raise UsageError(f"'first_layer' is {self.first_layer}, behind 'last_layer', {self.last_layer}.")
            if self.scale <= 0:
                raise UsageError(f"'scale' must be more than 0, not {self.scale}.")
            if self.ctx_init != FROM_DATASET:
                ClassNames((), template=self.template())  # refuses places for two names

        def template(self) -> str:
            """The sentence that class names stand in, or `dataset`."""
            whole = self.ctx_init == FROM_DATASET or NAME in self.ctx_init
            return self.ctx_init if whole else f"{prompts.readable(self.ctx_init)} {NAME}."

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        layers = range(config.first_layer, config.last_layer + 1)

        def of_layers(width: int) -> nn.ModuleDict:
            return nn.ModuleDict({str(layer): Adapter(width, config.width) for layer in layers})

        self.text_adapter = of_layers(backbone.text_width)
        self.visual_adapter = of_layers(backbone.vision_width)
        self.shared_adapter = nn.ModuleDict({str(i): with_relu(config.width, config.width) for i in layers})

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        first, *_ = self.templates_of_classes(self.config.template())
        tokens = self.backbone.embed_text(prompts.in_templates([first], self.class_names))
        shared = tokens.shared()
        self.start = tokens.embeddings[0, :shared]  # what all classes begin with
        self.tokens = tokens.after(shared)

    def changes(self, adapters: nn.ModuleDict) -> dict[int, Change]:
        """What stands beside the blocks of a tower."""
        return {int(i) - 1: Change(beside=partial(self.beside, adapters[i], self.shared_adapter[i])) for i in adapters}

    def beside(self, adapter: Any, shared: nn.Module, block: Any, x: Tensor) -> Tensor:
        """What an adapter adds to its block's output, for the tokens x (..., d) that enter the block."""
        scale = self.config.scale
        seen = block.ln_1(with_gradient_times(scale, x))
        return with_gradient_times(1 / scale, scale * adapter.up(shared(adapter.down(seen))))

    def encode_classes(self) -> Tensor:
        changes = self.changes(self.text_adapter)
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, self.start, changes=changes)

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        return self.backbone.encode_image(images, changes=self.changes(self.visual_adapter))


class Adapter(nn.Module):
    """What an adapter does not share: into the narrow width, and out of it again."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.down = with_relu(width, narrow)
        self.up = linear(narrow, width)


def with_relu(inputs: int, outputs: int) -> nn.Sequential:
    """A linear layer and what cuts it at 0."""
    return nn.Sequential(linear(inputs, outputs), nn.ReLU())


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with weights for a ReLU behind it, biases 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class GradientTimes(torch.autograd.Function):
    """An autograd function: a tensor as it is, whose gradient is multiplied on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * outer[0], None


def with_gradient_times(factor: float, x: Tensor) -> Tensor:
    """x, whose gradient is multiplied by `factor` on its way back."""
    return GradientTimes.apply(x, factor)
