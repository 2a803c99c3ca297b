"""The pages on the open world and on calibration: their findings by hand, through the command."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from promptbench.cli.main import main
from promptbench.metrics.classification import CALIBRATION, harmonic_mean
from promptbench.results.result import Result, write_result
from promptbench.results.spec import Spec

DATASETS = ("mini_neon", "mini_fabrics")


def make(
    metrics: Mapping[str, float], method: str, seed: int, dataset: str, told: str = "generic", **spec: Any
) -> Result:
    trains = method != "zeroshot"
    facts: dict[str, Any] = {
        "suite": "mini",
        "protocol": "base2new",
        "dataset": dataset,
        "method": method,
        "recipe": {"epochs": 5, "origin": "ours"} if trains else {},
        "shots": 16 if trains else 0,
        "data_seed": seed,
        "train_seed": seed,
        "backbone": "mini",
        "threads": 1,
    }
    conditions = {"reconstructed": method == "dpl", "texts_told": told}
    written = {"versions": {}, "commit": "", "created": "2026-01-02T03:04:05+00:00"}
    return Result(spec=Spec(**{**facts, **spec}), conditions=conditions, metrics=metrics, **written)  # type: ignore[arg-type]


def store(folder: Path, method: str, figures: Mapping[int, Mapping[str, float]], **spec: Any) -> None:
    """Results of a method on both datasets, 2 points below and above these figures."""
    for seed, metrics in figures.items():
        for place, dataset in enumerate(DATASETS):
            moved = {key: value + (4 * place - 2 if key != "temperature" else 0) for key, value in metrics.items()}
            write_result(folder, make(moved, method, seed, dataset, **spec))


def page(folder: Path, name: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["evidence", name, "--results", str(folder), *words]) == 0
    return capsys.readouterr().out


def cells(text: str, table: str, method: str) -> list[str]:
    """The cells of a method in the table of that title, behind its text prior."""
    lines = text[text.index(f"### {table}") :].splitlines()
    (line,) = [line for line in lines[2:] if line.startswith(f"| {method} ")][:1]
    return [cell.strip() for cell in line.split("|")[3:-1]]


def open_world(base: float, new: float, pairs: float, joint: float) -> dict[str, float]:
    return {"base/accuracy": base, "new/accuracy": new, "open_world_auc": pairs, "joint/accuracy": joint}


def test_the_open_world_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, "zeroshot", {1: open_world(60, 60, 40, 50), 2: open_world(60, 60, 40, 50)})
    store(tmp_path, "coop", {1: open_world(80, 60, 41, 55), 2: open_world(84, 60, 45, 57)})
    store(tmp_path, "maple", {1: open_world(80, 58, 50, 56), 2: open_world(80, 62, 52, 56)})
    store(tmp_path, "dpl", {1: open_world(90, 90, 90, 90), 2: open_world(90, 90, 90, 90)})
    store(tmp_path, "linear_probe", {1: {"base/accuracy": 90.0}, 2: {"base/accuracy": 90.0}})
    text = page(tmp_path, "open_world", capsys)
    # By H: coop (68.57 and 70), maple (67.25 and 69.86), zero-shot; by pairs maple is 9 and 7 above coop: mean 8,
    # s = sqrt(2), t(0.975, 1) = 12.706, so 12.706 * sqrt(2) / sqrt(2) to either side.
    orders = "2 of 3 rows of the text prior generic stand elsewhere by OpenworldAUC than by H, by 1 place at most"
    assert f"{orders}; MaPLe is first and not CoOp, by " in text
    assert "by +8.0 [-4.7, +20.7] points of OpenworldAUC." in text
    h = (harmonic_mean(80, 60) + harmonic_mean(84, 60)) / 2
    assert cells(text, "H and", "CoOp") == [f"{h:.1f}", "43.0", "56.0", "1", "2", "+3.0 [-22.4, +28.4]"]
    assert cells(text, "H and", "Zero-shot CLIP") == ["60.0", "40.0", "50.0", "3", "3", ""]
    assert cells(text, "H and", "DPL-R§")[3:5] == ["–", "–"]
    assert "Without these figures on every dataset: Linear probe." in text
    assert "mean over Neon, Fabrics" in text.replace("Fabrics, Neon", "Neon, Fabrics")


def test_one_seed_has_no_interval_and_the_first_is_ahead_of_the_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, "zeroshot", {1: open_world(60, 60, 40, 50)})
    store(tmp_path, "coop", {1: open_world(80, 60, 41, 55)})
    text = page(tmp_path, "open_world", capsys)
    orders = "None of 2 rows of the text prior generic stands elsewhere by OpenworldAUC than by H"
    assert f"{orders}; CoOp is first by both, ahead of Zero-shot CLIP by" in text
    assert "by +1.0 (one seed) points" in text


def calibrated(base: float, new: float, after: Sequence[float] = (), temperature: float = 0.0) -> dict[str, float]:
    """ECE as given; of the others a tenth or so, so that they are told apart."""
    found = {}
    for metric, times in zip(CALIBRATION, (1, 1.1, 0.1, 0.01), strict=True):
        found |= {f"base/{metric}": base * times, f"new/{metric}": new * times}
        if after:
            found |= {f"base/{metric}_scaled": after[0] * times, f"new/{metric}_scaled": after[1] * times}
    return {**found, **({"temperature": temperature} if after else {})}


def test_calibration_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, "zeroshot", {1: calibrated(4, 5), 2: calibrated(4, 5)})
    store(tmp_path, "coop", {1: calibrated(3, 9), 2: calibrated(3, 13)})
    store(tmp_path, "maple", {1: calibrated(5, 7), 2: calibrated(5, 9)})
    text = page(tmp_path, "calibration", capsys)
    # Steps of coop 6 and 10, of maple 2 and 4, together 4 and 7, of zero-shot 1: 3 and 6, mean 4.5, s = 1.5 sqrt(2).
    half = 12.7062 * 1.5
    interval = f"+4.5 [{4.5 - half:+.1f}, {4.5 + half:+.1f}]"
    against = "points against zero-shot of the same text prior, mean of 2 trained rows."
    assert f"Training changes the step in ECE from base to new classes by {interval} {against}" in text
    figures = ["3.0", "11.0", "3.3", "12.1", "0.300", "1.100", "0.030", "0.110"]
    assert cells(text, "As methods", "CoOp")[:8] == figures
    assert cells(text, "As methods", "CoOp")[8].startswith("+8.0 [")
    assert "After the temperature" not in text and "temperature of trained classes" not in text


def test_figures_after_the_temperature_stand_beside_and_count_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least = math.exp(-3)
    for after, more in ((False, {}), (True, {"temperature": True})):
        ends: Any = (2.0, 4.0) if after else ()
        store(tmp_path, "zeroshot", {1: calibrated(4, 5, ends, least), 2: calibrated(4, 5, ends, 0.5)}, **more)
        store(tmp_path, "coop", {1: calibrated(3, 9, ends, 2.0), 2: calibrated(3, 13, ends, 3.0)}, **more)
    text = page(tmp_path, "calibration", capsys)
    # Base: zero-shot -2, coop -1, together -1.5. New: -1 and -1; -5 and -9, together -3 and -5.
    assert (
        "the temperature of trained classes changes ECE by -1.5 [-1.5, -1.5] points on base classes and -4.0 [" in text
    )
    assert cells(text, "After the temperature", "CoOp")[-1] == "2.500 (2.000 to 3.000)"
    assert cells(text, "After the temperature", "Zero-shot CLIP")[8] == "+2.0 [+2.0, +2.0]"
    assert "In 2 of 8 runs T is the least there may be" in text
    assert text.count("| CoOp ") == 2


def test_rows_are_compared_within_their_text_prior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def figures(ece: float, pairs: float) -> dict[int, dict[str, float]]:
        return {seed: {**calibrated(4, ece), **open_world(pairs, 60, pairs, 50)} for seed in (1, 2)}

    store(tmp_path, "zeroshot", figures(5, 60), told="template")
    store(tmp_path, "zeroshot", figures(9, 30), preset="generic")
    store(tmp_path, "coop", figures(10, 40))
    store(tmp_path, "promptsrc", figures(7, 70), told="ensemble")  # without zero-shot of its kind
    text = page(tmp_path, "calibration", capsys)
    assert "by +1.0 [+1.0, +1.0] points against zero-shot of the same text prior, mean of 1 trained row." in text
    text = page(tmp_path, "open_world", capsys)
    assert "None of 2 rows of the text prior generic stands" in text and "Rows compare within one." in text
    assert "CoOp is first by both, ahead of Zero-shot CLIP (generic) by +10.0 [" in text
    assert [cells(text, "H and", name)[4:] for name in ("CoOp", "Zero-shot CLIP", "PromptSRC")] == [
        ["1", "+10.0 [+10.0, +10.0]"],
        ["1", ""],
        ["1", "–"],
    ]


def test_without_common_seeds_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, "zeroshot", {1: calibrated(4, 5)})
    store(tmp_path, "coop", {2: calibrated(3, 9)})
    text = page(tmp_path, "calibration", capsys)
    assert "Without zero-shot of its text prior on the same seeds there is no trained row to compare." in text


@pytest.mark.parametrize("name", ["open_world", "calibration"])
def test_results_without_the_figures_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, "coop", {1: {"base/accuracy": 50.0, "new/accuracy": 40.0}})
    assert main(["evidence", name, "--results", str(tmp_path)]) == 2
    assert "make some with `promptbench run`" in capsys.readouterr().err


@pytest.mark.slow
def test_pages_need_no_torch(tmp_path: Path) -> None:
    store(tmp_path, "coop", {1: {**calibrated(3, 9), **open_world(80, 60, 41, 55)}})
    words = f"'--results', {str(tmp_path)!r}"
    calls = [f"assert main(['evidence', {name!r}, {words}]) == 0" for name in ("open_world", "calibration")]
    lines = ["import sys", "from promptbench.cli.main import main", *calls, "assert 'torch' not in sys.modules"]
    code = "\n".join(lines)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
