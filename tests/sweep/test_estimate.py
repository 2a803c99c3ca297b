"""What a dry run says of time and memory, against runs that are then done."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from short_cases import slow_but

from promptbench.cli.flags import request_of
from promptbench.cli.main import main, parser
from promptbench.data.selection import open_selection
from promptbench.results.result import Result, result_path
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.session import Place, Session
from promptbench.sweep import estimate
from promptbench.sweep.estimate import (
    Calibration,
    Estimate,
    Forecast,
    Size,
    at_once,
    duration,
    forecast,
    measured,
    summary,
)

CALL = ["run", "--seeds", "1", "--device", "cpu", "--threads", "1"]
DIAGRAMS = [*CALL, "--dataset", "mini_diagrams"]


def planned(folder: Path, *words: str) -> tuple[Session, list[Run]]:
    """A session and the runs of the methods named, without the suite's companions."""
    request = request_of(parser().parse_args(list(words)), companions=False)
    return Session(Place(folder), request.suite), plan_runs(request)


@pytest.fixture(scope="module", autouse=True)
def rendered() -> None:
    """The images of the datasets, drawn once."""
    from promptbench.data.dataset import open_dataset

    for split in ("train", "test"):
        open_dataset("mini_diagrams").items(split)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "epochs"), [("coop", 40), ("maple", 4), ("cocoop", 10)])
def test_seconds_are_right_within_a_factor_of_two(
    method: str, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carry_out: Callable[..., Result]
) -> None:
    """Both in processor time, one right after the other, so that other work on the machine counts little."""
    session, (run,) = planned(tmp_path, *DIAGRAMS, "--method", method, "--set", f"{method}.epochs={epochs}")
    assert session.backbone.weights_hash  # loaded, which no estimate counts
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    said = Forecast(session).of(run)
    began = time.process_time()
    cost = carry_out(session, run).cost
    taken = time.process_time() - began
    assert taken / 2 < said.seconds < taken * 2, (said, cost)
    assert cost["train_seconds"] / 2 < said.training < cost["train_seconds"] * 2, (said, cost)
    scored = said.images + said.evaluation
    assert cost["eval_seconds"] / 3 < scored < max(1.0, cost["eval_seconds"]) * 3, (said, cost)


@pytest.mark.slow
def test_memory_is_right_within_a_factor_of_two(tmp_path: Path) -> None:
    """Of a process of its own; what this one needs for pytest is within the factor."""
    words = [*DIAGRAMS, "--method", "maple", "--set", "maple.epochs=1", "--output", str(tmp_path)]
    words += ["--shots", "2"]
    session, (run,) = planned(tmp_path, *words)
    code = "import sys; from promptbench.cli.main import main; sys.exit(main())"
    dry = subprocess.run([sys.executable, "-c", code, *words, "--dry-run"], capture_output=True, text=True, check=True)
    gib = float(dry.stdout.rpartition("up to ")[2].split()[0])
    subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)
    taken = json.loads(result_path(tmp_path, run.spec).read_text())["cost"]["peak_memory_mb"] / 1024
    assert taken / 2 < gib < taken * 2


@pytest.mark.slow
def test_what_is_done_costs_nothing(tmp_path: Path, carry_out: Callable[..., Result]) -> None:
    session, (run,) = planned(tmp_path, *DIAGRAMS, "--method", "coop", "--set", "coop.epochs=1")
    carry_out(session, run)
    assert Forecast(session).of(run) == Estimate()
    assert Forecast(session, again=[run.spec.name]).of(run).evaluation > 0
    result_path(session.output, run.spec).unlink()
    rest = Forecast(session).of(run)  # the training and the features are still there
    assert rest.training == rest.images == rest.kept == 0 < rest.evaluation


@pytest.mark.slow
def test_shared_trainings_and_features_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--suite", "ablation_mutual", "--protocol", "base2new", "candidates", "--method", "coop", "cocoop"]
    session, runs = planned(tmp_path, *DIAGRAMS, *words)
    monkeypatch.setattr(Calibration, "training", lambda *_: (1.0, 0))
    monkeypatch.setattr(Calibration, "encoding", lambda *_: 1.0)
    monkeypatch.setattr("promptbench.sweep.estimate.path_of", lambda name: tmp_path / name)
    ahead = Forecast(session)
    by_run = {(run.spec.protocol, run.spec.label): ahead.of(run) for run in runs}
    epochs = {run.spec.label: run.settings.recipe for run in runs}
    for label in ("coop", "cocoop"):
        recipe = epochs[label]
        assert recipe is not None and by_run["base2new", label].training >= recipe.epochs
        assert by_run["candidates", label].training == 0
    assert by_run["base2new", "coop"].images > 0 == by_run["base2new", "cocoop"].images


@pytest.mark.slow
def test_steps_are_counted_where_a_recipe_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Calibration, "training", lambda *_: (0.5, 0))
    monkeypatch.setattr(Forecast, "_evaluate", lambda *_: None)

    def seconds(*words: str) -> float:
        session, (run,) = planned(tmp_path, *DIAGRAMS, "--method", "clip_lora", "--shots", "4", *words)
        return Forecast(session).of(run).training

    assert seconds("--set", "clip_lora.steps_per_shot=500") == 0.5 * 4 * 500
    assert seconds("--set", "clip_lora.steps=30") == 15
    in_epochs = ("clip_lora.epochs=3", "clip_lora.batch=16")
    assert seconds("--set", *in_epochs) == 0.5 * 3 * 2  # of eight classes with four images each


@pytest.mark.slow
def test_views_are_encoded_as_often_as_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Calibration, "training", lambda *_: (0.0, 0))
    monkeypatch.setattr(Calibration, "encoding", lambda *_: 1.0)
    monkeypatch.setattr("promptbench.sweep.estimate.path_of", lambda name: tmp_path / name)
    augmented = [*DIAGRAMS, "--method", "coop", "--set", "coop.augment=true", "coop.epochs=7"]
    counts = []
    for words in ([], ["--train-views", "2"], ["--train-views", "5"], ["--train-views", "50"]):
        session, (run,) = planned(tmp_path, *augmented, *words)
        counts.append(Forecast(session).of(run).images)
    train = open_selection(session.dataset, run.plan.train, 1)
    assert [count - counts[0] for count in counts] == [views * len(train.items) for views in (0, 2, 5, 7)]


@pytest.mark.slow
def test_what_is_too_slow_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit that no step keeps, only the smallest size runs, and the memory of text is added."""
    session, (run,) = planned(tmp_path, *DIAGRAMS, "--method", "coop", "--set", "coop.batch=32")
    train = open_selection(session.dataset, run.plan.train, 1)
    recipe = run.settings.recipe
    assert recipe is not None
    sizes: list[Size] = []

    def step(self: Calibration, *given: Any) -> float:
        sizes.append(given[3])
        return 3.0

    monkeypatch.setattr(Calibration, "step", step)
    seconds, unseen = Calibration(session, run).training(train, recipe, features=True)
    assert sizes == [Size(estimate.CLASSES, estimate.IMAGES)] and unseen == session.backbone.memory_budget
    full = Size(len(train.class_names), 32)
    assert seconds == 3.0 * full.classes * full.images / (estimate.CLASSES * estimate.IMAGES)
    monkeypatch.setattr(estimate, "LONGEST", 1e9)
    sizes.clear()
    assert Calibration(session, run).training(train, recipe, features=True) == (3.0, 0)
    assert sizes[-1] == full


@pytest.mark.parametrize("limit", [5.0, 14.0, 60.0, 1e6])
def test_no_measured_step_but_the_first_takes_longer_than_the_limit(
    limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a method whose text costs as much as 4 images."""
    tried: list[Size] = []

    def cost(size: Size) -> tuple[float, float]:
        return 1.0 + size.classes, size.images / 4

    def seconds(size: Size) -> tuple[float, float]:
        tried.append(size)
        return cost(size)

    monkeypatch.setattr(estimate, "LONGEST", limit)
    full = Size(100, 32)
    found, taken = measured(full, seconds)
    assert found == tried[-1] and taken == cost(found)
    assert tried[0] == Size(4, 2) and all(sum(cost(size)) <= limit for size in tried[1:])
    assert (found == full) == (limit == 1e6) and (found == tried[0]) == (limit == 5.0)


@pytest.mark.parametrize("method", slow_but(["coop", "cocoop", "maple"], "coop"))
def test_scaling_by_classes_and_images_is_an_upper_bound(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    session, (run,) = planned(tmp_path, *DIAGRAMS, "--method", method)
    train = open_selection(session.dataset, run.plan.train, 1)
    recipe, features = run.settings.recipe, method != "maple"
    assert recipe is not None
    real, _ = Calibration(session, run).training(train, recipe, features)
    monkeypatch.setattr(estimate, "LONGEST", 0.0)
    scaled, _ = Calibration(session, run).training(train, recipe, features)
    assert scaled > 0.8 * real


@pytest.mark.parametrize("method", ["linear_probe", "tip_adapter"])
def test_a_method_that_looks_at_its_training_images_first_is_estimated(method: str, tmp_path: Path) -> None:
    session, (run,) = planned(tmp_path, *DIAGRAMS, "--method", method)
    said = Forecast(session).of(run)
    assert said.training > 0 and said.evaluation > 0


@pytest.mark.slow
def test_grid_points_and_times_stand_in_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*DIAGRAMS, "--method", "maple", "--grid", "maple.depth=1,2", "--output", str(tmp_path), "--dry-run"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["state", "protocol", "dataset", "method", "seeds", "recipe", "grid", "time"]
    grid = [line for line in lines if " maple " in line]
    assert ["depth=1" in line for line in grid] == [True, False] and "depth=2" in grid[1]
    assert all(line.split()[-1] in ("s", "min") and float(line.split()[-2]) > 0 for line in grid)
    assert lines[-1].startswith("about ") and "GiB of memory" in lines[-1] and "calibration" in lines[-1]
    assert not list(tmp_path.glob("**/*.json"))
    monkeypatch.setattr(Forecast, "of", lambda *_: pytest.fail("calibrated"))
    assert main([*words, "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split()[-1] == "grid" and "depth=2" in listed[-3] and listed[-1].endswith("4 to do")


def test_without_data_the_runs_are_listed_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--suite", "clip11", "--dataset", "dtd", "--method", "coop", "--output", str(tmp_path), "--dry-run"]
    assert main([*CALL, *words, "--data-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "to do  base2new  dtd" in said and "no estimate of 1 runs: The dataset 'dtd'" in said


@pytest.mark.slow
def test_one_unknown_dataset_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from promptbench.config import UsageError

    session, runs = planned(tmp_path, *CALL, "--dataset", "mini_diagrams", "mini_neon", "--method", "zeroshot")
    original = Forecast.of

    def of(self: Forecast, run: Run) -> Estimate:
        if run.spec.dataset == "mini_neon":
            raise UsageError("no neon")
        return original(self, run)

    monkeypatch.setattr(Forecast, "of", of)
    found, said = forecast(session, runs)
    assert [one is None for one in found] == [run.spec.dataset == "mini_neon" for run in runs]
    assert said.splitlines()[1] == "no estimate of 1 runs: no neon"


@pytest.mark.slow
def test_a_method_that_fails_is_listed_without_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, runs = planned(tmp_path, *DIAGRAMS, "--method", "zeroshot", "coop", "--set", "coop.epochs=1")
    monkeypatch.setattr(Calibration, "training", lambda *_: 1 / 0)
    found, said = forecast(session, runs)
    assert [one is None for one in found] == [run.spec.label == "coop" for run in runs]
    assert "no estimate of 1 runs: ZeroDivisionError" in said


def test_a_backbone_that_cannot_be_loaded_is_tried_once(tmp_path: Path) -> None:
    session, runs = planned(tmp_path, *DIAGRAMS, "--method", "zeroshot", "coop", "--backbone", "ViT-B-32:nonsense")
    found, said = forecast(session, runs)
    assert found == [None, None] and "no estimate of 2 runs: 'nonsense' is neither a weight file" in said


@pytest.mark.slow
def test_the_random_generators_stay_as_they_were(tmp_path: Path) -> None:
    session, (run,) = planned(tmp_path, *DIAGRAMS, "--method", "maple", "--set", "maple.epochs=1")
    before = torch.get_rng_state()
    assert Forecast(session).of(run).training > 0
    assert torch.equal(before, torch.get_rng_state())
    assert replace(Estimate(), training=1.0, images=2.0, evaluation=3.0).seconds == 6.0


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (0.7, "0.7 s"), (40.2, "40 s"), (720, "12 min"), (12600, "3.5 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_runs_at_once_take_as_long_as_the_last_to_end() -> None:
    assert at_once([3.0, 1.0, 1.0, 1.0], 1) == 6.0
    assert at_once([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert at_once([1.0, 1.0, 3.0], 2) == 4.0 and at_once([1.0], 8) == 1.0
    found = [Estimate(training=60.0), Estimate(training=60.0)]
    assert summary(found, 1.0, []).startswith("about 2 min, one after the other (training 2 min")
    assert summary(found, 1.0, [], jobs=2).startswith("about 60 s, 2 at once (training 2 min")
