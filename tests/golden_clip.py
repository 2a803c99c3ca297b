"""A small CLIP whose weights are a formula of a seed, and the images that go with it.

The reference numbers in `tests/golden` were computed on it; other seeds and sizes give models for which no numbers are
stored. The recipe is written out in `tests/golden/README.md`.
"""

from __future__ import annotations

import math
import zlib
from functools import cache

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

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


def build_clip(
    seed: int = SEED,
    *,
    embed_dim: int = 32,
    resolution: int = 32,
    patch: int = 8,
    vision_width: int = 128,
    vision_layers: int = 4,
    text_width: int = 64,
    text_layers: int = 4,
) -> CLIP:
    """An open_clip model with QuickGELU, heads of width 64 and the weights of the recipe, float32, eval, frozen."""
    vision = CLIPVisionCfg(
        layers=vision_layers, width=vision_width, patch_size=patch, image_size=resolution, head_width=64
    )
    text = CLIPTextCfg(
        context_length=77, vocab_size=49408, width=text_width, heads=text_width // 64, layers=text_layers
    )
    model = CLIP(embed_dim=embed_dim, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    state = {name: weight(name, tuple(tensor.shape), seed) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The tensor that the recipe gives to the key `name` of the state dict."""
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


@cache
def tokenizer() -> SimpleTokenizer:
    """CLIP's own tokenizer, as `open_clip.get_tokenizer` returns it for OpenAI's models."""
    return SimpleTokenizer(context_length=77)
