"""The precision of trainings: what is computed in it, what stays float32, and which devices take it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import make_fake
import pytest
import torch
from safetensors.torch import load_file
from shared_paths import TINY
from short_cases import slow_but

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin.subject import batch, specimen
from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.data.batches import training_batches
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.method import Method, show_training_images
from promptbench.runs.plan import plan_runs
from promptbench.runs.request import Request
from promptbench.suite import load_suite
from promptbench.sweep.estimate import Calibration
from promptbench.training import numerics
from promptbench.training.files import TrainingOutcome
from promptbench.training.fit import backward, fit
from promptbench.training.numerics import (
    hold_to_bits,
    peak_memory,
    peak_memory_restarts,
    resolve_device,
    restart_peak_memory,
)

RECIPE = pb.Recipe(epochs=3, lr=0.01, batch=4, augment=False, origin="ours")
TRAINED = [name for name in registry.names("methods") if registry.load("methods", name).trains]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_folder(folder)
    return folder


@pytest.fixture(scope="module")
def birds(folder: Path) -> Dataset:
    return open_dataset("folder", {"root": str(folder)})


def trained(name: str, backbone: pb.Backbone, birds: Dataset, in_: str) -> tuple[TrainingOutcome, Method, list[Any]]:
    """A method, how its training went, and what its logits were made of: whether autocast was on, and their dtype."""
    method = pb.create_method(name, backbone, birds.class_names)
    batches = training_batches(backbone, birds, birds.items("train")[:8], batch=4, seed=3, augment=False)
    if method.prepares:
        show_training_images(method, list(batches) * max(1, method.shown_views), seed=3)
    classify, seen = method.classify, []

    def watched(*features: Any) -> Any:
        found = classify(*features)
        seen.append((torch.is_autocast_enabled("cpu"), found.logits.dtype))
        return found

    method.classify = watched  # type: ignore[method-assign]
    return fit(method, RECIPE, batches, len(batches), seed=3, precision=in_), method, seen


@pytest.mark.parametrize("name", slow_but(TRAINED, "coop", "maple"))
def test_bfloat16_stays_near_float32(name: str, tiny: pb.Backbone, birds: Dataset) -> None:
    whole, fine, _ = trained(name, tiny, birds, "32")
    outcome, method, seen = trained(name, tiny, birds, "bf16-mixed")
    assert set(seen) <= {(True, torch.float32)} and (seen or name == "gallop")  # which has a loss of its own
    assert outcome.losses != whole.losses
    for found, wanted in zip(outcome.losses, whole.losses, strict=True):
        assert found == pytest.approx(wanted, rel=0.05, abs=0.1)  # of losses that reach 25 times a distance
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = fine(images).logits, method(images).logits
        assert other.dtype == torch.float32 and (one - other).abs().max() < 0.02 * tiny.logit_scale
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert method(images).logits.dtype == torch.float32


@pytest.mark.slow
def test_images_are_scored_in_float32(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run: another spec and training, the same features, and zero-shot to the bit."""
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    what = ["--backbone", TINY, "--dataset", f"folder:{folder}", "--shots", "2", "--threads", "1", "--seeds", "1"]
    what += ["--protocol", "base2new"]
    call = ["run", "--method", "zeroshot", "coop", *what, "--set", "coop.epochs=2", "coop.batch=4", "--device", "cpu"]
    records, cached = [], []
    for name in ("32", "bf16-mixed"):
        assert main([*call, "--precision", name, "--output", str(tmp_path / name), "--save-predictions"]) == 0
        files = sorted((tmp_path / name / "results").rglob("*.json"))
        found = [json.loads(path.read_text()) for path in files]
        records.append({record["spec"]["method"] + record["spec"]["preset"]: record for record in found})
        cached.append({path.name for path in (tmp_path / "cache").rglob("*.safetensors")})
    plain, mixed = records
    assert cached[0] == cached[1] and cached[0]
    assert {record["spec"]["precision"] for record in mixed.values()} == {"bf16-mixed"}
    assert mixed["zeroshot"]["metrics"] == plain["zeroshot"]["metrics"]
    assert mixed["coop"]["conditions"]["training_key"] != plain["coop"]["conditions"]["training_key"]
    for in_ in ("32", "bf16-mixed"):
        (path,) = (tmp_path / in_ / "trainings").glob("*.safetensors")
        assert load_file(path)["ctx"].dtype == torch.float32
    told = main(["eval", "--run", str(next((tmp_path / "bf16-mixed").rglob("coop-*.json"))), "--protocol", "few_shot"])
    assert told == 0  # its training is found


def test_half_precision_takes_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("16-mixed", "authors"):
        assert main(["run", "--method", "coop", "--device", "cpu", "--precision", name]) == 2
        said = capsys.readouterr().err
        assert f"--precision {name} trains in half precision, which takes a GPU; use bf16-mixed or 32 on a CPU." in said
        assert len(said.splitlines()) == 1
    assert main(["tune", "--method", "coop", "--device", "cpu", "--precision", "authors"]) == 2
    assert main(["run", "--method", "coop", "--precision", "16"]) == 2
    assert "bf16-mixed" in capsys.readouterr().err


def request(**changes: Any) -> Request:
    suite = load_suite("mini").with_datasets("base2new", ["mini_fabrics"])
    return replace(Request.of(suite=suite, methods="coop", seeds=1, device="cpu", companions=False), **changes)


def test_names_of_runs_follow_from_what_is_asked_for() -> None:
    (plain,), (again,) = plan_runs(request()), plan_runs(request(precision="32", deterministic=False))
    assert plain.spec.digest == again.spec.digest
    others: list[dict[str, Any]] = [
        {"precision": "bf16-mixed"},
        {"precision": "authors", "device": "cuda:1"},
        {"device": "cuda"},
        {"deterministic": True},
    ]
    found = [plan_runs(request(**changes))[0].spec for changes in others]
    assert len({plain.spec.digest, *(spec.digest for spec in found)}) == 5
    assert found[1].device == "cuda"  # whichever of them


def test_what_authors_ran_is_known_of_published_code_alone() -> None:
    for label in ("dpl", "mutual"):
        with pytest.raises(UsageError, match=f"no code of {label}'s authors was published"):
            plan_runs(Request.of(methods=label, precision="authors", device="cuda", elsewhere=True, companions=False))


@pytest.fixture
def half_ctx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.load("methods", "coop"), "authors_half", ("ctx",))


def test_authors_keep_some_tensors_in_half_precision(half_ctx: None, tiny: pb.Backbone, birds: Dataset) -> None:
    """Their steps are rounded as theirs were; here on a CPU, whose autocast has float16 as well."""
    method = pb.create_method("coop", tiny, birds.class_names)
    batches = training_batches(tiny, birds, birds.items("train")[:8], batch=4, seed=3, augment=False)
    loss, seen = method.loss, []

    def watched(images: Any, labels: Any) -> Any:
        seen.append((method.ctx.dtype, torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")))
        found = loss(images, labels)
        assert found["ce"].dtype == torch.float32
        return found

    method.loss = watched  # type: ignore[method-assign]
    outcome = fit(method, RECIPE, batches, len(batches), seed=3, precision="authors")
    assert set(seen) == {(torch.float16, torch.float16, True)}
    assert method.ctx.dtype == torch.float32 and torch.equal(method.ctx, method.ctx.half().float())
    assert method.ctx.grad is None  # it would be half precision still
    whole, fine, _ = trained("coop", tiny, birds, "32")
    assert outcome.losses[-1] == pytest.approx(whole.losses[-1], rel=0.02)
    assert not torch.equal(fine.ctx, fine.ctx.half().float())


def test_who_trained_with_scaled_losses_still_does(monkeypatch: pytest.MonkeyPatch, tiny: pb.Backbone) -> None:
    method = pb.create_method("coop", tiny, ["a", "b"])
    assert set(numerics.of_trainer("authors", method, "cuda")) == {"plugins"}
    monkeypatch.setattr(type(method), "authors_half", None)
    assert numerics.of_trainer("authors", method, "cuda") == {"precision": "16-mixed"}
    with numerics.halved("authors", method):
        assert method.ctx.dtype == torch.float32


def test_half_tensors_are_float32_after_a_failure(half_ctx: None, tiny: pb.Backbone) -> None:
    method = pb.create_method("coop", tiny, ["a", "b"])
    with pytest.raises(RuntimeError, match="stop"), numerics.halved("authors", method):
        assert method.ctx.dtype == torch.float16
        raise RuntimeError("stop")
    assert method.ctx.dtype == torch.float32


@pytest.mark.slow
def test_the_accuracy_of_mini_hardly_moves(tmp_path: Path) -> None:
    call = ["run", "--method", "coop", "--dataset", "mini_fabrics", "--seeds", "1", "--shots", "4", "--threads", "1"]
    call += ["--set", "coop.epochs=5", "coop.batch=8", "--device", "cpu"]
    metrics = []
    for name in ("32", "bf16-mixed"):
        assert main([*call, "--precision", name, "--output", str(tmp_path / name)]) == 0
        metrics.append(json.loads(next((tmp_path / name).rglob("coop-*.json")).read_text())["metrics"])
    for metric in ("base/accuracy", "new/accuracy"):
        assert metrics[0][metric] > 15  # of ten classes, by halves
        assert metrics[1][metric] == pytest.approx(metrics[0][metric], abs=4)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("gpu", "--device takes cpu, cuda, cuda:N or auto, not 'gpu'."),
        ("cuda:x", "--device takes cpu, cuda, cuda:N or auto, not 'cuda:x'."),
        ("cuda:2", "--device cuda:2: torch sees 2 CUDA devices here, cuda:0 to cuda:1."),
    ],
)
def test_devices_that_are_not_there(wanted: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError) as error:
        resolve_device(wanted)
    assert str(error.value).startswith(said)
    assert resolve_device("cuda:1") == "cuda:1" and resolve_device("auto") == "cuda"
    assert resolve_device("cpu") == "cpu"


def test_memory_and_time_are_those_of_the_gpu_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"cuda:1": 2**20}.__getitem__)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", waited.append)
    assert peak_memory("cuda:1") == 2**20 and peak_memory("cpu") > 2**20
    assert peak_memory_restarts("cuda:1")
    restart_peak_memory("cuda:1")
    assert waited == ["cuda:1"]
    waited.clear()
    session: Any = SimpleNamespace(device="cuda:1")
    assert Calibration(session, session)._seconds(lambda: None) >= 0 and waited == ["cuda:1", "cuda:1"]


def test_torch_is_held_to_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        hold_to_bits(True)
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        hold_to_bits(False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("name", slow_but(TRAINED, "coop"))
def test_gradients_in_bfloat16_point_where_those_in_float32_do(name: str, tiny: pb.Backbone) -> None:
    made = specimen(registry.load("methods", name), tiny).fresh()
    images, labels = batch(tiny)
    found: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []
    for mixed in (False, True):
        method = made.moved()
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            losses = backward(method, images, labels)
        gradients = [parameter.grad.flatten() for parameter in method.parameters() if parameter.grad is not None]
        found.append((losses, torch.cat(gradients).double()))
    (whole, fine), (mixed_losses, coarse) = found
    assert not torch.equal(fine, coarse) and coarse.isfinite().all()
    assert torch.nn.functional.cosine_similarity(fine, coarse, dim=0) > 0.98
    for term, loss in mixed_losses.items():
        assert loss.isfinite() and float(loss) == pytest.approx(float(whole[term]), rel=0.05, abs=0.05)
