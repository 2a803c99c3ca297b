"""`table --from-predictions`: what stored logits say is what the results hold, or is said to differ."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest
from shared_paths import TINY

from promptbench.cli.main import main
from promptbench.results.result import read_results

CALL = ("table", "--from-predictions", "--results")


@pytest.fixture(scope="module")
def output(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zero-shot from base to new classes, two templates, with predictions and a temperature; halves are drawn."""
    folder = tmp_path_factory.mktemp("runs")
    what = ["--backbone", TINY, "--dataset", f"folder:{birds}", "--shots", "1", "--threads", "1", "--seeds", "1"]
    what += ["--protocol", "base2new"]
    call = [
        "run",
        "--method",
        "zeroshot",
        "zeroshot@generic",
        *what,
        "--save-predictions",
        "--temperature",
        "--split",
        "random:2",
    ]
    assert main([*call, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(output: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(output, tmp_path / "runs"))


def predictions(folder: Path) -> list[Path]:
    return sorted((folder / "predictions").rglob("*.safetensors"))


def results(folder: Path) -> list[Path]:
    return sorted((folder / "results").rglob("*.json"))


def changed(path: Path, metric: str, value: float | None) -> None:
    """Store another value of a metric, or none."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["metrics"].pop(metric)
    stored["metrics"] |= {} if value is None else {metric: value}
    path.write_text(json.dumps(stored), encoding="utf-8")


def test_what_was_run_is_found_again_and_makes_the_same_table(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--results", str(output)]) == 0
    plain = capsys.readouterr().out
    assert main([*CALL, str(output)]) == 0
    again = capsys.readouterr().out
    number = sum(len(result.metrics) for result in read_results(output))
    said = f"\nComputed again from stored predictions: {number} metrics of 2 results, no difference.\n"
    assert again == plain + said and number >= 12
    metrics = read_results(output)[0].metrics
    assert {"open_world_auc", "temperature", "new/ece_scaled", "joint/nll"} <= set(metrics)


def test_a_metric_that_does_not_follow_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was = read_results(folder)[0]
    changed(results(folder)[0], "base/ece", was.metrics["base/ece"] + 1e-5)
    changed(results(folder)[1], "joint/accuracy", 1.5)
    changed(results(folder)[1], "new/ece", None)  # as in a result of a version that did not measure it
    assert main([*CALL, str(folder)]) == 1
    said = capsys.readouterr().out
    assert "2 differences:" in said and f"{was.name}, base/ece: " in said
    assert "joint/accuracy: 1.5 is stored, " in said and "new/ece" not in said


def test_a_metric_that_predictions_do_not_give_differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results(folder)[0]
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["metrics"]["far/accuracy"] = 50.0
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert main([*CALL, str(folder)]) == 1
    assert "far/accuracy: 50 is stored, nothing follows from the predictions" in capsys.readouterr().out


def test_results_without_predictions_are_left_out_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = predictions(folder)
    one.unlink()
    packed = other.with_name(f"{other.name}.xz")
    packed.write_bytes(lzma.compress(other.read_bytes()))
    other.unlink()
    assert main([*CALL, str(folder), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    left_out = one.relative_to(folder / "predictions").with_suffix("").as_posix()
    assert f"Left out, without stored predictions: 1 ({left_out})." in err
    assert "metrics of 1 results, no difference." in err and "Computed" not in out
    packed.unlink()
    assert main([*CALL, str(folder)]) == 2
    assert "No result has stored predictions; make some with" in capsys.readouterr().err


def test_packed_predictions_say_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "pack", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("packed 2 files, ") and not predictions(folder)
    assert main([*CALL, str(folder)]) == 0
    assert "metrics of 2 results, no difference." in capsys.readouterr().out
    assert main(["results", "pack", str(folder)]) == 2
    assert "There are no predictions to pack in" in capsys.readouterr().err


def test_logits_in_half_precision_give_accuracy_and_nearly_calibration(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", "pack", "--half", str(folder)]) == 0
    capsys.readouterr()
    assert main([*CALL, str(folder)]) == 0
    assert "With logits in half precision: 2; their accuracy is exact" in capsys.readouterr().out
    was = read_results(folder)[0]
    changed(results(folder)[0], "base/accuracy", was.metrics["base/accuracy"] + 1e-5)
    changed(results(folder)[1], "base/ece", read_results(folder)[1].metrics["base/ece"] + 500)
    assert main([*CALL, str(folder)]) == 1
    assert "2 differences:" in capsys.readouterr().out
