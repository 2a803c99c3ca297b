"""A method that changes everything in its process leaves it as it was, and the next method's numbers with it."""

from __future__ import annotations

import json
import locale
import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import make_fake
import numpy as np
import pytest
import torch
from shared_paths import TINY

import promptbench as pb
from promptbench.cli.flags import request_of
from promptbench.cli.main import main, parser

pytestmark = pytest.mark.usefixtures("no_plugins")

PLUGIN = '''"""Changer: it changes everything.

A. Author, "Changer", 2026, arXiv:2601.00001.
"""

import locale
import logging
import os
import random
import signal
import sys
import warnings

import numpy as np
import torch

from promptbench.methods.coop import CoOp


class Changer(CoOp):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        change()

    def on_epoch_end(self, epoch, epochs):
        change()

    def diagnostics(self, *given):
        change(torch_too=True)
        return super().diagnostics(*given)


def change(torch_too=False):
    os.makedirs("elsewhere", exist_ok=True)
    os.chdir("elsewhere")
    os.environ["PROMPTBENCH_TEST"] = "1"
    os.environ.pop("HOME", None)
    locale.setlocale(locale.LC_ALL, "C")
    random.seed(1)
    np.random.seed(1)
    np.seterr(all="raise")
    sys.path.insert(0, "/nowhere")
    sys.argv = ["changed"]
    sys.setrecursionlimit(5000)
    sys.excepthook = print
    if sys.stdout is not None:
        sys.stdout.close()
    sys.stdout = sys.stderr = None
    logging.disable(logging.CRITICAL)
    logging.getLogger("promptbench").setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(logging.NullHandler())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.manual_seed(1)
    if torch_too:
        change_torch()


def change_torch():
    backends = torch.backends
    warnings.simplefilter("error")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.autograd.set_detect_anomaly(True)
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)
    torch.inference_mode().__enter__()
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    backends.cudnn.benchmark = not backends.cudnn.benchmark
    backends.cudnn.deterministic = backends.cudnn.allow_tf32 = backends.cudnn.enabled = False
    backends.mkldnn.enabled = False
    backends.cuda.matmul.allow_tf32 = True
    backends.cuda.enable_flash_sdp(False)
    if hasattr(backends, "fp32_precision"):
        backends.fp32_precision = "tf32"
        backends.mkldnn.conv.fp32_precision = "bf16"
    torch.set_default_device("meta")
    with open(f"{os.path.dirname(__file__)}/changed", "a") as file:
        file.write("once\\n")
'''
SETTINGS = {"changer.epochs": 2, "changer.batch": 4, "coop.epochs": 2, "coop.batch": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("given")
    make_fake.make_folder(found / "birds")
    (found / "changer.py").write_text(PLUGIN)
    return found


@pytest.fixture
def what(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `pb.run` is asked for, with an output folder that is named from the current one."""
    monkeypatch.chdir(tmp_path)
    data = {"datasets": f"folder:{folder / 'birds'}", "backbone": TINY, "shots": 2, "seeds": [1], "threads": 1}
    data["protocol"] = "base2new"
    return {**data, "settings": SETTINGS, "plugins": folder / "changer.py", "progress": False}


def state() -> dict[str, Any]:
    """What a run may change."""
    of = torch.backends
    libraries = [of, of.cuda.matmul, *(getattr(of.cudnn, name, of) for name in ("conv", "rnn"))]
    libraries += [getattr(of.mkldnn, name, of) for name in ("matmul", "conv", "rnn")]
    return {
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "random": random.getstate(),
        "numpy": [repr(part) for part in np.random.get_state()],
        "errors": np.geterr(),
        "warnings": list(warnings.filters),
        "path": list(sys.path),
        "sys": [sys.argv, sys.getrecursionlimit(), sys.excepthook, sys.stdout, sys.stderr],
        "logging": [logging.root.manager.disable, logging.getLogger("promptbench").level, list(logging.root.handlers)],
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "generator": torch.get_rng_state().tolist(),
        "defaults": [torch.get_default_dtype(), torch.empty(0).device, torch.get_num_threads()],
        "bits": [torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()],
        "gradients": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
        "autocast": [torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")],
        "denormal": float(torch.tensor([1e-310], dtype=torch.float64).mul(1.0)),
        "cudnn": [of.cudnn.benchmark, of.cudnn.deterministic, of.cudnn.allow_tf32, of.cudnn.enabled],
        "others": [of.mkldnn.enabled, of.cuda.flash_sdp_enabled(), torch.get_float32_matmul_precision()],
        "precision": [getattr(library, "fp32_precision", "") for library in libraries],
    }


def differences(before: dict[str, Any]) -> dict[str, Any]:
    now = state()
    return {name: (before[name], now[name]) for name in before if before[name] != now[name]}


def numbers(output: Path, method: str) -> dict[str, Any]:
    """Result files without costs and times, and learned tensors, of a method."""
    found: dict[str, Any] = {}
    for path in (output / "results").rglob(f"{method}-*.json"):
        record = json.loads(path.read_text())
        found[path.name] = {key: record[key] for key in record if key not in ("cost", "created", "commit")}
        training = f"{record['conditions']['training_key'][:32]}.safetensors"
        content = (output / "trainings" / training).read_bytes()  # the head holds the seconds
        found[training] = content[8 + int.from_bytes(content[:8], "little") :]
    return found


def changed(folder: Path) -> bool:
    """Whether the method has come to change everything, since this was asked last."""
    note = folder / "changed"
    found = note.exists()
    note.unlink(missing_ok=True)
    return found


def test_a_method_that_changes_everything_reaches_no_other(what: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    alone = {**what, "settings": {"coop.epochs": 2, "coop.batch": 4}}
    pb.run("coop", **alone, output="alone")  # which imports what changes the process for good
    before = state()
    with pytest.raises(pb.RunsFailed, match="changer"):  # its own evaluation does not survive it
        pb.run(["changer", "coop"], **what, output="both")
    assert differences(before) == {} and changed(folder)
    found = numbers(tmp_path / "both", "coop")
    assert len(found) == 2 and found == numbers(tmp_path / "alone", "coop")
    assert list((tmp_path / "both").rglob("changer-*.failed.json")) and not list(tmp_path.rglob("elsewhere/both"))


def test_the_command_puts_all_back_too(
    what: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "run",
        "--method",
        "changer",
        "--protocol",
        "base2new",
        "--dataset",
        what["datasets"],
        "--backbone",
        TINY,
        "--shots",
        "2",
    ]
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, for torch
    words += ["--seeds", "1", "--threads", "1", "--set", "changer.epochs=2", "changer.batch=4"]
    before = state()
    assert main([*words, "--plugin", str(folder / "changer.py"), "--output", "runs"]) == 1 and changed(folder)
    assert differences(before) == {}
    assert "changer birds seed 1: FAILED" in capsys.readouterr().err
    assert list((tmp_path / "runs").rglob("*.failed.json"))


@pytest.mark.parametrize("held", [False, True])
def test_runs_give_back_the_bits_that_they_were_held_to(
    what: dict[str, Any], held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        torch.use_deterministic_algorithms(held)
        before = state()
        pb.run("zeroshot", **{**what, "settings": {}}, deterministic=not held, output="runs")
        assert differences(before) == {}
    finally:
        torch.use_deterministic_algorithms(False)


def test_flags_change_nothing_in_torch(what: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    request_of(parser().parse_args(["run", "--method", "coop", "--deterministic", "--backbone", TINY]))
    assert differences(before) == {}


def test_the_processes_that_follow_know_of_the_workspace(what: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS reads it before it multiplies the first matrices."""
    from promptbench.experiment import Start

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []
    monkeypatch.setattr(Start, "check", lambda *_: seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
    pb.run("zeroshot", **{**what, "settings": {}}, deterministic=True, output="runs")
    assert seen == [":4096:8"] and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
