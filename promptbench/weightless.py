"""ViT-B/16 without its weights, for counting what a method would learn on it.

The model lives on torch's meta device: shapes and no values, no memory and no download.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from promptbench.clip.backbone import Backbone
from promptbench.clip.text_tower import Tokens


class WeightlessBackbone(Backbone):
    """A backbone on the meta device: it tokenises, and its embeddings have a shape and no values."""

    def embed_text(self, texts: Sequence[str]) -> Tokens:
        ids = self.tokenizer(list(texts), context_length=self.context_length)
        eot = ids.argmax(dim=-1)
        ids = ids[:, : int(eot.max()) + 1]
        return Tokens(torch.empty(*ids.shape, self.text_width, device="meta"), eot, ids)


@cache
def vit_b16() -> Backbone:
    """OpenAI's ViT-B/16 as open_clip describes it."""
    import open_clip

    config = open_clip.get_model_config("ViT-B-16")
    assert config is not None  # open_clip's own
    with torch.device("meta"):
        clip = open_clip.CLIP(**config)
    return WeightlessBackbone(clip, open_clip.get_tokenizer("ViT-B-16"), name="ViT-B-16")
