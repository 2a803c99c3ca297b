"""The table of controls: which rows it pairs, and differences against a hand calculation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from promptbench import registry
from promptbench.cli.main import main
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.result import Result, Spec, write_result
from promptbench.show.evidence.controls import differences, finding

BASE = {"cocoop": (80.0, 82.0, 84.0), "cocoop@noise": (79.0, 80.0, 83.0)}
NEW = {"cocoop": (70.0, 71.0, 75.0), "cocoop@noise": (70.0, 69.0, 72.0)}


def result(
    label: str, base: float, new: float | None, *, seed: int = 1, dataset: str = "dtd", key: str = "", **facts: Any
) -> Result:
    method, _, preset = label.partition("@")
    usual: dict[str, Any] = {
        **{"suite": "clip11", "protocol": "base2new", "shots": 16, "backbone": "b", "threads": 1},
        **{"dataset": dataset, "method": method, "preset": preset, "data_seed": seed, "train_seed": seed},
        **{"recipe": {"epochs": 5}, "condition": "noise" if preset == "noise" else ""},
    }
    spec = Spec(**usual | facts)
    metrics = {"base/accuracy": base} | ({} if new is None else {"new/accuracy": new})
    conditions = {"training_key": key} if key else {}
    return Result(spec=spec, conditions=conditions, metrics=metrics, versions={}, commit="", created="")


def pairs() -> list[Result]:
    """Two sets, the second of which adds 10 points to both accuracies of all."""
    found = []
    for label in BASE:
        for seed, (base, new) in enumerate(zip(BASE[label], NEW[label], strict=True), start=1):
            found.append(result(label, base, new, seed=seed))
            found.append(result(label, base + 10, new + 10, seed=seed, dataset="pets"))
    return found


def test_differences_are_those_of_a_hand_calculation() -> None:
    (one,) = differences(pairs())
    assert (one.method, one.control, one.datasets, one.n, one.trained) == ("CoCoOp", "CoCoOp (noise)", 2, 3, "alike")
    assert tuple(one.figures["base"]) == pytest.approx((4 / 3, *interval([1, 2, 1]), 3))
    assert tuple(one.figures["new"]) == pytest.approx((5 / 3, *interval([0, 2, 3]), 3))
    h = {label: [harmonic_mean(b + 5, n + 5) for b, n in zip(BASE[label], NEW[label], strict=True)] for label in BASE}
    of_h = [here - there for here, there in zip(h["cocoop"], h["cocoop@noise"], strict=True)]
    assert tuple(one.figures["H"]) == pytest.approx((sum(of_h) / 3, *interval(of_h), 3))


def interval(values: list[float]) -> tuple[float, float]:
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return float(low), float(high)


def test_only_seeds_and_sets_that_both_have_are_compared() -> None:
    kept = [one for one in pairs() if (one.spec.label, one.spec.dataset, one.spec.train_seed) != ("cocoop", "pets", 2)]
    other = [result("cocoop", 1, 1, dataset="cars"), result("cocoop@noise", 99, 99, seed=4)]
    (one,) = differences([*kept, *other])
    assert (one.datasets, one.n) == (2, 2)
    assert one.figures["base"].mean == pytest.approx(1.0)


def test_one_seed_has_no_interval_and_says_so() -> None:
    found = differences([one for one in pairs() if one.spec.train_seed == 1])
    assert str(found[0].figures["base"]) == "+1.0 (one seed)"
    assert finding(found).endswith("no difference here has seeds enough for an interval.")


@pytest.mark.parametrize(
    ("facts", "trained"),
    [
        ({"recipe": {"epochs": 5, "origin": "ours"}}, "alike"),
        ({"recipe": {"epochs": 9}}, "apart"),
        ({"key": "abc"}, "same"),
        ({"recipe": {}}, "none"),
    ],
)
def test_how_a_control_was_trained_is_said(facts: dict[str, Any], trained: str) -> None:
    (one,) = differences([result("cocoop", 80, 70, key="abc"), result("cocoop@noise", 79, 70, **facts)])
    assert one.trained == trained


def test_baselines_are_controls_of_all_that_learn_and_of_no_control() -> None:
    probe = result("linear_probe", 60, None, recipe={})
    found = differences([*pairs(), probe, result("zeroshot@ensemble", 70, 70, shots=0, recipe={})])
    beside = {(one.method, one.control) for one in found if one.baseline}
    assert beside == {
        ("CoCoOp", "Linear probe"),
        ("CoCoOp", "Zero-shot CLIP (ensemble)"),
        ("Linear probe", "Zero-shot CLIP (ensemble)"),
    }
    (probed,) = (one for one in found if (one.method, one.control) == ("CoCoOp", "Linear probe"))
    assert set(probed.figures) == {"base"} and probed.trained == "none"


def test_rows_of_a_method_go_with_those_of_the_control_that_are_told_apart_alike() -> None:
    words, theirs = {"ctx_init": "a photo of a"}, {"ctx_init": "dataset"}
    found = []
    for label in BASE:
        found += [result(label, 80, 70, config=words), result(label, 90, 80, config=theirs)]
    assert [(one.method, one.control) for one in differences(found)] == [
        ("CoCoOp", "CoCoOp (noise)"),
        ("CoCoOp (ctx_init=dataset)", "CoCoOp (noise, ctx_init=dataset)"),
    ]


def test_rows_of_other_halves_of_the_classes_go_with_those_of_the_same() -> None:
    found = [one for label in BASE for one in (result(label, 80, 70), result(label, 70, 60, split="random:1"))]
    assert [(one.method, one.control) for one in differences(found)] == [
        ("CoCoOp (split=alphabetical)", "CoCoOp (noise, split=alphabetical)"),
        ("CoCoOp (split=random:1)", "CoCoOp (noise, split=random:1)"),
    ]


PLUGIN = '''"""Mine: one word, learned.

Unpublished, 2026. Code: none.
"""

from promptbench.method import Method, Preset


class Mine(Method):
    presets = {"deaf": Preset()}
    controls = {"": {"@deaf": "all that it hears"}}
'''


@pytest.mark.usefixtures("no_plugins")
def test_a_method_of_ones_own_has_a_line_by_what_its_file_declares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    for label, h in (("mine", 80.0), ("mine@deaf", 70.0)):
        for seed in (1, 2):
            write_result(tmp_path / "runs", result(label, h + seed, h, seed=seed))
    call = ["evidence", "controls", "--results", str(tmp_path / "runs")]
    assert main(call) == 2
    assert "There is no method beside one of its controls" in capsys.readouterr().err
    assert main([*call, "--plugin", str(plugin)]) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"^All that it hears adds \+10\.0 \[.*\] H to Mine \(over Mine \(deaf\)\); of the 1 ", text, re.MULTILINE
    )
    assert re.search(r"^\| Mine +\| Mine \(deaf\) +\| all that it hears +\| alike +\| \+10\.0 \[", text, re.MULTILINE)
    assert main([*call, "--plugin", str(plugin), "--method", "coop"]) == 2


def test_the_page_reads_methods_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Callable[..., Any]:
        raise AssertionError("a method was imported")

    loads = registry.load
    monkeypatch.setattr(registry, "load", lambda kind, name: refuse() if kind == "methods" else loads(kind, name))
    assert differences(pairs())
