"""A process that is stopped, replaced by another and continued: it writes nothing any more, and leaves nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_paths import TINY

from promptbench.cli.main import main
from promptbench.runs.listener import Work
from promptbench.storage.claims import Claims
from promptbench.sweep import loop

STEPS = ("--set", "coop.epochs=3", "coop.batch=4")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")
    monkeypatch.setattr(loop, "LOOK_AGAIN", 0.01)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def call(birds: Path) -> list[str]:
    """A training of three epochs."""
    what = ["--backbone", TINY, "--dataset", f"folder:{birds}", "--shots", "2", "--threads", "1", "--seeds", "1"]
    what += ["--protocol", "base2new"]
    return ["run", "--method", "coop", *what, *STEPS]


@pytest.fixture(scope="module")
def whole(call: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the training leaves where nobody disturbs it."""
    output = tmp_path_factory.mktemp("whole")
    assert main([*call, "--save-predictions", "--output", str(output)]) == 0
    return output


def files(output: Path) -> set[str]:
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}


def replaced(output: Path, whole: Path, parts: tuple[str, ...]) -> None:
    """As if another process had found all claims stale, and finished what they were for, while this one was stopped."""
    for claim in (output / "claims").glob("*.claim"):
        if json.loads(claim.read_bytes().partition(b"\n")[0])["about"]["kind"] != "call":
            claim.unlink()
    for part in parts:
        shutil.copytree(whole / part, output / part, dirs_exist_ok=True)
    for note in (output / "trainings").glob("*.partial"):
        note.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [1, 2, 3])
def test_a_training_that_was_taken_over_leaves_no_note(
    stopped_at: int, call: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process hears of it with its next sign of life only, two seconds later."""
    step, begun = Work.step, []

    def stopped(self: Work, done: int, total: int, loss: float) -> None:
        step(self, done, total, loss)
        begun.append(done)
        if begun == [*range(1, stopped_at + 1)]:
            replaced(tmp_path, whole, ("results", "trainings"))

    monkeypatch.setattr(Work, "step", stopped)
    monkeypatch.setattr("promptbench.runs.train.save_training", lambda *_: pytest.fail("it wrote over the other's"))
    assert main([*call, "--output", str(tmp_path)]) == 0
    assert files(tmp_path) == {name for name in files(whole) if not name.startswith("predictions")}
    assert begun == [*range(1, stopped_at + 1)]


@pytest.mark.slow
def test_a_run_that_was_taken_over_writes_no_predictions(
    call: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptbench.runs import run as execution

    evaluate = execution.evaluate

    def stopped(*arguments: Any) -> Any:
        found = evaluate(*arguments)
        replaced(tmp_path, whole, ("results", "trainings", "predictions"))
        return found

    monkeypatch.setattr(execution, "evaluate", stopped)
    monkeypatch.setattr(execution, "save_predictions", lambda *_: pytest.fail("it wrote over the other's"))
    assert main([*call, "--save-predictions", "--output", str(tmp_path)]) == 0
    assert files(tmp_path) == files(whole)


@pytest.mark.slow
def test_a_run_that_was_taken_over_does_not_fail(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as for a file server that gave it up while it was stopped; here the other process gives it up, too."""
    from promptbench.runs import run as execution

    evaluate, stops = execution.evaluate, ["once"]

    def stopped(*arguments: Any) -> Any:
        if stops:
            stops.clear()
            replaced(tmp_path, tmp_path, ())
            raise TimeoutError("nobody answers")
        return evaluate(*arguments)

    monkeypatch.setattr(execution, "evaluate", stopped)
    assert main([*call, "--output", str(tmp_path)]) == 0
    assert not stops and not list(tmp_path.rglob("*.failed.json"))


def test_a_note_beside_what_was_learned_goes_at_the_end_of_a_call(call: list[str], whole: Path, tmp_path: Path) -> None:
    """Such as of a process that was stopped between its look at the claim and its writing; not one that is in use."""
    output = tmp_path / "runs"
    shutil.copytree(whole, output)
    (training,) = (output / "trainings").iterdir()
    note, other = training.with_suffix(".partial"), output / "trainings" / "other.partial"
    for path in (note, other):
        path.touch()
    with Claims(output / "claims") as claims:
        assert claims.take(training.stem, {"kind": "training"}) is not None
        assert main([*call, "--output", str(output)]) == 0 and note.exists()
    assert main([*call, "--output", str(output)]) == 0
    assert other.exists() and not note.exists() and not (output / "claims").exists()
