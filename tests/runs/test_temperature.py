"""`--temperature`: fitted on a few validation images, from a stored training, and told beside what it changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shared_paths import TINY

import promptbench as pb
from promptbench.cli.flags import request_of
from promptbench.cli.main import main, parser
from promptbench.data.batches import pixel_batches
from promptbench.data.dataset import open_dataset
from promptbench.data.selection import Selection, open_selection
from promptbench.metrics.classification import CALIBRATION, calibration, fit_temperature
from promptbench.results.knowledge import selection_of
from promptbench.results.predictions import load_predictions
from promptbench.results.result import Result, predictions_path, read_results
from promptbench.runs.plan import plan_runs

SHORT = ("--seeds", "1", "--shots", "2", "--threads", "1", "--set", "coop.epochs=2", "coop.batch=2")


def trainings(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "trainings").iterdir()}


def by_method(output: Path, temperature: bool) -> dict[str, Result]:
    return {one.spec.label: one for one in read_results(output) if one.spec.temperature == temperature}


@pytest.fixture(scope="module")
def evaluated(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a call without a temperature, and of one with it; the second trains nothing."""
    output = tmp_path_factory.mktemp("temperature")
    call = ["run", "--method", "coop", "linear_probe", "--dataset", f"folder:{birds}", "--backbone", TINY, *SHORT]
    call += ["--protocol", "base2new"]
    call += ["--output", str(output), "--save-predictions"]
    assert main(call) == 0
    before = trainings(output)
    assert main([*call, "--temperature"]) == 0
    assert trainings(output) == before
    return output


@pytest.mark.slow
def test_both_values_are_stored_and_settings_were_chosen_alike(evaluated: Path) -> None:
    plain, fitted = by_method(evaluated, temperature=False), by_method(evaluated, temperature=True)
    assert plain.keys() == fitted.keys() == {"zeroshot", "zeroshot@generic", "coop", "linear_probe"}
    for label, result in fitted.items():
        before = plain[label]
        added = result.metrics.keys() - before.metrics.keys()
        evaluations = ["base"] if label == "linear_probe" else ["base", "new", "joint"]
        assert added == {f"{name}/{what}_scaled" for name in evaluations for what in CALIBRATION} | {"temperature"}
        assert before.metrics.items() <= result.metrics.items()
        assert "temperature" not in before.spec.naming() and before.name != result.name
        assert "chosen_on" not in result.conditions
        assert selection_of(result) == selection_of(before)
        assert result.conditions["temperature_images"] == 4 and "temperature_images" not in before.conditions
        assert len(result.spec.contents["validation"]) == 64 and "validation" not in before.spec.contents
    assert {name for name in plain["coop"].metrics if name.startswith("new/")} == {
        f"new/{what}" for what in ("accuracy", *CALIBRATION)
    }


@pytest.mark.slow
def test_it_fits_validation_images_of_trained_classes_and_is_applied_to_all(evaluated: Path, birds: Path) -> None:
    result = by_method(evaluated, temperature=True)["coop"]
    assert result.path is not None
    method = pb.load(result.path).method
    dataset = open_dataset("folder", {"root": str(birds)}, alias="birds")
    selection = Selection(dataset="birds", split="few_held_out", classes="base", shots=2)
    chosen = open_selection(lambda _: dataset, selection, 1)
    trained = open_selection(lambda _: dataset, Selection(dataset="birds", split="train", shots=2), 1)
    assert not {item.image for item in chosen.items} & {item.image for item in (*trained.pool, *dataset.items("test"))}
    method.set_classes(chosen.class_names)
    ((images, labels),) = pixel_batches(method.backbone, dataset, chosen.items, batch=100)
    with torch.no_grad():
        logits = method(images).logits
    assert result.metrics["temperature"] == pytest.approx(fit_temperature(logits, labels), rel=1e-3)


@pytest.mark.slow
def test_stored_predictions_give_the_stored_figures(evaluated: Path) -> None:
    for label, result in by_method(evaluated, temperature=True).items():
        found = load_predictions(predictions_path(evaluated, result.spec))
        assert found
        for name, one in found.items():
            for suffix, temperature in (("", 1.0), ("_scaled", result.metrics["temperature"])):
                for metric, value in calibration(one.logits, one.labels, temperature).items():
                    assert value == pytest.approx(result.metrics[f"{name}/{metric}{suffix}"], abs=0.05), (label, metric)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [False, True])
def test_a_finished_run_is_evaluated_with_a_temperature_afterwards(
    temperature: bool, evaluated: Path, tmp_path: Path
) -> None:
    source, fitted = by_method(evaluated, temperature)["coop"], by_method(evaluated, temperature=True)["coop"]
    assert source.path is not None and fitted.path is not None
    output = tmp_path / "copy"
    shutil.copytree(evaluated, output)
    if not temperature:
        (output / fitted.path.relative_to(evaluated)).unlink()
    call = ["eval", "--run", str(output / source.path.relative_to(evaluated)), "--protocol", "base2new", "few_shot"]
    assert main([*call, *([] if temperature else ["--temperature"])]) == 0  # a run with one keeps it
    assert trainings(output).keys() == trainings(evaluated).keys()
    found = {
        one.spec.protocol: one for one in read_results(output) if one.spec.temperature and one.spec.method == "coop"
    }
    assert found["base2new"].name == fitted.name and found["base2new"].metrics == fitted.metrics
    assert found["few_shot"].metrics.keys() >= {"test/ece_scaled", "test/nll_scaled", "temperature"}


def test_the_flag_is_a_condition_of_the_run_and_of_no_training() -> None:
    call = ["run", "--method", "coop", "--backbone", TINY, "--dataset", "mini_colours", "--seeds", "1"]
    specs = []
    for more in ([], ["--temperature"]):
        (*_, run) = plan_runs(request_of(parser().parse_args([*call, *more])))
        specs.append(run.spec)
    plain, fitted = specs
    assert plain.digest != fitted.digest and plain.training() == fitted.training()
    assert plain.digest == replace(fitted, temperature=False).digest and "temperature" not in plain.naming()
