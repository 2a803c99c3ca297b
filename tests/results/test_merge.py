"""`promptbench results merge`: nothing is chosen silently, replaced, or written elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from promptbench.cli.main import main
from promptbench.results.result import (
    Result,
    Spec,
    predictions_path,
    read_result,
    result_path,
    write_failure,
    write_result,
)

KEY = "ab" * 32
Merge = Callable[..., tuple[int, str]]


def spec_of(**changes: Any) -> Spec:
    facts: dict[str, Any] = {
        "suite": "mini",
        "protocol": "base2new",
        "dataset": "birds",
        "method": "coop",
        "config": {"n_ctx": 4},
        "recipe": {"epochs": 5},
        "shots": 16,
        "data_seed": 1,
        "train_seed": 1,
        "backbone": "mini",
        "threads": 2,
    }
    return Spec(**{**facts, **changes})


def store(folder: Path, base: float = 80.0, day: int = 1, loss: float = 0.5, key: str = KEY, **spec: Any) -> Path:
    result = Result(
        spec=spec_of(**spec),
        conditions={"training_key": key},
        metrics={"base/accuracy": base},
        versions={},
        commit="",
        created=f"2026-01-0{day}T03:04:05+00:00",
        losses=[{"ce": 1.0}, {"ce": loss}],
    )
    return write_result(folder, result)


def tensors(path: Path, value: float, seconds: str = "1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"prompt": np.full(3, value, dtype=np.float32)}, path, metadata={"seconds": seconds})


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Merge:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        code = main(["results", "merge", *words])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


A, B, OUT = Path("a"), Path("b"), Path("out")
TRAINING = Path("trainings") / f"{KEY[:32]}.safetensors"


def test_runs_of_several_folders_become_one(merge: Merge) -> None:
    shared = store(A)
    assert store(B).read_bytes() == shared.read_bytes()
    store(A, seed := 90.0, data_seed=2)
    store(B, method="maple")
    for folder, seconds in ((A, "1"), (B, "2")):
        tensors(folder / TRAINING, 1.0, seconds)
    tensors(predictions_path(B, spec_of()), 1.0)
    write_failure(A, spec_of(method="vpt"), reason="no memory")
    write_failure(A, spec_of(method="maple"), reason="done by b since")
    code, said = merge("a", "b", "-o", "out")
    assert code == 0
    assert said == ("wrote 3 results, 1 predictions, 1 trainings, 1 failures to out; 0 runs were there already\n")
    assert read_result(result_path(OUT, spec_of(data_seed=2))).metrics["base/accuracy"] == seed
    assert read_result(result_path(OUT, spec_of())) == read_result(shared)
    assert (OUT / TRAINING).read_bytes() == (A / TRAINING).read_bytes()
    assert [json.loads(path.read_text())["reason"] for path in OUT.rglob("*.failed.json")] == ["no memory"]
    before = files(OUT)
    assert merge("a", "b", "-o", "out")[0] == 0 and files(OUT) == before


def test_different_numbers_are_reported_and_not_copied(merge: Merge) -> None:
    first, second = store(A, 80.0), store(B, 81.25)
    tensors(A / TRAINING, 1.0)
    code, said = merge("a", "b", "-o", "out")
    assert code == 1 and not files(OUT)
    assert f"{first.resolve()} and {second.resolve()} are the same run with different numbers" in said
    assert "(largest difference: metric base/accuracy, by 1.25 points)" in said


def test_different_losses_are_different_numbers(merge: Merge) -> None:
    store(A)
    store(B, loss=0.75)
    code, said = merge("a", "b", "-o", "out")
    assert code == 1 and "largest difference: loss ce of epoch 2, by 0.25)" in said


@pytest.mark.parametrize("prefer, base", [("first", 80.0), ("newest", 81.0)])
def test_a_preference_settles_it(merge: Merge, prefer: str, base: float) -> None:
    store(A, 80.0, day=1)
    store(B, 81.0, day=2)
    for folder, value in ((A, 80.0), (B, 81.0)):
        tensors(folder / TRAINING, value)
    code, said = merge("a", "b", "-o", "out", "--prefer", prefer)
    assert code == 0 and "different numbers" in said
    assert read_result(result_path(OUT, spec_of())).metrics["base/accuracy"] == base
    source = {80.0: A, 81.0: B}[base]
    assert (OUT / TRAINING).read_bytes() == (source / TRAINING).read_bytes()


@pytest.mark.parametrize("folders", [["a", "b"], ["b"]])
def test_what_is_there_stays(merge: Merge, folders: list[str]) -> None:
    store(A, 80.0, day=1)
    store(B, 81.0, day=2)
    store(B, method="maple")
    before = files(A)
    code, said = merge(*folders, "-o", "a", "--prefer", "newest")
    assert code == 1 and "is there already and stays; merge into another folder." in said
    after = files(A)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1


def test_other_learned_tensors_keep_a_run_out(merge: Merge) -> None:
    store(A)
    store(B, protocol="few_shot")
    tensors(A / TRAINING, 1.0)
    tensors(B / TRAINING, 2.0)
    code, said = merge("a", "b", "-o", "out")
    assert code == 1 and "differ from" in said
    assert [path.parent.parent.name for path in (OUT / "results").rglob("*.json")] == ["base2new"]


def test_damaged_files_are_named_and_skipped(merge: Merge) -> None:
    store(A)
    damaged = A / "results" / "half.json"
    damaged.write_text('{"schema": 1, "spec"')
    failure = A / "results" / "x.failed.json"
    failure.write_text("[]")
    for path in (A / TRAINING, predictions_path(A, spec_of())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff" * 20)
    code, said = merge("a", "-o", "out")
    assert code == 1 and said.count("promptbench: ") == 4
    assert all(str(path.resolve()) in said for path in (damaged, failure, A / TRAINING, predictions_path(A, spec_of())))
    assert list(files(OUT)) == [result_path(Path(), spec_of()).as_posix()]


def test_names_inside_of_files_lead_nowhere_else(merge: Merge, tmp_path: Path) -> None:
    hostile = store(A, protocol="../../..", dataset="/etc", method="..\\x", key="../" * 11)
    hostile.rename(A / "results" / "moved.json")
    (A / "trainings").mkdir()
    tensors(A / "trainings" / "evil name.safetensors", 1.0)
    write_failure(A, spec_of(protocol="..", method="vpt"), reason="x")
    outside = {name for name in files(tmp_path) if not name.startswith("out/")}
    assert merge("a", "-o", "out")[0] == 0
    assert {name for name in files(tmp_path) if not name.startswith("out/")} == outside
    assert len(files(OUT)) == 2 and all(name.startswith("results/") for name in files(OUT))


def test_mistakes_are_one_sentence(merge: Merge) -> None:
    assert merge("nowhere", "-o", "out") == (
        2,
        "promptbench: error: There is no folder nowhere; name folders that `promptbench run` wrote to.\n",
    )
    A.mkdir()
    Path("taken").write_text("")
    code, said = merge("a", "-o", "taken")
    assert code == 2 and "The output folder taken cannot be written" in said


def test_predictions_that_are_there_stay(merge: Merge) -> None:
    for folder, value in ((A, 1.0), (B, 2.0)):
        store(folder)
        tensors(predictions_path(folder, spec_of()), value)
    before = predictions_path(A, spec_of()).read_bytes()
    assert merge("b", "-o", "a")[0] == 0
    assert predictions_path(A, spec_of()).read_bytes() == before != predictions_path(B, spec_of()).read_bytes()
