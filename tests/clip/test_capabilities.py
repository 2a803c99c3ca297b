"""What is said of architectures before they are loaded is what they do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from promptbench.cli.main import main
from promptbench.clip.backbone import Backbone
from promptbench.clip.block import Change
from promptbench.clip.load import architectures, config_of, lacking, load_backbone, shape_of
from promptbench.config import UsageError
from promptbench.method import MethodConfig, fit_to_backbone
from promptbench.registry import load as plugin

OF_EACH_KIND = [
    *("ViT-B-32", "RN50", "coca_ViT-B-32", "ViT-L-14-CLIPA", "ViT-L-14-worldwide"),
    *("EVA02-B-16", "ViT-B-16-SigLIP", "MobileCLIP-B", "MobileCLIP-S1", "PE-Core-S-16-384", "ViTamin-S"),
    *("vit_relpos_medium_patch16_cls_224", "convnext_tiny"),
    "swin_base_patch4_window7_224",
]


def whole_model(name: str) -> Backbone:
    """The architecture as open_clip builds it, with all its blocks, on the meta device."""
    with torch.device("meta"):
        clip = open_clip.create_model(name, pretrained=None, load_weights=False, device="meta")
    return Backbone(
        clip, lambda texts, context_length: torch.zeros(len(texts), context_length, dtype=torch.long), name=name
    )


def works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except UsageError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_what_is_said_of_an_image_tower_is_what_the_whole_does(name: str) -> None:
    clip = whole_model(name)
    images = torch.zeros(2, 3, clip.resolution, clip.resolution, device="meta")
    width = clip.vision_width if clip.vision_depth else 1
    prompts, deep = torch.zeros(2, width, device="meta"), {1: torch.zeros(2, width, device="meta")}
    needs: dict[str, dict[str, Any]] = {
        "visual prompts": {"prompts": prompts},
        "deep visual prompts": {"prompts": prompts, "deep": deep},
        "dense features": {"local": True},
        "changed blocks": {"changes": {0: Change()}},
    }
    said = lacking(config_of(f"{name}:random"))
    for need, asked in needs.items():
        assert works(lambda asked=asked: clip.encode_image(images, **asked)) == (not said[need]), need
    shape = shape_of(f"{name}:random")
    assert (shape.text_depth, shape.vision_depth) == (clip.text_depth, clip.vision_depth)
    assert shape.vision_layers == clip.vision_layers and shape.lacks == clip.lacks
    assert not said["text prompts"] and clip.encode_image(images).cls.shape == (2, clip.embed_dim)


@pytest.mark.slow
def test_all_architectures_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backbones", "--capabilities"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert {path.stem for path in architectures().glob("*.json")} <= set(rows)
    assert rows["ViT-B-16-quickgelu"].split()[1:] == ["yes"] * 6 + ["CLIP"]
    assert rows["roberta-ViT-B-32"].count("no (") == 6 and rows["ViT-B-16-SigLIP"].endswith("transformers")
    (number,) = {cell for cell in rows["RN50"].split() if cell.startswith("(")}
    assert f"{number} It has an image tower without transformer blocks that take other tokens (CLIP's ResNet)." in out


def test_capabilities_are_of_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--capabilities"]) == 2
    assert "goes with `promptbench list backbones`" in capsys.readouterr().err


def test_a_resnet_under_visual_prompts_is_told_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["run", "--method", "maple", "--dataset", "mini_shapes", "--backbone", "RN50-quickgelu:random", "--dry-run"]
    assert main([*call, "--suite", "mini"]) == 2
    said = capsys.readouterr().err
    assert (
        "has an image tower without transformer blocks that take other tokens (CLIP's ResNet), and depth counts" in said
    )
    assert "choose a ViT such as ViT-B-16, or a method that prompts the text alone" in said and said.count("\n") == 1


def fitted(method: str, backbone: str, **explicit: int) -> MethodConfig:
    config = plugin("methods", method).Config(**explicit)
    return fit_to_backbone(config, shape_of(backbone), explicit)


def test_depths_follow_the_model() -> None:
    assert fitted("mutual", "RN50:random").depth_visual == fitted("mutual", "EVA02-B-16:random").depth_visual == 0
    assert fitted("vpt", "EVA02-B-16:random").depth == 12
    with pytest.raises(
        UsageError, match=r"not read at \[CLS\] after CLIP's own blocks \(timm's Eva\), and depth_visual"
    ):
        fitted("mutual", "EVA02-B-16:random", depth_visual=2)
    with pytest.raises(UsageError, match="depth is 13, but vision_depth of backbone 'EVA02-B-16:random' is 12"):
        fitted("vpt", "EVA02-B-16:random", depth=13)


def test_a_text_tower_of_others_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(
        UsageError, match=r"has a text tower of Hugging Face \(roberta-base\), which prompts cannot enter"
    ):
        load_backbone("roberta-ViT-B-32:laion2b_s12b_b32k")


@pytest.mark.parametrize(("error", "way_out"), [(ImportError, "pip install transformers"), (OSError, "fetch it once")])
def test_a_tokenizer_that_is_not_there_is_one_line(
    error: type[Exception], way_out: str, tmp_path: Path, tiny_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*args: object, **options: object) -> None:
        raise error("no such thing\nat all")

    monkeypatch.setattr(open_clip, "get_tokenizer", unavailable)
    with pytest.raises(UsageError, match=f"cannot be loaded .* {way_out}") as caught:
        load_backbone(tiny_name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_architecture(tmp_path: Path) -> None:
    for content in ("{}", "[1]", '{"text_cfg": 1, "vision_cfg": 2}', "{"):
        (tmp_path / "other.json").write_text(content)
        for read in (shape_of, load_backbone):
            with pytest.raises(UsageError, match="is no architecture of open_clip"):
                read(f"{tmp_path / 'other.json'}:random")


@pytest.mark.parametrize("vision", [{}, {"attentional_pool": True, "attn_pooler_heads": 2}])
def test_coca_comes_from_a_file(tmp_path: Path, vision: dict[str, Any]) -> None:
    vision |= {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "output_tokens": True}
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config = {
        **{"embed_dim": 24, "custom_text": True, "vision_cfg": vision, "multimodal_cfg": text},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
    }
    (tmp_path / "coca-like.json").write_text(json.dumps(config))
    clip, texts = load_backbone(f"{tmp_path / 'coca-like.json'}:random"), ["a photo of a dog.", "a cat"]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clip.encode_image(images).cls, clip.clip.encode_image(images, normalize=False))
    tokens = clip.embed_text(texts)
    expected = clip.clip.encode_text(clip.tokenizer(texts), normalize=False)
    torch.testing.assert_close(clip.encode_text(tokens.embeddings, tokens.eot), expected)
    assert clip.context_length == 20 and clip.vision_layers == (0 if "attentional_pool" in vision else 2)
