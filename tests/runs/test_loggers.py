"""`--logger`: what the loggers are told, and that nobody's numbers depend on them."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import make_fake
import pytest
import torch
from safetensors.torch import load_file

from promptbench.cli.main import main
from promptbench.results.result import Result, Spec, read_results
from promptbench.runs.listener import log_folder, tracked

SPEC = Spec(
    suite="mini",
    protocol="base2new",
    dataset="birds",
    method="coop",
    shots=2,
    data_seed=1,
    train_seed=1,
    backbone="mini",
    threads=1,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_name: str) -> Callable[..., Path]:
    """Trains CoOp for a moment on a user's own images, with more flags if need be."""
    birds = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_folder(birds)

    def call(name: str, *flags: str) -> Path:
        output = tmp_path_factory.getbasetemp() / name
        what = ["--backbone", tiny_name, "--dataset", f"folder:{birds}", "--shots", "2", "--threads", "1"]
        what += ["--protocol", "base2new"]
        what += ["--method", "coop", "--seeds", "1", "--set", "coop.epochs=2", "coop.batch=2"]
        assert main(["run", *what, *flags, "--output", str(output)]) == 0
        return output

    return call


def only(output: Path) -> Result:
    (result,) = (result for result in read_results(output) if result.spec.method == "coop")
    return result


@pytest.mark.slow
def test_the_csv_logger_tells_steps_and_metrics_and_changes_nothing(run: Callable[..., Path]) -> None:
    plain, logged = run("plain"), run("logged", "--logger", "csv")
    one, other = only(plain), only(logged)
    assert one.spec == other.spec and one.losses == other.losses and one.metrics == other.metrics
    (tensors,), (again,) = ([*folder.glob("trainings/*.safetensors")] for folder in (plain, logged))
    assert tensors.name == again.name
    learned, repeated = load_file(tensors), load_file(again)
    assert learned.keys() == repeated.keys() and all(torch.equal(learned[key], repeated[key]) for key in learned)

    with (log_folder(logged, other.spec) / "metrics.csv").open() as file:
        *steps, last = csv.DictReader(file)
    assert not (plain / "logs").exists()
    assert [step["step"] for step in steps] == ["1", "2", "3", "4"]  # four images by two, twice
    assert [step["epoch"] for step in steps] == ["1.0", "1.0", "2.0", "2.0"]
    for epoch, terms in enumerate(other.losses):
        seen = [float(step["loss/ce"]) for step in steps[2 * epoch : 2 * epoch + 2]]
        assert sum(seen) / 2 == pytest.approx(terms["ce"], rel=1e-6)
        assert [float(step["loss"]) for step in steps[2 * epoch : 2 * epoch + 2]] == seen
    assert float(steps[0]["lr"]) == 1e-5  # warm-up
    assert float(steps[-1]["lr"]) == other.spec.recipe["lr"]  # the first epoch of the cosine
    assert {key: float(last[key]) for key in other.metrics} == other.metrics


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    assert main(["run", "--method", "coop", "--logger", "csv", name, "--output", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == (
        f"promptbench: error: --logger {name} needs the package {name}; "
        f"install it with `pip install promptbench-clip[{name}]`.\n"
    )
    assert not (tmp_path / "runs").exists()


def test_an_unknown_logger_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--logger", "mlflow"]) == 2
    assert "mlflow" in capsys.readouterr().err


class FakeRun:
    """What wandb's `init` returns."""

    def __init__(self, **given: Any) -> None:
        self.given, self.logged, self.config, self.ended = given, [], self, None  # type: ignore[var-annotated]

    def update(self, values: Any, **options: Any) -> None:
        self.spec = values

    def log(self, values: Any) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs of a wandb that writes nothing."""
    from pytorch_lightning.loggers import wandb as of_lightning

    runs: list[FakeRun] = []

    def init(**given: Any) -> FakeRun:
        runs.append(FakeRun(**given))
        return runs[-1]

    for name in ("wandb", "wandb.sdk", "wandb.sdk.lib", "wandb.wandb_run"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["wandb"].__dict__.update(init=init, run=None)
    sys.modules["wandb.sdk.lib"].__dict__.update(RunDisabled=type("RunDisabled", (), {}))
    sys.modules["wandb.wandb_run"].__dict__.update(Run=type("Run", (), {}))
    monkeypatch.setattr(of_lightning, "_WANDB_AVAILABLE", True)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return runs


def test_wandb_is_offline_and_every_run_is_one_of_its_own(wandb: list[FakeRun], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no memory"), tracked(["wandb"], tmp_path, SPEC):
        raise RuntimeError("no memory")
    with tracked(["wandb"], tmp_path, SPEC) as tracker:
        tracker.step(3, {"loss": 0.5})
        tracker.finished({"base/accuracy": 80.0})
    failed, done = wandb
    assert (failed.ended, done.ended) == (1, 0)
    assert done.given["mode"] == "offline" and done.given["project"] == "promptbench"
    assert done.given["name"] == SPEC.name and done.given["dir"] == str(log_folder(tmp_path, SPEC))
    assert done.spec["method"] == "coop" and json.dumps(done.spec)
    assert done.logged == [
        {"loss": 0.5, "trainer/global_step": 3},
        {"base/accuracy": 80.0, "trainer/global_step": 3},
    ]


def test_the_environment_may_send_wandb_online(
    wandb: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with tracked(["wandb"], tmp_path, SPEC):
        pass
    assert wandb[0].given["mode"] == "online"


def test_no_logger_writes_nothing(tmp_path: Path) -> None:
    with tracked([], tmp_path, SPEC) as tracker:
        tracker.finished({"base/accuracy": 80.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_has_its_events(tmp_path: Path) -> None:
    with tracked(["tensorboard"], tmp_path, SPEC) as tracker:
        tracker.step(1, {"loss": 0.5})
        tracker.finished({"base/accuracy": 80.0})
    assert list(log_folder(tmp_path, SPEC).glob("events.out.tfevents.*"))
