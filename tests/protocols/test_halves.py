"""Base and new classes drawn at random: which they are, what a run records of it, and how tables keep them apart."""

from __future__ import annotations

import random
from pathlib import Path

import make_fake
import pytest

from promptbench import registry
from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.data.dataset import open_dataset
from promptbench.data.selection import Selection, class_labels, open_selection, shown_names, split_base_new
from promptbench.results.result import Result, read_results
from promptbench.runs.plan import plan_runs
from promptbench.runs.reevaluate import evaluations_of, suite_of
from promptbench.runs.request import Request
from promptbench.suite import load_suite

NAMES = ("crow", "eagle", "finch", "gull", "heron")
CALL = {"methods": "coop", "suite": "mini", "datasets": "mini_colours", "seeds": 1, "device": "cpu"}


def test_halves_follow_a_permutation_of_the_labels() -> None:
    for seed in range(5):
        order = random.Random(seed).sample(range(5), 5)
        assert split_base_new([4, 2, 0, 1, 3, 3], f"random:{seed}") == (sorted(order[:3]), sorted(order[3:]))
    assert split_base_new(range(5), "alphabetical") == split_base_new(range(5)) == ([0, 1, 2], [3, 4])


def test_random_halves_differ_and_hold_every_class_once() -> None:
    found = {tuple(split_base_new(range(20), f"random:{seed}")[0]) for seed in range(5)}
    assert len(found) == 5 and all(len(base) == 10 for base in found)
    base, new = split_base_new(range(21), "random:3")
    assert (len(base), len(new)) == (11, 10) and sorted(base + new) == [*range(21)]


@pytest.mark.parametrize(
    "halves", ["random", "random:", "random:-1", "random:1.5", "random:²", "rando:1", "", "random:1:2"]
)
def test_other_halves_are_refused(halves: str) -> None:
    with pytest.raises(UsageError, match="Unknown split"):
        Selection(dataset="birds", split="train", halves=halves)


def test_images_names_and_halves_of_halves_follow(tmp_path: Path) -> None:
    make_fake.make_split_folders(tmp_path / "birds", NAMES)
    dataset = open_dataset("folder", {"root": str(tmp_path / "birds")}, alias="birds")
    base, new = split_base_new(range(5), "random:2")
    assert base != [0, 1, 2]
    for classes, labels in (("base", base), ("new", new)):
        words = {"dataset": "birds", "classes": classes, "halves": "random:2"}
        train = open_selection(lambda _: dataset, Selection(split="train", shots=2, **words), 1)
        assert {item.class_name for item in train.items} == {NAMES[label] for label in labels}
        assert (
            train.pool == open_selection(lambda _: dataset, Selection(dataset="birds", split="train", shots=2), 1).pool
        )
        test = open_selection(lambda _: dataset, Selection(split="test", **words), 1)
        assert {item.class_name for item in test.items} == {NAMES[label] for label in labels}
        names, positions = shown_names(lambda _: dataset, Selection(split="test", **words), test)
        assert tuple(names) == tuple(NAMES[label] for label in labels) and positions == test.labels
    assert class_labels(dataset, "base.new", "random:2") == split_base_new(base, "random:2")[1]


def test_a_run_for_each_split_and_usual_names_stay() -> None:
    usual = {run.spec.name: run.spec for run in plan_runs(Request.of(**CALL))}
    both = plan_runs(Request.of(**CALL, split=["alphabetical", "random:1", "random:2"]))
    assert usual.keys() == {run.spec.name for run in both if run.spec.split == "alphabetical"}
    assert len({run.spec.name for run in both}) == 3 * len(usual)
    for run in both:
        assert run.plan.train.halves == run.spec.split
        halves = {evaluation.name: evaluation.selection.halves for evaluation in run.plan.evaluations}
        assert (halves["base"], halves["new"]) == (run.spec.split, run.spec.split)
    assert "split" not in next(iter(usual.values())).naming()


def test_a_suite_may_say_it(tmp_path: Path) -> None:
    (tmp_path / "halves.yaml").write_text("extends: mini\nsplit: random:7\n")
    runs = plan_runs(Request.of(**{**CALL, "suite": str(tmp_path / "halves.yaml")}))
    assert {run.spec.split for run in runs} == {"random:7"}
    (tmp_path / "halves.yaml").write_text("extends: mini\nsplit: [random:7, random:7]\n")
    with pytest.raises(UsageError, match="'split' must be different words"):
        load_suite(tmp_path / "halves.yaml")


def test_other_protocols_evaluate_new_classes_of_the_same_halves() -> None:
    (run,) = (run for run in plan_runs(Request.of(**CALL, split="random:1")) if run.spec.method == "coop")
    result = Result(spec=run.spec, conditions={}, metrics={}, versions={}, commit="", created="")
    suite = suite_of(load_suite("mini"), run.spec)
    candidates = registry.load("protocols", "candidates")()
    (other,) = evaluations_of(result, {"candidates": candidates}, suite)
    assert {evaluation.shown.halves for evaluation in other.plan.evaluations} == {"random:1"}
    assert other.plan.train == run.plan.train and other.spec.split == "random:1" and not other.spec.trained_by


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--split", "random:x"), "Unknown split 'random:x'. Did you mean 'random:N'?"),
        (("--split", "random:1", "--protocol", "few_shot"), "--split halves the classes, which the protocol few_shot"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--method", "coop", *words, "--output", str(tmp_path), "--dry-run", "list"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.slow
def test_through_the_command(tiny_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fake.make_split_folders(tmp_path / "birds", NAMES)
    words = ["--suite", "clip11", "--method", "zeroshot", "coop", "--dataset", f"folder:{tmp_path}/birds"]
    short = ["--set", "coop.epochs=1", "coop.batch=4", "--shots", "2", "--seeds", "1", "--threads", "1"]
    place = ["--backbone", tiny_name, "--device", "cpu", "--output", str(tmp_path / "runs")]
    call = ["run", "--protocol", "base2new", *words, *short, *place, "--split", "alphabetical", "random:2"]
    assert main(call) == 0
    assert "coop birds split random:2 seed 1" in capsys.readouterr().err
    results = read_results(tmp_path / "runs")
    assert sorted((result.spec.method, result.spec.split) for result in results) == [
        ("coop", "alphabetical"),
        ("coop", "random:2"),
        ("zeroshot", "alphabetical"),
        ("zeroshot", "random:2"),
    ]
    assert len({result.spec.trained_names for result in results if result.spec.method == "coop"}) == 2
    assert len({result.spec.class_names["base"] for result in results}) == 2
    assert len({result.spec.class_names["joint"] for result in results}) == 1
    assert splits_shown(tmp_path, capsys) == ["alphabetical", "random:2"] * 2  # of each text prior
    for result in results:  # a folder of them alone says so too
        if result.spec.split == "alphabetical" and result.path is not None:
            result.path.unlink()
    assert splits_shown(tmp_path, capsys) == ["random:2"] * 2


def splits_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The splits that the rows of the table name, from top to bottom."""
    assert main(["table", "--results", str(folder / "runs")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|") and "split=" in line]
    assert not any("class_names" in line for line in lines)  # they follow from the split
    return [line.split("|")[2].partition("split=")[2].partition(")")[0] for line in lines]
