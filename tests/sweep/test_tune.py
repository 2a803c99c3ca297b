"""Settings are chosen without a test image and without a new class."""

from __future__ import annotations

import json
import pickle
import re
from itertools import product
from pathlib import Path

import make_fake
import pytest
from PIL import Image
from shared_paths import TINY

from promptbench.cli import main
from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.data.selection import Selection, class_labels, open_selection
from promptbench.results.result import read_results
from promptbench.runs.request import Request
from promptbench.runs.session import Place
from promptbench.sweep.tune import TuningJob, WithoutTest, parse_grid, points_of, runs_of

NAMES = ("crow", "eagle", "finch", "gull", "heron", "ibis", "jay", "kite")


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Eight classes of a few images, without a validation split."""
    make_fake.make_split_folders(tmp_path / "birds", NAMES, val=False)
    return tmp_path / "birds"


def asked(birds: Path, backbone: str, *others: str) -> list[str]:
    """A short search for CoOp, and the other methods."""
    words = ["tune", "--method", "coop", *others, "--dataset", f"folder:{birds}", "--backbone", backbone]
    words += ["--protocol", "base2new"]
    return [*words, "--shots", "3", "--set", "coop.epochs=2", "coop.batch=4", "--grid", "lr=0.0001,0.05"]


@pytest.fixture
def dataset(birds: Path) -> Dataset:
    return open_dataset("folder", {"root": str(birds)}, alias="birds")


def test_halves_of_halves(dataset: Dataset) -> None:
    assert class_labels(dataset, "base") == [0, 1, 2, 3]
    assert class_labels(dataset, "base.base") == [0, 1]
    assert class_labels(dataset, "base.new") == [2, 3]
    assert class_labels(dataset, "all.new") == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="halves of halves"):
        class_labels(dataset, "base.old")


def test_held_out_images_are_training_images_outside_the_sample(dataset: Dataset) -> None:
    shots = 2
    train = open_selection(lambda name: dataset, Selection(dataset="birds", split="train", shots=shots), 1)
    held = open_selection(lambda name: dataset, Selection(dataset="birds", split="held_out", shots=shots), 1)
    used, judged = ({item.image for item in chosen.items} for chosen in (train, held))
    assert len(used) == shots * len(NAMES) and judged and not used & judged
    assert judged <= {item.image for item in dataset.items("train")}


def test_validation_images_are_preferred(tmp_path: Path) -> None:
    make_fake.make_split_folders(tmp_path / "birds", NAMES, val=True)
    dataset = open_dataset("folder", {"root": str(tmp_path / "birds")}, alias="birds")
    held = open_selection(lambda name: dataset, Selection(dataset="birds", split="held_out", shots=2), 1)
    assert {item.image for item in held.items} == {item.image for item in dataset.items("val")}


def test_test_images_cannot_be_read(dataset: Dataset) -> None:
    sealed = WithoutTest(dataset)
    assert sealed.items("train") == dataset.items("train") and sealed.class_names == dataset.class_names
    with pytest.raises(PermissionError, match="may not read the test images of 'birds'"):
        sealed.items("test")
    with pytest.raises(PermissionError):
        sealed.read("test")
    assert sealed.split_digest() != dataset.split_digest()


def test_a_grid_is_read_from_words() -> None:
    assert parse_grid(["lr=0.1,2e-3", "depth=1,3", "ctx_init=a photo"]) == {
        "lr": [0.1, "2e-3"],  # YAML reads 2e-3 as text; the typed field makes a number of it
        "depth": [1, 3],
        "ctx_init": ["a photo"],
    }
    for bad in ("lr", "lr=", "lr=0.1,,2", "=1"):
        with pytest.raises(UsageError, match="write field=value,value"):
            parse_grid([bad])


def test_the_command_finds_the_better_setting_and_reads_no_test_image(
    birds: Path,
    tiny_name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    plain = Image.open

    def watched(path: Path, *rest: object) -> Image.Image:
        opened.append(str(path))
        return plain(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", watched)
    words = [*asked(birds, tiny_name), "--output", str(tmp_path / "out")]
    assert main.main(words) == 0
    out = capsys.readouterr().out
    assert "pseudo-new" in out and "best: lr: " in out
    assert re.search(r"^use it: promptbench run --method coop --protocol base2new --set coop.lr=\S+$", out, re.M)
    assert re.search(r"^best: .*, origin: ours, selection: pseudo-new classes, trials: \d+$", out, re.MULTILINE)
    assert opened and not [path for path in opened if f"{birds}/test/" in path]
    tried = read_results(tmp_path / "out" / "tuning")
    assert {result.spec.suite for result in tried} == {"mini.tune"}
    assert all(result.conditions["splits_read"] == {"birds": ["train", "val"]} for result in tried)
    assert main.main(words) == 0  # finished points are not run again
    assert capsys.readouterr().out == out


@pytest.mark.slow
def test_a_report_holds_every_trial_and_several_methods_are_tuned_apart(
    birds: Path, tiny_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = asked(birds, tiny_name, "vpt")
    words += ["--set", "vpt.epochs=1", "--seeds", "1", "2", "--output", str(tmp_path / "out")]
    report = tmp_path / "made" / "tuned.json"
    assert main.main([*words, "--report", str(report)]) == 0
    out = capsys.readouterr().out
    coop, vpt = json.loads(report.read_text(encoding="utf-8"))
    assert (coop["label"], vpt["label"]) == ("coop", "vpt")
    assert "coop, base2new, suite mini" in out and "\nvpt, base2new, suite mini" in out
    assert coop["recipe"]["epochs"] == 2 and "lr" not in coop["recipe"] and coop["config"]["ctx_init"]
    assert (coop["suite"], coop["protocol"], coop["shots"]) == ("mini", "base2new", 3)
    assert coop["splits_read"] == {"birds": ["train", "val"]}
    assert list(coop["datasets"]) == ["birds"] and coop["seeds"] == [[1, 1], [2, 2]]

    results = read_results(tmp_path / "out" / "tuning")
    assert len(results) == 8
    for trial in coop["trials"]:
        lr = trial["settings"]["lr"]
        runs = [r for r in results if r.spec.method == "coop" and r.spec.recipe["lr"] == lr]
        base, new = (sum(r.metrics[f"{half}/accuracy"] for r in runs) / 2 for half in ("base", "new"))
        assert len(runs) == 2 and (trial["pseudo_base"], trial["pseudo_new"]) == (base, new)
        assert trial["h"] == pytest.approx(2 * base * new / (base + new) if base + new else 0)
        assert trial["datasets"]["birds"] == {key: trial[key] for key in ("pseudo_base", "pseudo_new", "h")}
    assert sorted(trial["settings"]["lr"] for trial in coop["trials"]) == [0.0001, 0.05]
    assert coop["trials"][0]["h"] >= coop["trials"][1]["h"]

    before = report.read_bytes()
    assert main.main([*words, "--report", str(report)]) == 0
    assert report.read_bytes() == before and [path.name for path in report.parent.iterdir()] == ["tuned.json"]


def test_a_report_that_cannot_be_written_is_said_before_anything_is_trained(
    birds: Path, tiny_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = [*asked(birds, tiny_name), "--output", str(tmp_path / "out")]
    for place in (tmp_path, tmp_path / "file" / "tuned.json"):
        assert main.main([*words, "--report", str(place)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"promptbench: error: The report {place} cannot be written (") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_value_that_does_not_fit_is_said_before_anything_is_trained(
    birds: Path, tiny_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*asked(birds, tiny_name), "batch=4,-1", "--output", str(tmp_path / "out")]
    assert main.main(words) == 2
    assert "'batch' must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_worker_processes_find_what_one_process_finds_and_read_no_test_image(
    birds: Path, tiny_name: str, tmp_path: Path
) -> None:
    """The test images are no images: whoever reads one fails."""
    for path in (birds / "test").rglob("*.*"):
        path.write_bytes(b"sealed")
    reports = {}
    for jobs in ("1", "2"):
        reports[jobs] = tmp_path / f"{jobs}.json"
        words = [*asked(birds, tiny_name), "--output", str(tmp_path / f"out{jobs}"), "--jobs", jobs]
        assert main.main([*words, "--report", str(reports[jobs])]) == 0
    assert reports["1"].read_bytes() == reports["2"].read_bytes()


def test_a_worker_that_tunes_cannot_reach_test_images(birds: Path, tiny_name: str, tmp_path: Path) -> None:
    request = Request.of(
        methods="coop",
        protocol="base2new",
        datasets=f"folder:{birds}",
        backbone=tiny_name,
        shots=3,
        device="cpu",
        companions=False,
    )
    grid = {"lr": [0.1, 0.2]}
    names = tuple(run.spec.name for run in runs_of(points_of(request, grid)))
    job = TuningJob(request.asked, Place(tmp_path / "out"), names, known={}, plugins=(), grid=grid)
    session, runs = pickle.loads(pickle.dumps(job)).open()
    assert [run.spec.name for run in runs] == list(names) and len(names) == 2
    assert {run.plan.evaluations[0].selection.split for run in runs} == {"held_out"}
    with pytest.raises(PermissionError, match="may not read the test images of 'birds'"):
        session.dataset("birds").items("test")


def test_each_method_is_varied_around_its_own_recipe_unless_a_grid_is_named() -> None:
    set_by_us = {"vpt.lr": 0.03, "vpt.epochs": 20, "ivlp.lr": 0.1, "ivlp.epochs": 2}
    request = Request.of(methods=["vpt", "ivlp@maple"], device="cpu", companions=False, settings=set_by_us)
    points = points_of(request, {})
    assert [point.label for point in points] == ["vpt"] * 9 + ["ivlp@maple"] * 9
    assert points[0].settings == {"lr": 0.01, "epochs": 10} and points[-1].settings == {"lr": 0.3, "epochs": 4}
    assert {run.spec.recipe["epochs"] for run in points[9].runs} == {1}
    assert len(runs_of(points)) == 18 * 7
    assert [point.settings for point in points_of(request, {"lr": [0.5]})] == [{"lr": 0.5}] * 2


def test_a_method_that_counts_steps_is_varied_in_them() -> None:
    def settings(**more: object) -> list[dict[str, object]]:
        of = {"suite": "clip11", "datasets": ["dtd"], "seeds": [1]}
        request = Request.of(methods=["clip_lora"], device="cpu", companions=False, **of, **more)
        return [dict(point.settings) for point in points_of(request, {})]

    rates, lengths = (6.7e-5, 2e-4, 6e-4), (4000, 8000, 16000)
    assert settings(shots=16) == [{"lr": lr, "steps": steps} for lr, steps in product(rates, lengths)]
    by_epochs = settings(shots=16, settings={"clip_lora.epochs": 4})
    assert [point["epochs"] for point in by_epochs[:3]] == [2, 4, 8] and "steps" not in by_epochs[0]


@pytest.mark.slow
def test_trials_of_other_code_are_done_again(
    birds: Path, tiny_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*asked(birds, tiny_name), "--output", str(tmp_path / "out")]
    assert main.main(words) == 0 and not caplog.messages
    for result in read_results(tmp_path / "out" / "tuning"):
        assert result.path is not None
        stored = json.loads(result.path.read_text(encoding="utf-8"))
        stored["spec"]["method_code"] = f"{stored['spec']['method_code'].partition(':')[0]}:other"
        result.path.write_text(json.dumps(stored))
    assert main.main([*words, "--keep-outdated"]) == 0
    assert main.main(words) == 0
    kept, again = caplog.messages
    assert "the code of 'coop' was changed: 2; they are kept" in kept
    assert "the code of 'coop' was changed: 2; they run again" in again
    assert len(list((tmp_path / "out" / "tuning" / "outdated").rglob("*.json"))) == 2
    assert len(read_results(tmp_path / "out" / "tuning")) == 2


def test_several_protocols_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["tune", "--method", "coop", "--protocol", "base2new", "few_shot"]) == 2
    assert "Tuning takes one protocol at a time." in capsys.readouterr().err


def test_a_method_that_cannot_score_new_classes_is_judged_by_those_of_its_training(
    birds: Path, tiny_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--method", "coop", "--dataset", f"folder:{birds}", "--backbone", tiny_name, "--shots", "2"]
    words += ["--protocol", "base2new"]
    words += [
        "--set",
        "coop.csc=true",
        "coop.ctx_init=",
        "coop.epochs=1",
        "--grid",
        "lr=0.1,0.2",
        "--output",
        str(tmp_path),
    ]
    assert main.main(words) == 0
    table = capsys.readouterr().out.partition("\n\n")[2]
    header, *rows = [line.split() for line in table.splitlines()[:3]]
    assert header == ["pseudo-base", "lr"] and sorted(row[1] for row in rows) == ["0.1", "0.2"]
    assert float(rows[0][0]) >= float(rows[1][0])


def test_a_field_of_the_grid_is_of_all_methods_or_of_one_in_both_commands(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = {"methods": ["coop", "maple"], "datasets": f"folder:{birds}", "backbone": TINY, "companions": False}
    request = Request.of(protocol="base2new", seeds=1, threads=1, **what)
    points = points_of(request, parse_grid(["lr=0.1", "maple.depth=1,2"]))
    assert [(point.label, dict(point.settings)) for point in points] == [
        ("coop", {"lr": 0.1}),
        ("maple", {"lr": 0.1, "depth": 1}),
        ("maple", {"lr": 0.1, "depth": 2}),
    ]
    with pytest.raises(UsageError, match="--grid mapel.depth: Unknown method of this call 'mapel'. Did you mean"):
        points_of(request, parse_grid(["mapel.depth=1"]))
    words = ["run", "--dataset", f"folder:{birds}", "--backbone", TINY, "--protocol", "base2new", "--dry-run", "list"]
    assert main.main([*words, "--method", "coop", "--grid", "lr=0.1,0.2"]) == 0
    of_field = capsys.readouterr().out
    assert main.main([*words, "--method", "coop", "--grid", "coop.lr=0.1,0.2"]) == 0
    assert capsys.readouterr().out == of_field and "lr=0.2" in of_field
    assert main.main([*words, "--method", "coop", "maple", "--grid", "lr=0.1,0.2"]) == 2
    assert "several methods run; say whose it is, as in coop.lr=0.1,0.2." in capsys.readouterr().err
