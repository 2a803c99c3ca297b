"""CLIP-LoRA with dropout: given the authors' masks, its loss and gradients are theirs.

The stored numbers and the tolerances are described in README.md beside this file.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import promptbench as pb
from promptbench.clip import block as blocks
from promptbench.clip.text_tower import Layout, Packing, pack

CASE = "clip_lora_r2_qkv_all"
CHECKPOINT = f"{CASE}-s7101/vitb16/synthetic/1shots/seed1/lora_weights.pt"
DEPTH, DROPOUT = 4, 0.25
COSINES, LOSS, GRADIENT = 1e-5, 1e-4, 1e-4  # the last of a tensor's largest entry


@pytest.fixture
def stored(golden_case: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return golden_case(CASE)


@pytest.fixture
def method(golden_clip: torch.nn.Module, golden_recipe: ModuleType, golden_folder: Path) -> Any:
    """With the authors' scale of 100, and their checkpoint."""
    clip: Any = copy.deepcopy(golden_clip)
    clip.logit_scale.fill_(math.log(100))
    backbone = pb.Backbone(clip, tokenizer=golden_recipe.tokenizer())
    made = pb.create_method("clip_lora", backbone, golden_recipe.CLASS_NAMES, dropout=DROPOUT)
    pb.load_official_checkpoint(made, golden_folder / CHECKPOINT)
    return made


def mask(layer: int, matrix: str, *shape: int) -> Tensor:
    """What the authors' code keeps of the input of a branch, made larger for it, (batch, tokens, d)."""
    name = f"layer_{layer}.{matrix}_proj"
    drawn = np.random.default_rng([7101, 40, zlib.crc32(name.encode())]).random(shape)
    return torch.from_numpy((drawn >= DROPOUT) / (1 - DROPOUT)).float()


def of_images(layer: int, matrix: str, x: Tensor) -> Tensor:
    """The mask of all tokens of six images, or of [CLS] alone."""
    return mask(layer, matrix, 6, 17, x.shape[-1])[:, : x.shape[1]]


def of_texts(layer: int, matrix: str, x: Tensor, packing: Packing, width: int) -> Tensor:
    """The mask of twelve texts, which are packed in rows, or of their last tokens alone."""
    sources = packing.sources  # k * width + t
    if x.shape[2] < sources.shape[1]:
        sources = sources.gather(1, packing.last)
    return mask(layer, matrix, 12, 77, x.shape[-1])[sources // width, sources % width]


def asked(first: int, of_last: str = "qkv") -> list[tuple[int, str]]:
    """Layer and matrix of each mask of a tower, in the order that they are asked for."""
    layers = range(first, first + DEPTH)
    return list(product(layers[:-1], "qkv")) + list(product(layers[-1:], of_last))


@torch.no_grad()
def test_cosines_do_not_see_the_dropout(method: Any, stored: dict[str, Tensor], golden_images: Tensor) -> None:
    torch.testing.assert_close(method(golden_images).cosines, stored["cosines"], atol=COSINES, rtol=0)


def test_loss_and_gradients_with_given_masks(
    method: Any,
    stored: dict[str, Tensor],
    golden_images: Tensor,
    golden_labels: Tensor,
    golden_recipe: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = method.backbone.embed_text([f"a photo of a {n.replace('_', ' ')}." for n in golden_recipe.CLASS_NAMES])
    width = tokens.ids.shape[1]
    eot = tuple(tokens.eot.tolist())
    packing = pack(Layout(tuple(place + 1 for place in eot), read=eot), width, torch.device("cpu"))
    waiting = {"images": asked(DEPTH), "texts": asked(0, of_last="kvq")}

    def given(x: Tensor, probability: float) -> Tensor:
        assert probability == DROPOUT
        if x.dim() == 3:
            kept = of_images(*waiting["images"].pop(0), x)
        else:
            kept = of_texts(*waiting["texts"].pop(0), x, packing, width)
        return x * kept

    monkeypatch.setattr(blocks, "dropped", given)
    loss = pb.backward(method, golden_images, golden_labels)["ce"]
    assert not any(waiting.values())
    torch.testing.assert_close(loss, stored["loss_dropout25"], atol=LOSS, rtol=0)
    for name, parameter in pb.official_parameters(method).items():
        wanted = stored[f"grad_dropout25/{name}"]
        torch.testing.assert_close(parameter.grad, wanted, atol=GRADIENT * wanted.abs().max().item(), rtol=0)
        assert (wanted - stored[f"grad/{name}"]).abs().max() > 100 * GRADIENT * wanted.abs().max()


def test_the_scale_is_the_model_s(
    method: Any, stored: dict[str, Tensor], golden_images: Tensor, golden_labels: Tensor
) -> None:
    """The same tensors with the small CLIP's own scale of 30, dropout off."""
    method.backbone.clip.logit_scale.fill_(math.log(30))
    loss = method.loss(golden_images, golden_labels)["ce"]  # in evaluation
    torch.testing.assert_close(loss, stored["loss_scale30"], atol=LOSS, rtol=0)
    loss.backward()
    for name, parameter in pb.official_parameters(method).items():
        wanted = stored[f"grad_scale30/{name}"]
        torch.testing.assert_close(parameter.grad, wanted, atol=GRADIENT * wanted.abs().max().item(), rtol=0)
