"""The small CLIP of `promptbench.checks.installation.parity` in any size, and its images.

The reference numbers in `tests/golden` were computed on it; other seeds and sizes give models for which no numbers are
stored. The recipe is written out in `tests/golden/README.md`.
"""

from __future__ import annotations

from functools import cache

from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer

from promptbench.checks.installation.parity import CLASS_NAMES, LABELS, NEW_CLASS_NAMES, SEED, build_images, weight

__all__ = ["CLASS_NAMES", "LABELS", "NEW_CLASS_NAMES", "SEED", "build_clip", "build_images", "tokenizer", "weight"]


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


@cache
def tokenizer() -> SimpleTokenizer:
    """CLIP's own tokenizer, as `open_clip.get_tokenizer` returns it for OpenAI's models."""
    return SimpleTokenizer(context_length=77)
