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

from promptbench import calibration
from promptbench.bench import Bench
from promptbench.calibration import Calibration
from promptbench.cli import main, parser
from promptbench.estimate import Estimate, Forecast, duration, forecast
from promptbench.flags import request_of
from promptbench.planning import Run, plan_runs
from promptbench.results import Result, result_path
from promptbench.selection import open_selection
from promptbench.trial import Pace, Size, Trial, bilinear

CALL = ["run", "--seeds", "1", "--device", "cpu", "--threads", "1"]
DIAGRAMS = [*CALL, "--dataset", "mini_diagrams"]


def planned(folder: Path, *words: str) -> tuple[Bench, list[Run]]:
    """A bench and the runs of the methods named, without the suite's companions."""
    request = request_of(parser().parse_args(list(words)), companions=False)
    return Bench(request.suite, folder), plan_runs(request)


@pytest.fixture(scope="module", autouse=True)
def rendered() -> None:
    """The images of the datasets, drawn once."""
    from promptbench.dataset import open_dataset

    for split in ("train", "test"):
        open_dataset("mini_diagrams").items(split)


@pytest.mark.parametrize(("method", "epochs"), [("coop", 40), ("maple", 4), ("cocoop", 10)])
def test_seconds_are_right_within_a_factor_of_two(
    method: str, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carry_out: Callable[..., Result]
) -> None:
    """Both in processor time, one right after the other, so that other work on the machine counts little."""
    bench, (run,) = planned(tmp_path, *DIAGRAMS, "--method", method, "--set", f"{method}.epochs={epochs}")
    assert bench.backbone.weights_hash  # loaded, which no estimate counts
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    said = Forecast(bench, time.process_time).of(run)
    began = time.process_time()
    cost = carry_out(bench, run).cost
    taken = time.process_time() - began
    assert taken / 2 < said.seconds < taken * 2, (said, cost)
    assert cost["train_seconds"] / 2 < said.training < cost["train_seconds"] * 2, (said, cost)
    scored = said.images + said.evaluation
    assert cost["eval_seconds"] / 3 < scored < max(1.0, cost["eval_seconds"]) * 3, (said, cost)


def test_memory_is_right_within_a_factor_of_two(tmp_path: Path) -> None:
    """Of a process of its own; what this one needs for pytest is within the factor."""
    words = [*DIAGRAMS, "--method", "maple", "--set", "maple.epochs=1", "--output", str(tmp_path)]
    words += ["--shots", "2"]
    bench, (run,) = planned(tmp_path, *words)
    code = "import sys; from promptbench.cli import main; sys.exit(main())"
    dry = subprocess.run([sys.executable, "-c", code, *words, "--dry-run"], capture_output=True, text=True, check=True)
    gib = float(dry.stdout.rpartition("up to ")[2].split()[0])
    subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)
    taken = json.loads(result_path(tmp_path, run.spec).read_text())["cost"]["peak_memory_mb"] / 1024
    assert taken / 2 < gib < taken * 2


def test_what_is_done_costs_nothing(tmp_path: Path, carry_out: Callable[..., Result]) -> None:
    bench, (run,) = planned(tmp_path, *DIAGRAMS, "--method", "coop", "--set", "coop.epochs=1")
    carry_out(bench, run)
    assert Forecast(bench).of(run) == Estimate()
    assert Forecast(bench, again=[run.spec.name]).of(run).evaluation > 0
    result_path(bench.output, run.spec).unlink()
    rest = Forecast(bench).of(run)  # the training and the features are still there
    assert rest.training == rest.images == rest.kept == 0 < rest.evaluation


def test_shared_trainings_and_features_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--suite", "ablation_mutual", "--protocol", "base2new", "candidates", "--method", "coop", "cocoop"]
    bench, runs = planned(tmp_path, *DIAGRAMS, *words)
    monkeypatch.setattr(Calibration, "training", lambda *_: Pace(0.0, 1.0, 0.0))
    monkeypatch.setattr(Calibration, "encoding", lambda *_: 1.0)
    monkeypatch.setattr("promptbench.estimate.path_of", lambda name: tmp_path / name)
    ahead = Forecast(bench)
    by_run = {(run.spec.protocol, run.spec.label): ahead.of(run) for run in runs}
    epochs = {run.spec.label: run.settings.recipe for run in runs}
    for label in ("coop", "cocoop"):
        recipe = epochs[label]
        assert recipe is not None and by_run["base2new", label].training >= recipe.epochs
        assert by_run["candidates", label].training == 0
    assert by_run["base2new", "coop"].images > 0 == by_run["base2new", "cocoop"].images


def test_views_are_encoded_as_often_as_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Calibration, "training", lambda *_: Pace(0.0, 0.0, 0.0))
    monkeypatch.setattr(Calibration, "encoding", lambda *_: 1.0)
    monkeypatch.setattr("promptbench.estimate.path_of", lambda name: tmp_path / name)
    augmented = [*DIAGRAMS, "--method", "coop", "--set", "coop.augment=true", "coop.epochs=7"]
    counts = []
    for words in ([], ["--train-views", "2"], ["--train-views", "5"], ["--train-views", "50"]):
        bench, (run,) = planned(tmp_path, *augmented, *words)
        counts.append(Forecast(bench).of(run).images)
    train = open_selection(bench.dataset, run.plan.train, 1)
    assert [count - counts[0] for count in counts] == [views * len(train.items) for views in (0, 2, 5, 7)]


@pytest.fixture
def trial(tmp_path: Path) -> Callable[[str], Trial]:
    """Makes the training of a method in small."""

    def made(method: str) -> Trial:
        bench, (run,) = planned(tmp_path, *DIAGRAMS, "--method", method)
        train = open_selection(bench.dataset, run.plan.train, 1)
        assert run.settings.recipe is not None
        recipe = run.settings.recipe
        return Trial(bench.backbone, "cpu", time.perf_counter, run, train, recipe, features=method != "maple")

    return made


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple"])
def test_operations_are_bilinear_in_classes_and_images(method: str, trial: Callable[[str], Trial]) -> None:
    small = trial(method)
    corners = [small.counted(Size(k, b)) for b in (1, 2) for k in (2, 4)]
    full = Size(len(small.train.class_names), 8)
    operations, kept = small.counted(full)
    assert bilinear([c[0] for c in corners], 2, 1, full) == pytest.approx(operations, rel=0.25)
    assert bilinear([c[1] for c in corners], 2, 1, full) == pytest.approx(kept, rel=0.35)


def test_a_function_of_that_form_is_continued_exactly() -> None:
    def f(k: float, b: float) -> float:
        return 3 + 5 * k + 7 * b + 11 * k * b

    assert bilinear([f(2, 3), f(4, 3), f(2, 6), f(4, 6)], 2, 3, Size(100, 32)) == f(100, 32)


def test_what_is_too_slow_is_scaled(trial: Callable[[str], Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit that no step keeps, only the smallest sizes run; CoCoOp's text is made for each image."""
    small = trial("cocoop")
    sizes: set[Size] = set()
    original = Trial.fit

    def watched(self: Trial, size: Size, *rest: Any) -> None:
        sizes.add(size)
        original(self, size, *rest)

    monkeypatch.setattr(Trial, "fit", watched)
    monkeypatch.setattr(calibration, "MOMENT", 0.0)
    pace = Calibration(small.backbone).training(small.run, small.train, features=True)
    tried = Size(calibration.CLASSES, calibration.IMAGES)
    assert max(sizes) == tried and pace.step > 0 and pace.kept > 0
    assert small.scaled(1.0, tried, tried._replace(images=32)).step == pytest.approx(16, rel=0.3)
    assert small.scaled(1.0, tried, tried).step == pytest.approx(1)


def test_a_method_that_looks_at_its_training_images_first_is_estimated(tmp_path: Path) -> None:
    bench, (run,) = planned(tmp_path, *DIAGRAMS, "--method", "linear_probe")
    said = Forecast(bench).of(run)
    assert said.training > 0 and said.evaluation > 0


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


def test_one_unknown_dataset_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from promptbench.config import UsageError

    bench, runs = planned(tmp_path, *CALL, "--dataset", "mini_diagrams", "mini_neon", "--method", "zeroshot")
    original = Forecast.of

    def of(self: Forecast, run: Run) -> Estimate:
        if run.spec.dataset == "mini_neon":
            raise UsageError("no neon")
        return original(self, run)

    monkeypatch.setattr(Forecast, "of", of)
    found, said = forecast(bench, runs)
    assert [one is None for one in found] == [run.spec.dataset == "mini_neon" for run in runs]
    assert said.splitlines()[1] == "no estimate of 1 runs: no neon"


def test_a_method_that_fails_is_listed_without_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, runs = planned(tmp_path, *DIAGRAMS, "--method", "zeroshot", "coop", "--set", "coop.epochs=1")
    monkeypatch.setattr(Calibration, "training", lambda *_: 1 / 0)
    found, said = forecast(bench, runs)
    assert [one is None for one in found] == [run.spec.label == "coop" for run in runs]
    assert "no estimate of 1 runs: ZeroDivisionError" in said


def test_a_backbone_that_cannot_be_loaded_is_tried_once(tmp_path: Path) -> None:
    bench, runs = planned(tmp_path, *DIAGRAMS, "--method", "zeroshot", "coop", "--backbone", "ViT-B-32:nonsense")
    found, said = forecast(bench, runs)
    assert found == [None, None] and "no estimate of 2 runs: 'nonsense' is neither a weight file" in said


def test_the_random_generators_stay_as_they_were(tmp_path: Path) -> None:
    bench, (run,) = planned(tmp_path, *DIAGRAMS, "--method", "maple", "--set", "maple.epochs=1")
    before = torch.get_rng_state()
    assert Forecast(bench).of(run).training > 0
    assert torch.equal(before, torch.get_rng_state())
    assert replace(Estimate(), training=1.0, images=2.0, evaluation=3.0).seconds == 6.0


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (0.7, "0.7 s"), (40.2, "40 s"), (720, "12 min"), (12600, "3.5 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
