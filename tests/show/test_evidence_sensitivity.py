"""How much of a figure is the setting, the seed or the halves of the classes: against hand calculations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from promptbench.cli.main import main
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.result import Result, Spec, write_result

CONDITIONS = {
    **{"suite": "mini", "protocol": "base2new", "datasets": {"dtd": {}, "pets": {}}, "seeds": [[1, 1], [2, 2]]},
    **{"shots": 16, "sampler": "coop", "backbone": "mini", "config": {}, "recipe": {}},
}


def search(label: str, *figures: float, judged_by: str = "h") -> dict[str, Any]:
    """What tuning tried; trials come as they were, not sorted."""
    trials = []
    for epochs, figure in enumerate(figures, start=1):
        found = {"pseudo_base": figure} if judged_by == "pseudo_base" else {"pseudo_base": 90.0, "h": figure}
        trials.append({"settings": {"epochs": epochs, "lr": 0.1}, "datasets": {}, **found})
    return {"label": label, **CONDITIONS, "trials": trials}


def result(
    label: str,
    base: float,
    new: float,
    seeds: tuple[int, int] = (1, 1),
    dataset: str = "dtd",
    split: str = "alphabetical",
) -> Result:
    method, _, preset = label.partition("@")
    usual: dict[str, Any] = {
        **{"suite": "mini", "protocol": "base2new", "shots": 16, "backbone": "mini", "threads": 1},
        **{"dataset": dataset, "method": method, "preset": preset, "data_seed": seeds[0], "train_seed": seeds[1]},
        "split": split,
    }
    metrics = {"base/accuracy": base, "new/accuracy": new, "h": harmonic_mean(base, new)}
    return Result(spec=Spec(**usual), conditions={}, metrics=metrics, versions={}, commit="", created="")


def cells(text: str, label: str) -> list[list[str]]:
    """The lines of a row in all tables of a page."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {label} ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "tried.json"
    searches = [search("coop", 80.0, 84.0, 70.0), search("maple", 71.0, 75.0, 73.0, 74.0)]
    path.write_text(json.dumps([*searches, search("taskres", 90.0, 95.0, judged_by="pseudo_base")]))
    return path


def test_best_median_and_worst_are_those_of_a_hand_calculation(
    report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evidence", "sensitivity", "--results", str(report)]) == 0
    text = capsys.readouterr().out
    best = ["epochs=2, lr=0.1", "tried"]
    assert cells(text, "CoOp") == [["CoOp", "3", "84.0", "80.0", "70.0", "4.0", "14.0", *best]]
    assert cells(text, "MaPLe") == [["MaPLe", "4", "75.0", "73.5", "71.0", "1.5", "4.0", *best]]
    assert cells(text, "TaskRes") == [["TaskRes", "2", "95.0", "92.5", "90.0", "2.5", "5.0", *best]]
    assert "by pseudo-new H: base2new on mini, 16 shots, dtd, pets, seed 1, 2" in text
    gain, span = ttest_1samp([4, 1.5], 0).confidence_interval(), ttest_1samp([14, 4], 0).confidence_interval()
    assert (
        f"The best point of a grid has +2.8 [{gain.low:+.1f}, {gain.high:+.1f}] pseudo-new H over its median point and "
        f"+9.0 [{span.low:+.1f}, {span.high:+.1f}] over its worst, mean and 95 % interval over 2 methods"
    ) in text


def test_one_method_can_be_asked_for(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evidence", "sensitivity", "--results", str(report), "--method", "coop"]) == 0
    text = capsys.readouterr().out
    assert "The best of 3 points of CoOp has +4.0 pseudo-new H over the median one and +14.0 over the worst" in text
    assert not cells(text, "MaPLe")


@pytest.mark.parametrize("content", ['[{"label": "coop"}]', '[{"label": "coop", "trials": [1]}]', "[3]"])
def test_what_is_no_report_is_said_in_a_sentence(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    assert main(["evidence", "sensitivity", "--results", str(path)]) == 2
    assert f"{path} is no report of `promptbench tune`" in capsys.readouterr().err


def test_nothing_to_say_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(tmp_path, result("coop", 80, 80))
    assert main(["evidence", "sensitivity", "--results", str(tmp_path)]) == 2
    assert "says how figures vary" in capsys.readouterr().err


def test_spreads_by_data_seed_by_training_seed_and_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """H of equal accuracies is the accuracy: 80, 84 by data seed, 80, 81 by training seed, 80, 86 by both."""
    for seeds, figure in (((1, 1), 80.0), ((2, 1), 84.0), ((1, 2), 81.0), ((2, 2), 86.0)):
        write_result(tmp_path, result("coop", figure, figure, seeds))
        if seeds in ((1, 1), (2, 2)):
            write_result(tmp_path, result("maple", figure, figure, seeds))
    assert main(["evidence", "sensitivity", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    data, training, both = ((16 / 2 + 25 / 2) / 2) ** 0.5, ((1 / 2 + 4 / 2) / 2) ** 0.5, (36 / 2) ** 0.5
    assert cells(text, "CoOp") == [["CoOp", f"{data:.1f}", f"{training:.1f}", f"{both:.1f}", "1"]]
    assert cells(text, "MaPLe") == [["MaPLe", "–", "–", f"{both:.1f}", "1"]]
    assert f"Seeds move H by a standard deviation of +{both:.1f} [+{both:.1f}, +{both:.1f}] points" in text


def test_halves_of_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alphabetical: base 82 and new 72 on average; random halves: H 80 and 78."""
    halves = {"alphabetical": ((80, 70), (84, 74)), "random:1": ((80, 80), (80, 80)), "random:10": ((78, 78), (78, 78))}
    for half, of_half in halves.items():
        for dataset, (base, new) in zip(("dtd", "pets"), of_half, strict=True):
            write_result(tmp_path, result("coop", base, new, dataset=dataset, split=half))
    write_result(tmp_path, result("maple", 80, 80, split="random:1"))
    assert main(["evidence", "sensitivity", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    h = harmonic_mean(82, 72)
    low, high = ttest_1samp([h - 80, h - 78], 0).confidence_interval()
    difference = f"{h - 79:+.1f} [{low:+.1f}, {high:+.1f}]"
    assert "alphabetical | random:1 | random:10 | mean of random" in text
    assert cells(text, "CoOp") == [["CoOp", f"{h:.1f}", "80.0", "78.0", "79.0", difference]]
    assert cells(text, "MaPLe") == [["MaPLe", "–", "80.0", "–", "80.0", "–"]]
    assert "\n\nThe alphabetical halves have " in text
