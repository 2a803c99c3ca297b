"""The contract carries methods of every kind: three plugins, each the heart of a published one, run through it.

A cache model, low-rank updates of the towers, and another attention. They live in `tests/plugins`, one file each, and
are added as `--plugin` adds a user's. Beside them stands a built-in one with a frozen teacher and averaged weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from shared_paths import TESTS
from short_cases import slow_but
from torch import Tensor
from torch.utils.data import DataLoader

import promptbench as pb
from promptbench.checks.plugin import kit
from promptbench.cli.main import main
from promptbench.clip import prompts
from promptbench.clip import text_tower as text
from promptbench.config import UsageError
from promptbench.method import Images, Method, show_training_images
from promptbench.training.files import TrainingOutcome
from promptbench.training.fit import fit

FOLDER = TESTS / "plugins"
PLUGINS = ("clip_lora_like", "decoupled_like", "tip_adapter_like")
METHODS = (*PLUGINS, "promptsrc")
CLASSES = kit.CLASSES
Make = Callable[..., Any]


@pytest.fixture
def make(plugin_file: Callable[[Path], type[Method]], tiny: pb.Backbone) -> Make:
    """A plugin by name, on the tiny CLIP, its learned tensors moved off their first values."""

    def create(name: str, backbone: pb.Backbone = tiny, seed: int = 0, moved: bool = True, **config: object) -> Method:
        if name in PLUGINS:
            plugin_file(FOLDER / f"{name}.py")
        method = pb.create_method(name, backbone, CLASSES, seed=seed, **config)
        images, labels = kit.batch(backbone)
        show_training_images(method, [(Images(images[:4]), labels[:4]), (Images(images[4:]), labels[4:])], seed)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.05 * moved * torch.randn(parameter.shape, generator=generator))
        return method

    return create


@pytest.fixture
def images(tiny: pb.Backbone) -> Tensor:
    return kit.batch(tiny)[0]


@pytest.fixture
def labels(tiny: pb.Backbone) -> Tensor:
    return kit.batch(tiny)[1]


def close(measured: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(measured.detach(), expected.detach(), atol=tolerance, rtol=0)


@torch.no_grad()
def logits(method: Method, images: Tensor) -> Tensor:
    return method(images).logits


# All of them ----------------------------------------------------------------------------------------------------------


def test_these_are_all_the_plugins() -> None:
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.py"))) == PLUGINS


@pytest.mark.parametrize("check", kit.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", slow_but(PLUGINS, PLUGINS[0]))
def test_plugin_keeps_the_contract(
    name: str, check: kit.Check, tiny: pb.Backbone, plugin_file: Callable[[Path], type[Method]]
) -> None:
    assert not kit.run_check(check, plugin_file(FOLDER / f"{name}.py"), tiny)


def train(method: Method, images: Tensor, labels: Tensor, epochs: int = 2, seed: int = 3) -> TrainingOutcome:
    """A real training on four batches an epoch."""
    recipe = replace(method.recipes["*", "*"], epochs=epochs, lr=0.02, warmup_epochs=0)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(images), generator=generator) for _ in range(4)]
    batches = DataLoader([(Images(images[order]), labels[order]) for order in orders], batch_size=None)
    return fit(method, recipe, batches, len(batches), seed=seed)


@pytest.mark.parametrize("name", slow_but(METHODS, "coop", "maple"))
def test_training_learns_and_repeats(name: str, make: Make, images: Tensor, labels: Tensor) -> None:
    method, again = make(name, moved=False), make(name, moved=False)
    clip = {key: tensor.clone() for key, tensor in method.backbone.clip.state_dict().items()}
    before = F.cross_entropy(logits(method, images), labels)
    outcome = train(method, images, labels)
    assert not method.training
    assert len(outcome.losses) == 2 and all(math.isfinite(v) for epoch in outcome.losses for v in epoch.values())
    assert "ce" in outcome.losses[0]
    assert F.cross_entropy(logits(method, images), labels) < before
    assert all(torch.equal(tensor, clip[key]) for key, tensor in method.backbone.clip.state_dict().items())
    assert train(again, images, labels).losses == outcome.losses
    assert torch.equal(logits(again, images), logits(method, images))


@pytest.mark.parametrize("budget", [1_000_000, 250_000, 1], ids=["some images", "some classes", "one text"])
@pytest.mark.parametrize("name", slow_but(METHODS, "coop", "maple"))
def test_a_small_memory_budget_changes_nothing(
    name: str, budget: int, make: Make, tiny: pb.Backbone, images: Tensor, labels: Tensor
) -> None:
    small = pb.Backbone(tiny.clip, tokenizer=tiny.tokenizer, memory_budget=budget)
    assert tiny.memory_budget > 2**30
    whole, chunked = make(name), make(name, small)
    close(logits(chunked, images), logits(whole, images), 2e-5)
    for method in (whole, chunked):
        torch.stack(list(method.loss(images, labels).values())).sum().backward()
    for one, other in zip(whole.parameters(), chunked.parameters(), strict=True):
        close(other.grad, one.grad, 1e-5 * float(one.grad.abs().max()))


# One by one -----------------------------------------------------------------------------------------------------------


def test_tip_adapter_is_its_formula(make: Make, images: Tensor, labels: Tensor) -> None:
    method = make("tip_adapter_like", alpha=2.0, beta=3.0, moved=False)
    image = F.normalize(method.backbone.encode_image(images).cls, dim=-1)
    close(method.keys, image, 1e-5)  # in other batches
    zero_shot = logits(make("zeroshot"), images)
    values = torch.eye(len(CLASSES))[labels]
    close(logits(method, images), zero_shot + 2.0 * torch.exp(-3.0 * (1 - image @ image.T)) @ values, 1e-4)


def test_tip_adapter_before_its_images_is_zero_shot_and_after_them_bound(make: Make, images: Tensor) -> None:
    method = make("tip_adapter_like")
    fresh = pb.create_method("tip_adapter_like", method.backbone, CLASSES)
    assert torch.equal(logits(fresh, images), logits(make("zeroshot"), images))
    fresh.set_classes(["cat", "dog"])
    with pytest.raises(UsageError, match="holds 3 classes, and 2 are"):
        method.set_classes(["cat", "dog"])


def test_cocoop_encodes_a_batch_as_it_encodes_each_image(make: Make, images: Tensor) -> None:
    method = make("cocoop")
    with torch.no_grad():
        text = method.conditional_text(method.backbone.encode_image(images).cls)
    assert text.shape == (len(images), len(CLASSES), method.backbone.embed_dim)
    assert (text[0] - text[1]).abs().max() > 1e-3
    for i in range(len(images)):
        close(logits(method, images[i : i + 1]), logits(method, images)[i : i + 1], 2e-5)


def test_clip_lora_starts_as_zero_shot(make: Make, images: Tensor) -> None:
    close(logits(make("clip_lora_like", moved=False), images), logits(make("zeroshot@generic"), images), 1e-4)
    assert (logits(make("clip_lora_like"), images) - logits(make("zeroshot@generic"), images)).abs().max() > 1e-2


def test_dropout_in_a_layer_is_drawn_again_when_chunks_are_recomputed(
    make: Make, tiny: pb.Backbone, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = pb.Backbone(tiny.clip, tokenizer=tiny.tokenizer, memory_budget=1)
    method = make("clip_lora_like", small, dropout=0.5).train()

    def gradients() -> list[Tensor]:
        method.zero_grad()
        torch.manual_seed(4)
        method.loss(images, labels)["ce"].backward()
        return [parameter.grad.clone() for parameter in method.parameters()]

    recomputed, chunks = gradients(), []

    def kept(function: Callable[..., Tensor], *arguments: object, **options: object) -> Tensor:
        chunks.append(options)
        return function(*arguments)

    monkeypatch.setattr(text, "checkpoint", kept)
    for one, other in zip(recomputed, gradients(), strict=True):
        close(one, other, 1e-6 * float(other.abs().max()))
    assert len(chunks) == len(CLASSES)


@torch.no_grad()
def test_attention_in_two_parts_with_the_exact_gate_is_ordinary_attention(make: Make, images: Tensor) -> None:
    method = make("decoupled_like")
    method.text_shift.zero_(), method.vision_shift.zero_()
    backbone, tokens = method.backbone, method.tokens
    prefix = prompts.join(method.start, method.ctx)
    close(method.encode_classes(), backbone.encode_text(tokens.embeddings, tokens.eot, prefix), 1e-5)
    ordinary = backbone.encode_image(images, method.visual).cls
    close(backbone.encode_image(images, method.visual, layer=method.vision_layer).cls, ordinary, 1e-5)
    method.vision_shift.fill_(-30.0)  # prompts unseen
    unseen = backbone.encode_image(images, method.visual, layer=method.vision_layer).cls
    close(unseen, backbone.encode_image(images).cls, 1e-5)
    assert (unseen - ordinary).abs().max() > 1e-3


# Through the command --------------------------------------------------------------------------------------------------


COLOURS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cow": (40, 40, 200), "dog": (9, 9, 9)}


def draw_folders(root: Path, seed: int = 0) -> Path:
    """Four classes of coloured noise, four images each for training and testing, in class folders."""
    generator = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = generator.integers(0, 60, (40, 36, 3)) + np.array(colour) * 0.7
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("name", slow_but(["clip_lora_like", "tip_adapter_like"], "tip_adapter_like"))
def test_a_plugin_runs_through_the_command(
    name: str,
    tmp_path: Path,
    tiny_name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plugin_file: Callable[[Path], type[Method]],
) -> None:
    root = draw_folders(tmp_path / "animals")
    arguments = [
        *("run", "--plugin", str(FOLDER / f"{name}.py"), "--method", name, "--protocol", "base2new"),
        *("--dataset", f"folder:{root}", "--backbone", tiny_name, "--shots", "4", "--seeds", "1", "--threads", "1"),
        *("--set", f"{name}.epochs=2", f"{name}.batch=4", "--device", "cpu"),
    ]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    stored = {path: path.read_bytes() for path in tmp_path.glob("promptbench-runs/**/*.json")}
    records = [json.loads(content) for content in stored.values()]
    record = next(record for record in records if record["spec"]["method"] == name)
    assert 0 <= record["metrics"]["base/accuracy"] <= 100
    if name == "tip_adapter_like":
        assert "new/accuracy" not in record["metrics"] and "training classes" in record["notes"]["new/"]
        assert record["cost"]["learned_parameters"] == 2 * 4 * 32  # two base classes, four shots, D
    else:
        assert set(record["losses"][0]) == {"ce"}
        assert "h" in {key.rpartition("/")[2] for key in record["metrics"]}
    assert f"| {registry.titles('methods', [name])[name]}" in printed
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("promptbench-runs/trainings/*")}
    assert len(trained) == 1
    next(path for path in stored if json.loads(path.read_bytes()) == record).unlink()
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed  # from the stored training, images shown again
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
