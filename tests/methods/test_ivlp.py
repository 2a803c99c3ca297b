"""IVLP and VPT: recipes of their authors, and IVLP with text prompts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_clip
import golden_reference as reference
import open_clip
import pytest
import torch
import torch.nn.functional as F
from promptbench.methods.ivlp import IVLP

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.config import UsageError
from promptbench.method import fit_to_backbone
from promptbench.recipe import resolve
from promptbench.training.fit import learning_rate


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalization"])
@pytest.mark.parametrize(("name", "lr"), [("vpt", 0.0025), ("ivlp", 0.0035)])
def test_across_datasets_they_are_tested_after_the_second_epoch(name: str, lr: float, protocol: str) -> None:
    recipe = resolve(registry.load("methods", name), name, protocol=protocol, dataset="imagenet", shots=16).recipe
    assert recipe is not None
    assert (recipe.epochs, recipe.lr, recipe.batch, recipe.origin) == (2, lr, 4, "authors")
    for epochs in (2, 5):  # the same training, whether it was to end there or three epochs later
        assert [learning_rate(lr, epoch, epochs) for epoch in (0, 1)] == [1e-5, lr]


# Text prompts alone --------------------------------------------------------------------------------------------------


LABELS = torch.tensor([2, 0, 4])
DEEP = "text_encoder.transformer.resblocks.{}.VPT_shallow"


@pytest.fixture(scope="module")
def backbone() -> pb.Backbone:
    return pb.Backbone(golden_clip.build_clip(41), tokenizer=golden_clip.tokenizer())


def make(backbone: pb.Backbone, **config: object) -> Any:
    """IVLP without visual prompts and with noise on those of the text."""
    method: Any = pb.create_method("ivlp@language-only", backbone, golden_clip.CLASS_NAMES, **config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


def test_text_prompts_alone_equal_the_plain_forward(backbone: pb.Backbone, tmp_path: Path) -> None:
    images, weights = golden_clip.build_images(41, count=3), backbone.clip.state_dict()
    method = make(backbone, depth_text=3)
    ours = pb.official_parameters(method)
    assert list(ours) == ["prompt_learner.ctx", DEEP.format(1), DEEP.format(2)]
    theirs = {name: parameter.detach().clone().requires_grad_() for name, parameter in ours.items()}
    plain = reference.prompted(
        weights, images, golden_clip.CLASS_NAMES, words="a photo of a", text=list(theirs.values()), visual=[]
    )
    torch.testing.assert_close(method(images).logits, plain["logits"], atol=1e-4, rtol=0)
    F.cross_entropy(plain["logits"], LABELS).backward()
    pb.backward(method, images, LABELS)
    for name, tensor in theirs.items():
        assert tensor.grad is not None
        torch.testing.assert_close(ours[name].grad, tensor.grad, atol=1e-4 * tensor.grad.abs().max().item(), rtol=0)
    torch.save({"state_dict": theirs, "epoch": 5}, tmp_path / "model.pth.tar-5")
    loaded = pb.create_method("ivlp@language-only", backbone, golden_clip.CLASS_NAMES, depth_text=3)
    pb.load_official_checkpoint(loaded, tmp_path / "model.pth.tar-5")
    assert torch.equal(loaded(images).logits, method(images).logits)


def test_the_image_tower_is_then_frozen_and_its_features_are_kept(backbone: pb.Backbone) -> None:
    images = golden_clip.build_images(41, count=3)
    method = make(backbone)
    assert method.frozen_image_tower and not pb.create_method("ivlp", backbone, ["cat", "dog"]).frozen_image_tower
    cached = pb.Images(features=backbone.encode_image(images))
    assert torch.equal(method(cached).logits, method(images).logits)


@pytest.mark.slow
def test_it_keeps_the_contract(tiny: pb.Backbone) -> None:
    config = fit_to_backbone(IVLP.Config(n_ctx_vision=0), tiny, explicit=())
    assert not kit.check_method(IVLP, tiny, config)


def resnet() -> pb.Backbone:
    """A tower without blocks, beside a text tower of two."""
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 32}
    text = {"width": 64, "heads": 1, "layers": 2, "vocab_size": 49408, "context_length": 77}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    return pb.Backbone(clip.eval(), tokenizer=golden_clip.tokenizer())


def test_a_resnet_takes_text_prompts_alone() -> None:
    backbone, images = resnet(), torch.zeros(1, 3, 64, 64)
    assert make(backbone)(images).logits.shape == (1, len(golden_clip.CLASS_NAMES))
    with pytest.raises(UsageError, match="Visual prompts need a layer: set n_ctx_vision=0 for text prompts alone"):
        pb.create_method("ivlp", backbone, ["cat", "dog"])


@pytest.mark.parametrize(("protocol", "epochs"), [("base2new", 5), ("cross_dataset", 2)])
def test_the_authors_config_for_text_prompts_alone_is_a_preset(protocol: str, epochs: int) -> None:
    config, recipe, *_ = resolve(IVLP, "ivlp@language-only", protocol=protocol, dataset="imagenet")
    assert recipe is not None and (recipe.epochs, recipe.lr, recipe.origin) == (epochs, 0.0025, "authors")
    assert (config.n_ctx_text, config.n_ctx_vision, config.depth_text, config.ctx_init) == (4, 0, 12, "a photo of a")
