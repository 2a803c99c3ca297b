"""One training shared by two processes on a CPU: the numbers of one process, and one sentence where that cannot be."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.cli import main
from promptbench.commands.run import request_elsewhere
from promptbench.config import UsageError
from promptbench.dataset import Dataset, open_dataset
from promptbench.executors.local import places
from promptbench.images import ImageFeatures, Images
from promptbench.loading import EpochOrder, FeatureBatches, training_batches
from promptbench.method import Method
from promptbench.sharing import WHOLE, Share, per_image
from promptbench.training import fit
from promptbench.weights import load_backbone
from promptbench.work import Work

HERE = Path(__file__).parent
TINY = f"{HERE / 'data' / 'tiny-clip.json'}:random"
RECIPE = pb.Recipe(epochs=2, lr=0.0025, batch=4, origin="ours")
TRAINED = [name for name in registry.names("methods") if registry.load("methods", name).trains]
CLOSE = 1e-6

_spec = importlib.util.spec_from_file_location("make_fake", HERE / "data" / "make_fake.py")
assert _spec is not None and _spec.loader is not None
make_fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_fake)


class Noisy(Method):
    """Each image's logits are shifted by a draw of its own."""

    keyed = True

    def __init__(self, config: Any, backbone: pb.Backbone) -> None:
        super().__init__(config, backbone)
        self.scale = torch.nn.Parameter(torch.ones(backbone.embed_dim))

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        features = self.backbone.encode_image(images).cls

        def draw(count: int) -> Tensor:
            return torch.randn(count, features.shape[-1])

        noise = per_image(len(labels), draw) if self.keyed else draw(len(labels))
        return {"square": ((features * self.scale + noise) ** 2).mean()}


class Careless(Noisy):
    """Draws for the images at hand alone."""

    keyed = False


class Breaks(Noisy):
    """Its loss is NaN for the images of the second process."""

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = super().loss(images, labels)["square"]
        rank = per_image(len(labels), lambda count: torch.arange(count, dtype=torch.float32))[0]
        return {"square": loss * (float("nan") if rank >= 2 else 1.0)}


OWN = {cls.__name__: cls for cls in (Noisy, Careless, Breaks)}


def train(name: str, birds: Dataset, share: Share) -> dict[str, Any]:
    """What a method learns, with its losses; or what it says instead."""
    backbone = load_backbone(TINY)
    if name in OWN:
        method = OWN[name](pb.MethodConfig(), backbone)
    else:
        method = pb.create_method(name, backbone, birds.class_names)
    items = birds.items("train")[:8]
    augment = name != "coop"
    batches = training_batches(backbone, birds, items, batch=RECIPE.batch, seed=3, augment=augment, share=share)
    try:
        outcome = fit(method, replace(RECIPE, augment=augment), batches, len(batches), seed=3, share=share)
    except (UsageError, RuntimeError) as error:
        return {"said": f"{type(error).__name__}: {error}"}
    return {"losses": outcome.losses, "state": {key: value.clone() for key, value in method.state_dict().items()}}


def train_all(birds: Dataset, rank: int, folder: str) -> dict[str, dict[str, Any]]:
    """The same of all methods, as one of two processes."""
    return {name: train(name, birds, Share(rank, 2, f"{folder}/meeting-{name}")) for name in [*TRAINED, *OWN]}


def birds_in(folder: Path) -> Dataset:
    return open_dataset("folder", {"root": str(folder)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_folder(folder)
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, dict[str, Any]]]]:
    """What both processes have in the end."""
    place = tmp_path_factory.mktemp("meet")
    other = subprocess.Popen([sys.executable, __file__, str(folder), str(place)])
    try:
        own = train_all(birds_in(folder), 0, str(place))
        assert other.wait(timeout=300) == 0
    finally:
        other.kill()
        other.wait()
    yield [own, torch.load(place / "other.pt")]


@pytest.mark.parametrize("name", [*TRAINED, "Noisy"])
def test_two_processes_have_the_numbers_of_one(name: str, shared: list[Any], folder: Path) -> None:
    first, second = (process[name] for process in shared)
    module: ModuleType | None = inspect.getmodule(OWN.get(name) or registry.load("methods", name))
    assert module is not None
    if "torch.rand" in inspect.getsource(module) and "per_image" not in inspect.getsource(module):
        assert "promptbench.sharing.per_image" in first["said"] and "promptbench.sharing.per_image" in second["said"]
        return
    whole = train(name, birds_in(folder), WHOLE)
    assert first["losses"] == second["losses"] and len(first["losses"]) == RECIPE.epochs
    for found, wanted in zip(first["losses"], whole["losses"], strict=True):
        assert found == pytest.approx(wanted, abs=CLOSE, rel=CLOSE)
    assert whole["state"].keys() == first["state"].keys()
    start = (
        pb.create_method(name, load_backbone(TINY), birds_in(folder).class_names).state_dict()
        if name in TRAINED
        else {}
    )
    for key, wanted in whole["state"].items():
        assert torch.equal(first["state"][key], second["state"][key])
        assert torch.allclose(first["state"][key], wanted, rtol=0, atol=CLOSE)
        assert key not in start or not start[key].any() or not torch.allclose(start[key], wanted, rtol=0, atol=CLOSE)


def test_a_method_that_draws_for_itself_is_refused_by_all(shared: list[Any]) -> None:
    for process in shared:
        assert process["Careless"]["said"].startswith("UsageError: --devices: this method draws at random in its loss")


def test_where_one_process_fails_no_other_waits(shared: list[Any]) -> None:
    first, second = (process["Breaks"]["said"] for process in shared)
    assert first == "Failed: another process of this training failed"
    assert second.startswith("TrainingDiverged: the loss became nan in epoch 1 of 2, step 1 of 2")


@pytest.mark.parametrize("augment", [True, False])
def test_shares_are_the_batches_in_order(augment: bool, folder: Path, tiny: pb.Backbone) -> None:
    """Each image is in the same place of the same epoch with the same view, whoever loads it."""
    birds = birds_in(folder)
    items, shares = birds.items("train")[:11], [WHOLE, Share(0, 2), Share(1, 2)]
    loaders = [training_batches(tiny, birds, items, batch=4, seed=5, augment=augment, share=part) for part in shares]
    assert [len(loader) for loader in loaders] == [2, 2, 2]
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for (whole, labels), (a, of_a), (b, of_b) in zip(*loaders, strict=True):
            assert whole.pixels is not None and a.pixels is not None and b.pixels is not None
            assert torch.equal(whole.pixels, torch.cat([a.pixels, b.pixels]))
            assert torch.equal(labels, torch.cat([of_a, of_b])) and len(of_a) == len(of_b) == 2


def test_shares_of_cached_features(tiny: pb.Backbone) -> None:
    features = ImageFeatures(torch.arange(22.0).view(22, 1))  # two views of 11 images
    parts = [
        FeatureBatches(features, list(range(11)), 4 // part.of, EpochOrder(11, 5, 4, part))
        for part in (WHOLE, Share(0, 2), Share(1, 2))
    ]
    assert [len(part) for part in parts] == [2, 2, 2]
    for epoch in range(2):
        for part in parts:
            assert part.sampler is not None
            part.sampler.set_epoch(epoch)
        for (_, whole), (_, a), (_, b) in zip(*parts, strict=True):
            assert torch.equal(whole, torch.cat([a, b]))


def test_what_cannot_be_divided_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--devices 2: 3 images, all there are for a batch, cannot be shared equally"):
        Share(0, 2).part(range(3), 4)
    assert Share(1, 2).part(range(3), 2) == [1]
    call = ["run", "--dataset", f"folder:{folder}", "--backbone", TINY, "--output", str(tmp_path), "--devices", "2"]
    assert main([*call, "--method", "cocoop", "--device", "cpu", "--set", "cocoop.batch=3"]) == 2
    assert "the batch of cocoop is 3, which cannot be shared equally; set cocoop.batch" in capsys.readouterr().err


def test_a_run_on_two_devices(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, stopped once: the first process alone writes; another run than on one device, the same numbers."""
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")
    step, steps = Work.step, list[int]()

    def stopped(self: Work, done: int, total: int, loss: float) -> None:
        step(self, done, total, loss)
        steps.append(done)
        if steps == [1, 2, 3, 4, 5]:
            raise KeyboardInterrupt

    what = ("--backbone", TINY, "--dataset", f"folder:{folder}", "--shots", "2", "--threads", "1", "--seeds", "1")
    call = ["run", "--method", "coop", *what, "--device", "cpu"]
    call += ["--set", "coop.epochs=3", "coop.batch=2", "coop.lr=0.0025"]
    outputs = [tmp_path / "one", tmp_path / "two"]
    assert main([*call, "--output", str(outputs[0])]) == 0
    monkeypatch.setattr(Work, "step", stopped)
    assert [main([*call, "--output", str(outputs[1]), "--devices", "2"]) for _ in range(2)] == [130, 0]
    assert steps == [1, 2, 3, 4, 5, 5, 6]
    records = []
    for output in outputs:
        (path,) = (output / "results").rglob("coop-*.json")
        records.append(json.loads(path.read_text()))
    one, two = records
    assert (one["spec"]["devices"], two["spec"]["devices"]) == (1, 2)
    assert one["conditions"].pop("training_key") != two["conditions"].pop("training_key")
    assert one["conditions"] == two["conditions"] and one["metrics"].keys() == two["metrics"].keys()
    for found, wanted in zip(two["losses"], one["losses"], strict=True):
        assert found == pytest.approx(wanted, abs=CLOSE)
    (left,), (right,) = ([load_file(path) for path in (output / "trainings").iterdir()] for output in outputs)
    assert torch.allclose(left["ctx"], right["ctx"], rtol=0, atol=CLOSE)
    assert not [path for path in outputs[1].rglob("*") if path.suffix not in ("", ".json", ".safetensors")]


def test_the_reason_of_another_process_is_the_runs(folder: Path, tmp_path: Path) -> None:
    call = ["run", "--backbone", TINY, "--dataset", f"folder:{folder}", "--shots", "2", "--threads", "1", "--device"]
    plugin = tmp_path / "second.py"
    plugin.write_text(SECOND)
    call += ["cpu", "--seeds", "1", "--plugin", str(plugin), "--method", "second", "--devices", "2"]
    assert main([*call, "--output", str(tmp_path / "runs")]) == 1
    (path,) = (tmp_path / "runs" / "results").rglob("second-*.failed.json")
    record = json.loads(path.read_text())
    assert record["reason"].startswith("the loss became nan in epoch 1 of 1, step 1 of 2, at learning rate 1e-05")
    assert record["where"]["step"] == 1


def test_another_process_that_cannot_begin_says_why(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "added", lambda: [("methods", tmp_path / "gone.py")])
    call = ["run", "--backbone", TINY, "--dataset", f"folder:{folder}", "--shots", "2", "--threads", "1", "--device"]
    call += ["cpu", "--seeds", "1", "--method", "coop", "--set", "coop.batch=2", "--devices", "2"]
    assert main([*call, "--output", str(tmp_path)]) == 1
    (path,) = (tmp_path / "results").rglob("coop-*.failed.json")
    assert json.loads(path.read_text())["reason"].startswith("There is no plugin file")


def test_gpus_go_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,5,7,8")
    assert places(9, "cuda", 1, devices=2) == (2, ["0,3", "5,7"])
    assert places(9, "cuda", 1) == (5, ["0", "3", "5", "7", "8"])


def test_other_machines_share_no_training() -> None:
    with pytest.raises(UsageError, match="--devices 2 shares each training among the GPUs of this machine"):
        request_elsewhere(argparse.Namespace(devices=2))


SECOND = '''"""Second: its loss is NaN in the second process.

A. Author, "Second", 2026, arXiv:2601.00001.
"""

import torch

from promptbench.method import Method, Recipe
from promptbench.sharing import per_image


class Second(Method):
    recipes = {("*", "*"): Recipe(epochs=1, lr=0.01, batch=2, origin="ours")}

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.a = torch.nn.Parameter(torch.zeros(()))

    def loss(self, images, labels):
        first = per_image(len(labels), lambda count: torch.arange(float(count)))[0] == 0
        return {"a": self.a if first else self.a * float("nan")}
'''


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_files", {kind: {} for kind in ("methods", "datasets", "protocols")})
    yield
    torch.set_num_threads(1)
    for name in [name for name in sys.modules if name.startswith("promptbench_plugin.")]:
        del sys.modules[name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(train_all(birds_in(Path(sys.argv[1])), 1, sys.argv[2]), Path(sys.argv[2]) / "other.pt")
