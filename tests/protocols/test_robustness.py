"""Corrupted test images through the command: the protocol, and `--corrupt` under every other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_paths import TINY

from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.data.corruptions import KINDS, Corruption
from promptbench.data.selection import Selection
from promptbench.protocol import Evaluation, Outcome
from promptbench.protocols.robustness import Robustness
from promptbench.results.result import Result, read_results
from promptbench.runs import train
from promptbench.runs.plan import plan_runs
from promptbench.runs.request import Request, protocols_of
from promptbench.suite import load_suite
from promptbench.training.files import training_key

SHORT = ("--backbone", TINY, "--threads", "1", "--seeds", "1", "--shots", "2", "--set", "coop.epochs=1", "coop.batch=4")


@pytest.fixture
def run(birds: Path, tmp_path: Path) -> Any:
    """A function that runs coop on a user's images, and returns the exit code."""

    def call(*words: str) -> int:
        what = ("--method", "coop", "--dataset", f"folder:{birds}", "--output", str(tmp_path))
        protocol = () if "--protocol" in words else ("--protocol", "base2new")
        return main(["run", *what, *SHORT, *protocol, *words])

    return call


def of(folder: Path, **facts: Any) -> list[Result]:
    """The stored results with these fields of their specs."""
    return [r for r in read_results(folder) if all(getattr(r.spec, name) == value for name, value in facts.items())]


def test_it_evaluates_one_training_under_the_suite_s_corruptions() -> None:
    suite = load_suite("mini")
    (plan,) = Robustness().plan(suite, 1)
    test = Selection(dataset="mini_shapes", split="test")
    assert plan.train == Selection(dataset="mini_shapes", split="train", shots=16)
    assert plan.evaluations[:2] == (
        Evaluation(name="clean", selection=test),
        Evaluation(name="gaussian_noise:3", selection=test, corruption=Corruption("gaussian_noise", 3)),
    )
    assert plan.corruption == "gaussian_noise:3 defocus_blur:3 fog:3 contrast:3 jpeg_compression:3"
    (whole,) = Robustness().plan(load_suite("clip11"), 1)
    assert whole.corruption.split() == [f"{kind}:{severity}" for kind in KINDS for severity in range(1, 6)]
    (own,) = Robustness().plan(replace(suite, corruptions=("snow:1", "frost")), 1)
    assert own.corruption == "snow:1 frost:1 frost:2 frost:3 frost:4 frost:5"
    with pytest.raises(UsageError, match="^Suite 'mini': the corruption snwo: Unknown corruption 'snwo'. Did you mean"):
        Robustness().plan(replace(suite, corruptions=("snwo",)), 1)


def test_a_kind_is_the_mean_of_its_severities_and_the_drop_that_of_kinds() -> None:
    """Four images of two classes: clean all right, snow 3 and 1 of 4, fog 2: 50 and 50, a drop of 50 points."""

    def outcome(right: int) -> Outcome:
        labels = torch.tensor([0, 1, 0, 1])
        shown = torch.where(torch.arange(4) < right, labels, 1 - labels)
        return Outcome(torch.nn.functional.one_hot(shown, 2).float(), labels)

    (plan,) = Robustness().plan(replace(load_suite("mini"), corruptions=("snow:1", "snow:5", "fog:2")), 1)
    rights = {"clean": 4, "snow:1": 3, "snow:5": 1, "fog:2": 2}
    metrics, notes = Robustness().measure({name: outcome(right) for name, right in rights.items()}, plan)
    assert {name: metrics[f"{name}/accuracy"] for name in ("snow:1", "snow:5")} == {"snow:1": 75, "snow:5": 25}
    assert (metrics["snow/accuracy"], metrics["fog/accuracy"], metrics["average/accuracy"]) == (50, 50, 50)
    assert metrics["drop"] == 50 and "average/ece" in metrics and not notes
    found = Robustness().columns("accuracy", sorted(rights), [])
    assert [column.title for column in found] == ["clean", "snow", "fog", "mean of corrupted", "drop"]
    assert [column.lower for column in found] == [False, False, False, False, True]
    assert "drop" not in [column.key for column in Robustness().columns("ece", sorted(rights), [])]


def test_all_protocols_are_all_but_robustness() -> None:
    suite = load_suite("mini")
    assert "robustness" not in protocols_of(suite, ["all"])
    assert list(protocols_of(suite, ["robustness", "all"]))[0] == "robustness"


def test_a_training_is_shared_with_the_protocols_that_transfer() -> None:
    protocols = ["robustness", "domain_generalization", "cross_dataset"]
    runs = plan_runs(Request.of(methods=["coop", "maple"], protocol=protocols, companions=False))
    keys = {(run.spec.label, training_key(run.spec, run.method)) for run in runs}
    assert len(runs) == 6 and len(keys) == 2


@pytest.mark.slow
def test_the_protocol_through_the_command(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--protocol", "robustness", "--corrupt", "gaussian_noise:5", "contrast") == 0
    (result,) = of(tmp_path, method="coop")
    spec, metrics = result.spec, result.metrics
    assert spec.protocol == "robustness" and spec.shots == 2
    assert spec.corruption == "gaussian_noise:5 contrast:1 contrast:2 contrast:3 contrast:4 contrast:5"
    contrast = sum(metrics[f"contrast:{severity}/accuracy"] for severity in range(1, 6)) / 5
    assert metrics["contrast/accuracy"] == pytest.approx(contrast)
    mean = (metrics["gaussian_noise:5/accuracy"] + contrast) / 2
    assert metrics["average/accuracy"] == pytest.approx(mean)
    assert metrics["drop"] == pytest.approx(metrics["clean/accuracy"] - mean)
    said = capsys.readouterr().out
    assert "| gaussian_noise | contrast | mean of corrupted | drop |" in said
    assert "not ImageNet-C's files: gaussian_noise:5 contrast:1" in said
    assert main(["plot", "robustness", "--results", str(tmp_path), "-o", str(tmp_path / "robustness.png")]) == 0


@pytest.mark.slow
def test_a_corrupted_run_is_a_row_of_its_own_from_the_same_training(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    (clean,) = of(tmp_path, method="coop")
    assert clean.spec.corruption == "" and "corruption" not in clean.spec.naming()
    monkeypatch.setattr(train, "train_method", pytest.fail)
    assert run("--corrupt", "fog:5") == 0
    (foggy,) = of(tmp_path, method="coop", corruption="fog:5")
    assert foggy.conditions["training_key"] == clean.conditions["training_key"] and foggy.name != clean.name
    assert foggy.losses == clean.losses and foggy.metrics != clean.metrics
    assert run() == 0 and of(tmp_path, method="coop", corruption="") == [clean]
    capsys.readouterr()
    assert main(["table", "--results", str(tmp_path), "--method", "coop"]) == 0
    said = capsys.readouterr().out
    assert "CoOp (corruption=none)" in said and "CoOp (corruption=fog:5)" in said
    assert "Test images are corrupted here, and are not ImageNet-C's files: fog at severity 5." in said
    assert main(["table", "--results", str(tmp_path), "--group-by", "corruption"]) == 0


@pytest.mark.slow
def test_a_stored_training_is_evaluated_under_a_corruption(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == 0
    (clean,) = of(tmp_path, method="coop")
    monkeypatch.setattr(train, "train_method", pytest.fail)
    path = tmp_path / "results" / f"{clean.name}.json"
    assert main(["eval", "--run", str(path), "--protocol", "base2new", "--corrupt", "snow:4"]) == 0
    (snowy,) = of(tmp_path, method="coop", corruption="snow:4")
    assert snowy.spec == replace(clean.spec, corruption="snow:4")
    assert main(["eval", "--run", str(path), "--protocol", "robustness", "--corrupt", "fog:1", "fog:5"]) == 0
    (robust,) = of(tmp_path, method="coop", protocol="robustness")
    assert robust.spec.corruption == "fog:1 fog:5" and robust.spec.trained_by == "base2new"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gausian_noise:3"], "--corrupt gausian_noise:3: Unknown corruption 'gausian_noise'. Did you mean"),
        (["fog:6"], "--corrupt fog:6: a severity is 1, 2, 3, 4 or 5; write fog:3, for instance."),
        (["fog"], "--corrupt takes one kind:severity for the protocol base2new, such as fog:3, not fog."),
        (["fog:1", "fog:2"], "--corrupt takes one kind:severity for the protocol base2new, such as fog:3, not fog:1 f"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--corrupt", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"promptbench: error: {says}")


def test_corrupted_figures_are_never_judged_by_papers() -> None:
    from promptbench.results.papers import find, load, matches

    (first, *_) = find(load(), label="zeroshot", protocol="base2new", dataset="dtd", metric="base/accuracy", score="")
    request = Request.of(methods="zeroshot", suite="clip11", datasets="dtd", seeds=1, corrupt="fog:3")
    (planned,) = plan_runs(request)
    made = {
        "conditions": {},
        "metrics": {},
        "cost": {},
        "versions": {},
        "commit": "",
        "created": "2026-01-02T03:04:05Z",
    }
    result = Result(spec=planned.spec, **made)
    assert matches(result, first) == (False, "images were corrupted here")
    assert matches(replace(result, spec=replace(planned.spec, corruption="")), first)[0]
