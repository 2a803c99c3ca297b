"""Every method on backbones of other kinds: it works, or says in one line what it needs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from promptbench import registry
from promptbench.checks.plugin.subject import CLASSES, OTHER_CLASSES, batch, learned, predict, specimen, take_steps
from promptbench.clip.backbone import Backbone
from promptbench.clip.load import load_backbone
from promptbench.config import UsageError

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TOWERS = {
    "pooled": ({"no_causal_mask": True}, {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}),
    "read behind the text": ({"embed_cls": True}, {**VISION, "attentional_pool": True, "attn_pooler_heads": 2}),
    "without tokens": ({}, {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}),
}
OF_CLIP_ALONE = {"dpl", "mutual"}
"""Methods that run the blocks of a tower themselves, as they are by default."""


@pytest.fixture(scope="module", params=TOWERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A small random model made from a JSON config."""
    text, vision = TOWERS[request.param]
    vision = {"image_size": 160, **vision}
    config = {"embed_dim": 96, "custom_text": True, "text_cfg": {**TEXT, **text}, "vision_cfg": vision}
    file = tmp_path_factory.mktemp("towers") / f"{Path(request.param).stem.replace(' ', '-')}.json"
    file.write_text(json.dumps(config))
    clip = load_backbone(f"{file}:random")
    for name, tensor in clip.named_parameters():
        if name.endswith("gamma"):
            tensor.data.fill_(1.0)  # of layers that timm scales by 1e-5 at first
    return clip


@pytest.mark.parametrize("name", registry.names("methods"))
def test_a_method_works_or_says_what_it_needs(name: str, other: Backbone) -> None:
    cls = registry.load("methods", name)
    try:
        made = specimen(cls, other)
        method = made.make()
        images, labels = batch(other)
        scored = predict(method, images).logits
        if cls.trains and learned(method):
            take_steps(method, images, labels, steps=1)
            assert not torch.equal(predict(method, images).logits, scored)
        method.set_classes(OTHER_CLASSES)
        assert predict(method, images).logits.isfinite().all()
    except UsageError as error:
        assert re.search("choose (a ViT|a causal CLIP) such as ViT-B-16", str(error)) and "\n" not in str(error)
        assert name in OF_CLIP_ALONE or not other.vision_depth
    else:
        assert scored.shape == (len(images), len(CLASSES)) and scored.isfinite().all()
        assert name not in OF_CLIP_ALONE
