"""A small CLIP whose weights are a formula of a seed, and the images that go with it.

The authors' implementations were run on it, and what they computed was written down: the reference numbers. With
z = default_rng([seed, crc32(name)]).standard_normal(shape) for the key `name` of the state dict, a weight is

    ln(30)                      logit_scale
    1 + 0.1 z, 0.1 z            weight and bias of a LayerNorm
    0.5 z                       embeddings of tokens and of the class, positions of the image tower
    0.25 z                      positions of the text tower
    z / sqrt(shape[0])          the projections
    0.1 z                       any other bias
    1.5 z / sqrt(shape[1])      weights of attention's input
    z / sqrt(prod(shape[1:]))   the rest
"""

from __future__ import annotations

import math
import zlib
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from promptbench.clip.backbone import Backbone
from promptbench.clip.load import load_backbone

SEED = 7101
CLASS_NAMES = (
    "golden retriever",
    "pizza",
    "Boeing 737-800",
    "annual crop land",
    "apply eye makeup",
    "bishop of llandaff",
    "faux leather",
    "abyssinian",
    "jack-o'-lantern",
    "forget-me-not",
    "hors d'oeuvre",
    "sea_lion",
)
NEW_CLASS_NAMES = (
    "tiger cat",
    "2012 Ferrari 458 Italia Coupe",
    "black-and-tan coonhound",
    "highway or road",
    "Shar-Pei",
)
LABELS = (2, 0, 11, 5, 7, 2)


def small_backbone(seed: int = SEED) -> Backbone:
    """The CLIP of the reference numbers, float32, on the CPU."""
    config = resources.files("promptbench.checks.installation").joinpath("small-clip.json")
    backbone: Backbone = load_backbone(f"{config}:random")
    state = backbone.clip.state_dict()
    backbone.clip.load_state_dict({name: weight(name, tuple(tensor.shape), seed) for name, tensor in state.items()})
    return backbone


def weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The tensor that the recipe gives to the key `name` of the state dict, float32."""
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    owner, _, kind = name.rpartition(".")
    if name == "logit_scale":
        value = np.full(shape, math.log(30))
    elif owner.rpartition(".")[2] in {"ln_1", "ln_2", "ln_pre", "ln_post", "ln_final"}:
        value = 0.1 * noise + (kind == "weight")
    elif name in {"token_embedding.weight", "visual.class_embedding", "visual.positional_embedding"}:
        value = 0.5 * noise
    elif name == "positional_embedding":
        value = 0.25 * noise
    elif name in {"visual.proj", "text_projection"}:
        value = noise * shape[0] ** -0.5
    elif name.endswith("bias"):
        value = 0.1 * noise
    elif name.endswith(".attn.in_proj_weight"):
        value = 1.5 * noise * shape[1] ** -0.5
    else:
        value = noise * math.prod(shape[1:]) ** -0.5
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def build_images(seed: int = SEED, count: int = 6, resolution: int = 32) -> Tensor:
    """(count, 3, resolution, resolution) float32 standard normal noise, as it enters the image tower."""
    shape = (count, 3, resolution, resolution)
    return torch.from_numpy(np.random.default_rng([seed, 1]).standard_normal(shape).astype(np.float32))
