"""Every method on backbones of other kinds: it works, or says in one line what it needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from promptbench import registry
from promptbench.checks.plugin.subject import CLASSES, OTHER_CLASSES, batch, learned, predict, specimen, take_steps
from promptbench.clip.backbone import Backbone
from promptbench.clip.load import load_backbone
from promptbench.config import UsageError

TEXT = {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TOWERS = {
    "pooled": ({"no_causal_mask": True}, {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}),
    "without [SOS]": ({"no_causal_mask": True, "pool_type": "last"}, VISION),
    "read behind the text": ({"embed_cls": True}, {**VISION, "attentional_pool": True, "attn_pooler_heads": 2}),
    "without tokens": ({}, {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}),
}
RUN_BLOCKS = {"dpl", "mutual"}
CHANGE_BLOCKS = {"clip_lora", "mma"}
REFUSED = {
    "pooled": RUN_BLOCKS | CHANGE_BLOCKS,
    "without [SOS]": {"dpl"},
    "read behind the text": RUN_BLOCKS,
    "without tokens": RUN_BLOCKS | CHANGE_BLOCKS | {"gallop", "ivlp", "locoop", "maple", "promptsrc", "vpt"},
}
"""The methods that need what a backbone lacks, as they are by default."""


@dataclass(frozen=True)
class WithoutStart:
    """CLIP's tokens from the first word on, padded with [EOT], as SigLIP pads."""

    tokenizer: Callable[..., Tensor]

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        ids = self.tokenizer(texts, context_length=context_length + 1)[:, 1:]
        end = ids.argmax(dim=1, keepdim=True)
        behind = torch.arange(context_length) > end
        return torch.where(behind, ids.amax(dim=1, keepdim=True), ids)


@pytest.fixture(scope="module", params=TOWERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Backbone]:
    """A small random model made from a JSON config, and of which kind it is."""
    text, vision = TOWERS[request.param]
    vision = {"image_size": 160, **vision}
    config = {"embed_dim": 96, "custom_text": True, "text_cfg": {**TEXT, **text}, "vision_cfg": vision}
    file = tmp_path_factory.mktemp("towers") / "towers.json"
    file.write_text(json.dumps(config))
    clip = load_backbone(f"{file}:random")
    for name, tensor in clip.named_parameters():
        if name.endswith("gamma"):
            tensor.data.fill_(1.0)  # of layers that timm scales by 1e-5 at first
    if request.param == "without [SOS]":
        clip = Backbone(clip.clip, WithoutStart(clip.tokenizer), name=request.param)
    return request.param, clip


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("methods"))
def test_a_method_works_or_says_what_it_needs(name: str, other: tuple[str, Backbone]) -> None:
    (kind, clip), cls = other, registry.load("methods", name)
    images, labels = batch(clip)
    try:
        method = specimen(cls, clip).make()
        scored = predict(method, images).logits
    except UsageError as error:
        assert name in REFUSED[kind] and "\n" not in str(error)
        assert re.search("choose (a ViT|a causal CLIP) such as ViT-B-16", str(error))
        return
    assert name not in REFUSED[kind]
    assert scored.shape == (len(images), len(CLASSES)) and scored.isfinite().all()
    if cls.trains and learned(method):
        take_steps(method, images, labels, steps=1)
        assert not torch.equal(predict(method, images).logits, scored)
    if method.transfers is True:
        method.set_classes(OTHER_CLASSES)
        assert predict(method, images).logits.isfinite().all()
