"""What works with an architecture of open_clip, known without weights.

Towers of one block stand on the meta device for it, without values; of timm's, those without tokens are known by their
class. What is said is what `Backbone` says of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from promptbench.clip import block, image_tower, text_tower

NEEDS = (
    *("text prompts", "deep text prompts", "visual prompts", "deep visual prompts", "dense features"),
    "changed blocks",
)
SMALLEST = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}


def tokenizer_of(config: Mapping[str, Any]) -> str:
    """Who made the tokenizer of an architecture: `CLIP`, or Hugging Face, whose package it then takes."""
    return "transformers" if config["text_cfg"].get("hf_tokenizer_name") else "CLIP"


def of_config(config: Mapping[str, Any]) -> dict[str, str]:
    """By need, what lacks it of an architecture with a text tower of open_clip's own; empty where nothing does."""
    clip = sketch(config)
    text = getattr(clip, "text", clip)
    if wrong := text_tower.wrong_with(text):
        return dict.fromkeys(NEEDS, f"a text tower that prompts cannot enter: {wrong}")
    tokens = image_tower.lacks_tokens(clip.visual)
    standard = all(map(block.is_standard, text.transformer.resblocks))
    within = "" if standard else "a text tower whose blocks are not built as CLIP's"
    return {
        "text prompts": "",
        "deep text prompts": "",
        "visual prompts": tokens,
        "deep visual prompts": tokens,
        "dense features": image_tower.lacks_dense(clip.visual),
        "changed blocks": within or image_tower.lacks_blocks_of_clip(clip.visual),
    }


def lacks(config: Mapping[str, Any]) -> dict[str, str]:
    """As `Backbone.lacks`."""
    return image_tower.lacks(sketch(config).visual)


def sketch(config: Mapping[str, Any]) -> Any:
    """An open_clip model of this kind with one block in each tower, on the meta device."""
    import open_clip

    text, vision, timm_name = dict(config["text_cfg"]), dict(config["vision_cfg"]), None
    text |= {"layers": 1}
    timm_name = vision.get("timm_model_name")
    if timm_name:
        vision = dict(SMALLEST)
    else:
        vision |= {"layers": [1, 1, 1, 1] if isinstance(vision.get("layers"), list) else 1}
    build = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.model.CLIP
    with torch.device("meta"):
        clip = build(config["embed_dim"], vision, text)
        if timm_name:
            clip.visual = torch.nn.Module()
            clip.visual.trunk = trunk_of(timm_name, whole=False)
    return clip


@cache
def trunk_of(name: str, whole: bool = True) -> Any:
    """timm's model of a name on the meta device, `whole` or, if it can be, with one block.

    Of a class without tokens it is something of that class's name.
    """
    import timm

    cls = timm.models.model_entrypoint(name).__annotations__.get("return")
    if isinstance(cls, type) and not hasattr(cls, "_pos_embed"):
        return type(cls.__name__, (torch.nn.Module,), {})()
    sizes: dict[str, Any] = {} if whole else {"depth": 1}
    with torch.device("meta"):
        try:
            return timm.create_model(name, pretrained=False, **sizes)
        except TypeError:  # a model whose blocks are counted otherwise
            return timm.create_model(name, pretrained=False)


def timm_depth(name: str) -> int:
    """Blocks of a model of timm that prompts may enter."""
    visual = SimpleNamespace(trunk=trunk_of(name))
    return 0 if image_tower.lacks_tokens(visual) else len(image_tower.resblocks(visual))


def numbered(rows: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """All reasons in rows of `of_config`, in order of appearance, from 1 on."""
    found: dict[str, int] = {}
    for lacks in rows:
        for why in filter(None, lacks.values()):
            found.setdefault(why, len(found) + 1)
    return found
