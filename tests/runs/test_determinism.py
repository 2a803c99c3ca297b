"""One machine and one set of libraries give the same bits on a CPU: whoever does a run, from what, in how many goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from safetensors.torch import load_file
from shared_paths import TINY
from short_cases import slow_but
from torch import Tensor

from promptbench.cli.main import main
from promptbench.runs.listener import Work

METHODS = ("coop", "gallop", "promptsrc")  # cached features, draws in the loss, averages kept over epochs
SHORT = [f"{name}.{setting}" for name in METHODS for setting in ("epochs=3", "batch=3")]
SHORT += ["coop.augment=false", "gallop.augment=false", "promptsrc.epoch_mean=2.0"]
STOPPED_AT = 5  # of 6 steps


Numbers = tuple[dict[str, Any], dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A sweep that takes a moment."""
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_folder(folder)
    words = ["run", "--method", *METHODS, "--backbone", TINY, "--dataset", f"folder:{folder}", "--shots", "3"]
    words += ["--protocol", "base2new"]
    return [*words, "--threads", "1", "--seeds", "1", "--device", "cpu", "--set", *SHORT]


@pytest.fixture(scope="module")
def whole(call: list[str], tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """The numbers of one process that nobody disturbs."""
    output = tmp_path_factory.mktemp("whole")
    assert main([*call, "--output", str(output)]) == 0
    return numbers(output)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def numbers(output: Path) -> Numbers:
    """Results without costs and times, and what was learned, by name."""
    results = {}
    for path in (output / "results").rglob("*.json"):
        record = json.loads(path.read_text())
        results[path.name] = {key: record[key] for key in record if key not in ("cost", "created", "commit")}
    return results, {path.name: load_file(path) for path in (output / "trainings").glob("*.safetensors")}


def same(found: Numbers, wanted: Numbers) -> bool:
    """Whether they are, to the bit."""
    assert found[0].keys() == wanted[0].keys() and found[1].keys() == wanted[1].keys()
    assert len(wanted[1]) == len(METHODS) and all(wanted[1].values())
    return found[0] == wanted[0] and all(
        found[1][file].keys() == learned.keys()
        and all(torch.equal(found[1][file][name], learned[name]) for name in learned)
        for file, learned in wanted[1].items()
    )


@pytest.mark.slow
def test_another_seed_has_other_bits(call: list[str], whole: Numbers, tmp_path: Path) -> None:
    """The comparison would see a difference."""
    assert main([*call, "--train-seed", "2", "--output", str(tmp_path)]) == 0
    results, learned = numbers(tmp_path)
    assert not {*results} & {*whole[0]} and not {*learned} & {*whole[1]}
    (a,), (b,) = (
        [record["losses"] for name, record in part.items() if "coop-" in name] for part in (results, whole[0])
    )
    assert len(a) == len(b) and a != b


@pytest.mark.slow
@pytest.mark.parametrize("cache", slow_but(["anew", "none", "again"], "again"))
def test_with_cached_features_and_without(
    cache: str, call: list[str], whole: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cache != "again":
        monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    if cache == "none":
        monkeypatch.setenv("PROMPTBENCH_CACHE_GB", "0")
    assert main([*call, "--output", str(tmp_path / "runs")]) == 0
    kept = [*(tmp_path / "cache").rglob("*.safetensors")]
    assert bool(kept) == (cache == "anew")
    assert same(numbers(tmp_path / "runs"), whole)


@pytest.mark.slow
def test_stopped_and_gone_on(call: list[str], whole: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training is stopped once, in its last epoch."""
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")
    step, steps = Work.step, dict[str, list[int]]()

    def stopped(self: Work, done: int, total: int, loss: float) -> None:
        step(self, done, total, loss)
        steps.setdefault(self.claim.name, []).append(done)
        if steps[self.claim.name] == [*range(1, STOPPED_AT + 1)]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Work, "step", stopped)
    assert [main([*call, "--output", str(tmp_path)]) for _ in (*METHODS, "end")] == [130] * len(METHODS) + [0]
    assert list(steps.values()) == [[1, 2, 3, 4, 5, 5, 6]] * len(METHODS)
    assert same(numbers(tmp_path), whole)


@pytest.mark.slow
def test_several_at_once(call: list[str], whole: Numbers, tmp_path: Path) -> None:
    assert main([*call, "--jobs", "2", "--output", str(tmp_path)]) == 0
    assert same(numbers(tmp_path), whole)


@pytest.mark.slow
def test_held_to_bits(call: list[str], whole: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the flag changes no number; it is part of the spec all the same."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        assert main([*call, "--deterministic", "--output", str(tmp_path)]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    results, _ = numbers(tmp_path)
    assert all(record["spec"]["deterministic"] for record in results.values()) and not {*results} & {*whole[0]}
    by_name = [{r["spec"]["method"] + r["spec"]["preset"]: r for r in part.values()} for part in (results, whole[0])]
    assert all(by_name[0][name]["metrics"] == record["metrics"] for name, record in by_name[1].items())
    assert all(by_name[0][name]["losses"] == record["losses"] for name, record in by_name[1].items())
