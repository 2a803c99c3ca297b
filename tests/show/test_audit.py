"""`promptbench audit` on made-up folders: every check says same, differs or not known, and why."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from promptbench.cli.main import main
from promptbench.results.result import Result, write_failure, write_result
from promptbench.results.spec import Spec


def digest(text: str) -> str:
    """SHA-256 in hex, which a page names nobody by."""
    return hashlib.sha256(text.encode()).hexdigest()


USUAL: dict[str, Any] = {
    "suite": "mini",
    "protocol": "base2new",
    "dataset": "birds",
    "method": "coop",
    "recipe": {"epochs": 5, "origin": "ours"},
    "shots": 16,
    "data_seed": 1,
    "train_seed": 1,
    "backbone": "mini",
    "threads": 1,
    "weights_hash": digest("w"),
    "architecture": digest("a"),
    "split_digest": digest("s"),
    "sample_digest": digest("i1"),
    "class_names": {"base": digest("b"), "new": digest("n")},
    "contents": {"base": digest("test of base"), "new": digest("test of new")},
}
METHODS = ("coop", "maple")


def make(conditions: dict[str, Any] | None = None, **spec: Any) -> Result:
    facts = Spec(**{**USUAL, **spec})
    metrics = {"base/accuracy": 80.0, "new/accuracy": 70.0}
    told = {"texts_told": "generic", **(conditions or {})}
    return Result(spec=facts, conditions=told, metrics=metrics, versions={}, commit="", created="")


def stored(folder: Path, results: Iterable[Result]) -> None:
    for result in results:
        write_result(folder, result)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two methods on the same images, seed by seed, beside zero-shot; each was tuned in two trials."""
    for seed in (1, 2):
        seeds: dict[str, Any] = {"data_seed": seed, "train_seed": seed, "sample_digest": digest(f"i{seed}")}
        stored(tmp_path, [make(method=method, **seeds) for method in METHODS])
        stored(tmp_path, [make(method="zeroshot", **{**seeds, "sample_digest": ""}, shots=0, recipe={})])
    said = {"splits_read": {"birds": ["train", "val"]}}
    contents = {"base": digest("held out of base"), "new": digest("held out of new")}
    for method in METHODS:
        tried = [{"epochs": epochs, "origin": "ours"} for epochs in (5, 10)]
        trials = [make(said, suite="mini.tune", method=method, recipe=one, contents=contents) for one in tried]
        stored(tmp_path / "tuning", trials)
    return tmp_path


def run(folder: Path, capsys: pytest.CaptureFixture[str], code: int) -> dict[str, str]:
    """What is said of each check."""
    assert main(["audit", str(folder), "--format", "json"]) == code
    return {check["what"]: f"{check['state']}: {check['said']}" for check in json.loads(capsys.readouterr().out)}


def test_a_folder_without_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, capsys, 0) == {
        "splits": "same: looked at 6 times, 3 methods",
        "training images": "same: looked at 4 times, 2 methods",
        "test images": "same: looked at 12 times, 3 methods",
        "class names": "same: looked at 12 times, 3 methods",
        "backbone": "same: looked at 12 times, 3 methods",
        "text prior": "same: looked at 6 times, 3 methods",
        "trials": "same: looked at 2 times, 2 methods",
        "runs": "same: 6 made, 0 failed, 0 abandoned, 0 under way",
        "coverage": "same: every method has the runs of the others",
        "tuning": "same: no test image was read in 4 trials and 0 reports, only train, val",
    }
    assert main(["audit", str(folder)]) == 0
    assert "\nsplits           same: looked at 6 times, 3 methods\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "what", "said"),
    [
        ({"split_digest": digest("x")}, "splits", "differs: mini birds: coop, maple, zeroshot / vpt"),
        (
            {"sample_digest": digest("x")},
            "training images",
            "differs: mini birds, base2new, 16 shots, coop, seed 1: coop, maple / vpt",
        ),
        (
            {"contents": {"base": digest("test of base"), "new": digest("x")}},
            "test images",
            "differs: mini birds, base2new, seed 1, new: coop, maple, zeroshot / vpt",
        ),
        (
            {"class_names": {"base": digest("x"), "new": digest("n")}},
            "class names",
            "differs: mini birds, base2new, seed 1, base: coop, maple, zeroshot / vpt",
        ),
        ({"weights_hash": digest("x")}, "backbone", "differs: weights of mini: coop, maple, zeroshot / vpt"),
        (
            {"config": {"template": "dataset"}},
            "text prior",
            "differs: base2new on mini: generic (coop, maple, zeroshot) / dataset (vpt)",
        ),
        ({"sample_digest": ""}, "training images", "not known: 1 of 5 times nothing is said of it"),
        ({}, "coverage", "differs: vpt lacks 1 of 2 runs of base2new on mini"),
        ({}, "trials", "not known: 1 of 3 times nothing is said of it"),
    ],
)
def test_one_method_that_differs_is_told_apart(
    other: dict[str, Any], what: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(folder, [make(method="vpt", **other)])
    assert run(folder, capsys, 1)[what] == said


@pytest.mark.parametrize("other", [{"sampler": "stratified"}, {"shots": 4}, {"dataset_options": {"render_seed": 2}}])
def test_other_images_are_no_difference_where_others_were_asked_for(
    other: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(folder, [make(method="coop", sample_digest=digest("x"), **other)])
    assert run(folder, capsys, 0 if "sampler" in other or "dataset_options" in other else 1)["training images"] == (
        "same: looked at 5 times, 2 methods"
    )


def test_methods_that_were_tried_more_often_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = [{"label": "maple", "trials": [{}] * 9, "splits_read": {"birds": ["train"]}}]
    (folder / "tuning" / "maple.json").write_text(json.dumps(report), encoding="utf-8")
    found = run(folder, capsys, 1)
    assert found["trials"] == "differs: base2new on mini: 2 (coop) / 9 (maple)"
    assert found["tuning"] == "same: no test image was read in 4 trials and 1 reports, only train, val"


def test_runs_that_failed_or_were_abandoned_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, begun, planned = (Spec(**{**USUAL, "method": name}) for name in ("vpt", "ivlp", "gallop"))
    write_failure(folder, failed, reason="The loss is infinite.")
    (folder / "outdated").mkdir()
    (folder / "outdated" / "coop-1.1.json").write_text("{}", encoding="utf-8")
    (folder / "claims").mkdir()
    claims = {"run": {"kind": "run", "run": begun.name}, "call": {"kind": "call", "runs": [planned.name, failed.name]}}
    for name, about in claims.items():
        path = folder / "claims" / f"{name}.claim"
        head = {"host": "elsewhere", "pid": 1, "since": 0.0, "about": about}
        path.write_text(json.dumps(head) + "\n{}", encoding="utf-8")
        os.utime(path, (0, 0))
    said = run(folder, capsys, 1)["runs"]
    assert said == (
        "differs: 6 made, 1 failed, 2 abandoned, 0 under way, 1 outdated ones set aside "
        f"({failed.name}; {planned.name}; {begun.name})"
    )


@pytest.mark.parametrize(
    ("said", "contents", "state"),
    [
        ({"splits_read": {"birds": ["test", "train"]}}, "held out", "differs: test images were read"),
        ({"splits_read": {"birds": ["train"]}}, "test of new", "differs: test images were read"),
        ({}, "held out", "not known: 1 of 5 trials and reports do not say what was read"),
    ],
)
def test_tuning_that_read_test_images_is_found(
    said: dict[str, Any], contents: str, state: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = make(said, suite="mini.tune", recipe={"epochs": 7, "origin": "ours"}, contents={"new": digest(contents)})
    stored(folder / "tuning", [trial])
    assert run(folder, capsys, 1)["tuning"] == state


def test_a_folder_without_results_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(tmp_path)]) == 2
    assert "There are no results in" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "nowhere")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert main(["audit", str(tmp_path), "--format", "xml"]) == 2
    assert "Unknown format 'xml'." in capsys.readouterr().err
