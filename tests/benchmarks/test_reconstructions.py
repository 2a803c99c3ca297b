"""The script that judges the two reconstructions: its statistics, its rules, its table of controls and its report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from promptbench.benchmarks import reconstructions as script
from promptbench.benchmarks.reconstructions import BARS, REPORTED, ROWS, Bar, Difference, Row

from promptbench import registry
from promptbench.config import UsageError
from promptbench.mini.sets import PER_CLASS
from promptbench.recipe import parse_label
from promptbench.results.result import Result
from promptbench.results.spec import Spec
from promptbench.suite import Suite

SETS = ("mini_diagrams", "mini_neon", "mini_fabrics", "mini_combos", "mini_shapes", "mini_colours", "mini_counts")


def figures(**rows: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """H of each row, by set and then by seeds from 1 on."""
    found: dict[str, Any] = {}
    for row, sets in rows.items():
        found[row] = {name: {str(seed): {"h": h} for seed, h in enumerate(of, 1)} for name, of in sets.items()}
    return found


def test_the_bound_is_that_of_students_t() -> None:
    assert script.lower_bound([1.0, 2.0, 3.0]) == pytest.approx(2 - 2.919986 / math.sqrt(3), abs=1e-5)  # t of 2
    assert script.lower_bound([0.5, 0.5]) == 0.5 and script.lower_bound([3.0]) is None


@pytest.mark.slow
def test_the_bound_is_scipys() -> None:
    from scipy.stats import ttest_1samp

    values = [0.4, 1.1, -0.3, 2.0, 0.9, 0.7, 1.4, 0.2, 0.0, 1.6]
    interval = ttest_1samp(values, 0, alternative="greater").confidence_interval(0.95)
    assert script.lower_bound(values) == pytest.approx(interval.low, abs=1e-12)


def test_differences_are_paired_averaged_over_sets_and_then_over_seeds() -> None:
    of = figures(
        ours={"mini_diagrams": [90, 80], "mini_neon": [50, 53], "mini_counts": [40, 40]},
        control={"mini_diagrams": [80, 76], "mini_neon": [51, 54], "mini_counts": [40, 40]},
    )
    found = script.difference(of, "ours", "control", "h")
    assert found.sets == {"mini_diagrams": 7, "mini_neon": -1, "mini_counts": 0} and found.not_below == 2
    assert found.seeds == {"1": 3, "2": 1} and found.mean == 2
    assert found.bound == pytest.approx(2 - 6.313752, abs=1e-5)  # the standard error is 1, t of 1 degree of freedom
    without = script.difference(of, "ours", "control", "h", without="mini_diagrams")
    assert without.mean == -0.5 and without.bound == -0.5 and without.not_below == 1


def test_rows_of_other_seeds_or_sets_are_not_compared() -> None:
    rows = {"mini_neon": [1.0, 2.0]}
    for other in ({"mini_neon": [1.0]}, {"mini_neon": [1.0, 2.0], "mini_counts": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="not measured on the same sets and seeds"):
            script.difference(figures(ours=rows, control=other), "ours", "control", "h")


@pytest.mark.parametrize(
    ("mean", "bound", "not_below", "expected"),
    [
        (1.0, 0.01, 5, True),
        (0.1 + 0.2 + 0.7 - 1e-12, 0.01, 5, True),  # means of figures with few digits
        (0.99, 0.5, 7, False),
        (1.0, 0.0, 7, False),
        (3.0, -0.1, 7, False),
        (3.0, None, 7, False),
        (3.0, 2.0, 4, False),
    ],
)
def test_a_gain_reaches_the_mean_is_surely_above_zero_and_on_five_sets(
    mean: float, bound: float | None, not_below: int, expected: bool
) -> None:
    found = Difference(mean, bound, not_below, {}, {})
    assert script.holds(Bar("a", "b", "h", 1.0), found) is expected


@pytest.mark.parametrize(("mean", "expected"), [(-0.3, True), (-0.31, False), (2.0, True)])
def test_not_below_allows_three_tenths_of_a_point(mean: float, expected: bool) -> None:
    found = Difference(mean, None, 0, {}, {})
    assert script.holds(Bar("a", "b", "h", script.SLACK, "not below"), found) is expected


@pytest.mark.parametrize(("worst", "expected"), [(-1.0, True), (-1.01, False)])
def test_every_set_means_the_worst(worst: float, expected: bool) -> None:
    found = Difference(5.0, 4.0, 6, {"mini_neon": 9.0, "mini_counts": worst}, {})
    assert script.holds(Bar("a", "b", "base", -1.0, "every set"), found) is expected


def test_bars_and_pairs_are_of_the_table_and_every_row_is_compared() -> None:
    pairs = [*((bar.method, bar.control) for bar in BARS), *REPORTED]
    assert set(chain.from_iterable(pairs)) == set(ROWS)
    assert {row.extends for row in ROWS.values()} - {""} <= set(ROWS)


@pytest.mark.parametrize("label", [label for label, row in ROWS.items() if row.extends])
def test_a_control_differs_from_its_method_by_what_the_table_says(label: str) -> None:
    name, preset = parse_label(label)
    if preset not in registry.load("methods", name).presets:
        pytest.skip(f"{name} has no preset {preset}")
    script.check_rows(script.suite_of(1, swapped=False), [label])


def test_a_preset_that_says_anything_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "mutual@ftp", Row(("mutual",), "mutual", {"n_visual": 2}))
    with pytest.raises(UsageError, match="mutual@ftp is to have n_visual=2, but its preset has n_visual=0"):
        script.check_rows(script.suite_of(1, swapped=False), ["mutual@ftp"])


def test_seeds_are_numbers_or_ranges() -> None:
    options = script.parser_of_arguments().parse_args(["--seeds", "1..3", "7", "--swapped-seeds"])
    assert (options.seeds, options.swapped_seeds) == ([[1, 2, 3], [7]], [])
    usual = script.parser_of_arguments().parse_args([])
    assert (usual.seeds, usual.swapped_seeds, usual.render_seed) == ([[*range(1, 11)]], [[*range(1, 6)]], 5)


def made(base: Callable[[str, str, int], float]) -> Callable[..., list[Result]]:
    """In the place of `run`: results whose base accuracy is this of label, words and seed; new is 10 less."""

    def run(suite: Suite, labels: Sequence[str], seeds: Sequence[int], output: str, jobs: int) -> list[Result]:
        results = []
        for label in labels:
            for words in script.WORDS.get(label.partition("@")[0], ("",)):
                for name in suite.datasets("base2new"):
                    results += [result(suite.name, label, words, name, seed) for seed in seeds]
        return results

    def result(suite: str, label: str, words: str, dataset: str, seed: int) -> Result:
        accuracy = base(label, words, seed)
        metrics = {"base/accuracy": accuracy, "new/accuracy": accuracy - 10, "h": accuracy - 5}
        method, preset = parse_label(label)
        spec = Spec(
            suite=suite,
            protocol="base2new",
            dataset=dataset,
            method=method,
            preset=preset,
            config={"ctx_init": words, "of": dataset},
            recipe={"epochs": 20},
            shots=16,
            data_seed=seed,
            train_seed=seed,
            backbone="mini",
            threads=1,
        )
        return Result(
            spec=spec, conditions={}, metrics=metrics, versions={"torch": "2"}, commit="abc", created="2026-01-01"
        )

    return run


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """`python -m promptbench.benchmarks.reconstructions`."""
    monkeypatch.setattr("sys.argv", ["reconstructions", *words])
    script.main()


def test_the_report_holds_what_it_follows_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gains = {"mutual": 1.0, "dpl": 2.0, "dpl@control-gated": 2.5}  # of 60, the same on all sets and for all seeds
    monkeypatch.setattr(
        script, "run", made(lambda label, words, _: 60 + gains.get(label, 0) * (words != "a photo of a"))
    )
    path = tmp_path / "report.json"
    call(monkeypatch, "--seeds", "1..3", "--swapped-seeds", "4", "5", "-o", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    usual, swapped = report["halves"]["usual"], report["halves"]["swapped"]
    assert (usual["seeds"], swapped["seeds"], report["render_seed"]) == ([1, 2, 3], [4, 5], 5)
    assert report["commits"] == ["abc"] and report["versions"] == {"torch": "2"} and report["date"]
    assert report["rows"]["mutual@ftp"] == {"extends": "mutual", "fields": {"n_visual": 0}}
    assert report["settings"]["dpl (generic)"] == {"config": {"ctx_init": "a photo of a"}, "recipe": {"epochs": 20}}
    for halves in (usual, swapped):
        assert len(halves["bars"]) == len(BARS) and set(halves["figures"]["dpl"]) == set(SETS)
        again = script.judge(halves["figures"])
        assert again == {"bars": halves["bars"], "comparisons": halves["comparisons"]}

    held = {(bar["method"], bar["control"], bar["figure"]): bar["holds"] for bar in usual["bars"]}
    assert held["mutual", "mutual@cocoop", "h"] and held["dpl", "ivlp@promptsrc", "new"]
    assert not held["dpl", "dpl@control-gated", "h"] and not held["dpl@text", "dpl@text-control", "new"]
    pairs = {(one["method"], one["control"]): one["all"] for one in usual["comparisons"]}
    assert pairs["dpl", "ivlp@promptsrc"]["mean"] == 2 and pairs["dpl", "ivlp@promptsrc"]["not_below"] == 7
    assert pairs["dpl (generic)", "ivlp@promptsrc (generic)"]["mean"] == 0
    assert pairs["dpl (generic)", "zeroshot@generic"]["mean"] == 0

    out = capsys.readouterr().out
    assert "usual halves, render seed 5, seeds 1 2 3" in out and "swapped halves, render seed 5, seeds 4 5" in out
    assert "ok    mutual against mutual@cocoop, h" in out and "FAIL  dpl against dpl@control-gated, h" in out


def test_part_of_it_is_measured_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "run", made(lambda *_: 60.0))
    path = tmp_path / "report.json"
    call(monkeypatch, "--only", "dpl", "--swapped-seeds", "-o", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report["halves"]) == ["usual"]
    assert not [row for row in report["rows"] if row.startswith(("mutual", "cocoop"))]
    assert {bar["method"] for bar in report["halves"]["usual"]["bars"]} == {"dpl", "dpl@text"}
    call(monkeypatch, "--labels", "mutual", "mutual@cocoop", "zeroshot", "-o", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    assert {bar["control"] for bar in report["halves"]["usual"]["bars"]} == {"mutual@cocoop"}


def test_a_report_that_cannot_be_written_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "run", lambda *_: pytest.fail("it runs"))
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "-o", str(tmp_path))
    assert f"error: The report {tmp_path} cannot be written (Is a directory)" in capsys.readouterr().err


@pytest.mark.slow
def test_zero_shot_scores_swapped_halves_as_the_usual_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))  # of its own, since so few images are no others'
    for split, number in {"train": 1, "val": 1, "test": 3}.items():
        monkeypatch.setitem(PER_CLASS, split, number)
    words = ["--labels", "zeroshot", "zeroshot@generic", "--render-seed", "1", "--seeds", "1..2", "--jobs", "1"]
    words += ["--swapped-seeds", "1", "--output", str(tmp_path / "out"), "-o", str(tmp_path / "report.json")]
    reports = []
    for _ in range(2):  # the second time from the finished runs
        call(monkeypatch, *words)
        reports.append(json.loads((tmp_path / "report.json").read_text(encoding="utf-8")))
    assert reports[0]["halves"] == reports[1]["halves"]
    usual, swapped = (reports[0]["halves"][halves]["figures"] for halves in ("usual", "swapped"))
    for row in ("zeroshot", "zeroshot@generic"):
        assert set(usual[row]) == set(SETS) and set(usual[row]["mini_neon"]) == {"1", "2"}
        for name in SETS:
            one, other = usual[row][name]["1"], swapped[row][name]["1"]
            assert (one["base"], one["new"]) == (other["new"], other["base"])
    assert len([*(tmp_path / "out").rglob("*.json")]) == 2 * 7 * (2 + 1)
