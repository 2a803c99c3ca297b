"""The script for GPUs, as far as a machine without one can do it: for real on the CPU, and on a pretended GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from promptbench.benchmarks.gpu import __main__ as script
from promptbench.benchmarks.gpu import agreement, speed
from promptbench.benchmarks.gpu.part import Part, Row, Setting, carry_out, case, passed
from promptbench.benchmarks.speed.measure import OF_RECIPES
from promptbench.benchmarks.speed.steps import check_equal
from short_cases import slow_but

from promptbench import registry
from promptbench.checks.plugin.pretended import DEVICE, PretendedGpu

ON_CPU = Setting("cpu", short=True)
METHODS = registry.names("methods")


@pytest.mark.parametrize("name", slow_but(METHODS, "coop"))
def test_a_pretended_gpu_agrees_with_the_cpu(name: str) -> None:
    """So nothing in the comparison itself is tied to a device."""
    agreement.mini()
    with PretendedGpu():
        row = case(name, lambda: agreement.beside_the_cpu(str(DEVICE), name))
    assert row["passed"], row
    assert {row[figure] for figure in row["limits"]} == {0.0}


def test_what_does_not_agree_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "farthest", lambda *_, **__: 0.01)
    assert not case("coop", lambda: agreement.beside_the_cpu("cpu", "coop"))["passed"]
    assert agreement.within({"logits": float("nan")}, {"logits": 1.0})["passed"] is False


@pytest.mark.parametrize("label", slow_but(OF_RECIPES, "taskres"))
def test_plain_steps_run_where_the_backbone_is(label: str) -> None:
    agreement.mini()
    with PretendedGpu():
        found = check_equal(label, agreement.on(str(DEVICE), label).backbone, classes=3, batch=2)
    assert set(found) == {"logits", "gradients"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "left_out"),
    [
        (agreement.in_float32, 0),
        (agreement.in_lower_precision, 2),
        (agreement.repeated, 0),
        (agreement.without_waiting, 1),
        (speed.steps, 0),
        (speed.launches, 1),
        (speed.compilation, 1),
    ],
)
def test_a_part_in_short_on_a_cpu(rows: Any, left_out: int, tmp_path: Path, as_it_was: None) -> None:
    path = tmp_path / "part.json"
    carry_out(Part("", 60, rows), ON_CPU, path)
    record = json.loads(path.read_text())
    assert passed(record), record
    assert [row.get("left_out") for row in record["rows"] if row["passed"] is None] == ["needs CUDA"] * left_out


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What parts change in their own process is put back."""
    from promptbench.runs.session import as_it_was
    from promptbench.training import fit

    monkeypatch.setattr(fit, "LOOK", fit.LOOK)
    with as_it_was():
        yield


@pytest.mark.slow
def test_the_whole_script_in_short_on_a_cpu(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "promptbench.benchmarks.gpu", "-o", str(tmp_path), "--device", "cpu"]
    done = subprocess.run([*call, "--part", "waits", "run", "two"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report["parts"]) == ["waits", "run", "two"] and report["machine"]["device"] == "cpu"
    assert 0 < report["parts"]["run"]["rows"][0]["accuracy"]["coop"]["base/accuracy"] <= 100
    assert done.stdout.splitlines()[0].startswith("waits: passed (1 rows, 1 left out")


def test_a_part_that_fails_or_hangs_is_recorded_and_the_next_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(command: list[str], timeout: float, **_: Any) -> Any:
        name = command[command.index("--one") + 1]
        if name == "waits":
            raise subprocess.TimeoutExpired(command, timeout)
        if name == "repeats":
            carry_out(Part("", 1, rows), ON_CPU, tmp_path / "repeats.json")
        return subprocess.CompletedProcess(command, int(name == "agreement"), stderr="no room\n")

    def rows(setting: Setting) -> Iterator[Row]:
        yield case("whole", dict)
        yield case("broken", lambda: {"figure": 1 / 0})

    monkeypatch.setattr(script.subprocess, "run", ended)
    monkeypatch.setattr(script, "machine", lambda setting: {})
    assert script.checked(ON_CPU, tmp_path, ["agreement", "waits", "repeats"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("agreement: FAILED: ended with 1: no room")
    assert said[1].startswith("waits: FAILED: not done within 600 s")
    assert said[2].startswith("repeats: FAILED: broken (2 rows, 0 left out")
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]["repeats"]
    assert found["rows"][1]["error"] == "ZeroDivisionError: division by zero"


def test_rows_outlive_a_part_that_is_ended_by_force(tmp_path: Path) -> None:
    def rows(setting: Setting) -> Iterator[Row]:
        yield case("whole", dict)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(Part("", 1, rows), ON_CPU, tmp_path / "part.json")
    record = json.loads((tmp_path / "part.json").read_text())
    assert [row["what"] for row in record["rows"]] == ["whole"] and not passed(record)


def test_all_parts_take_eight_minutes_at_most() -> None:
    assert sum(part.seconds for part in script.parts().values()) <= 8 * 60


def test_there_has_to_be_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "-o", "never"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert script.main() == 2
    assert "torch sees no CUDA device here; use --device cpu" in capsys.readouterr().err
    assert not Path("never").exists()
