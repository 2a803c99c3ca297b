"""Evaluations of what was trained before: the right data, the right label, one sentence where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptbench.cli.main import main
from promptbench.results.result import Result, read_results

SHORT = ("--set", "coop.epochs=1", "coop.batch=8", "--seeds", "1", "--threads", "1")


@pytest.fixture(scope="module")
def made(tiny_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of base2new on other drawings than the suite's: coop, and zero-shot."""
    output = tmp_path_factory.mktemp("made")
    call = ["run", "--method", "coop", "--dataset", "mini_fabrics", "--backbone", tiny_name, "--shots", "2", *SHORT]
    call += ["--set", "mini_fabrics.render_seed=3"]
    assert main([*call, "--output", str(output)]) == 0
    return output


def result_of(output: Path, protocol: str, method: str) -> tuple[Path, Result]:
    (result,) = (r for r in read_results(output) if (r.spec.protocol, r.spec.label) == (protocol, method))
    return output / "results" / f"{result.name}.json", result


@pytest.mark.slow
def test_it_keeps_dataset_options_and_says_what_it_was_trained_by(made: Path) -> None:
    path, first = result_of(made, "base2new", "coop")
    assert first.spec.dataset_options == {"render_seed": 3}
    assert main(["eval", "--run", str(path), "--protocol", "few_shot"]) == 0
    path, second = result_of(made, "few_shot", "coop")
    assert second.spec.dataset_options == {"render_seed": 3} and second.spec.trained_by == "base2new"
    assert second.spec.split_digest == first.spec.split_digest
    assert second.conditions["training_key"] == first.conditions["training_key"]
    assert main(["eval", "--run", str(path), "--protocol", "base2new"]) == 0  # an evaluation of an evaluation
    again = [r for r in read_results(made) if (r.spec.protocol, r.spec.label) == ("base2new", "coop")]
    assert {r.conditions["training_key"] for r in again} == {first.conditions["training_key"]}
    assert [r.spec.trained_by for r in again] == [""]


def test_zero_shot_is_trained_by_nothing_and_has_one_number_of_shots(made: Path) -> None:
    path, _ = result_of(made, "base2new", "zeroshot")
    assert main(["eval", "--run", str(path), "--protocol", "few_shot"]) == 0
    _, result = result_of(made, "few_shot", "zeroshot")
    assert (result.spec.trained_by, result.spec.shots) == ("", 0)


@pytest.mark.slow
def test_a_dataset_outside_the_suite_is_evaluated_too(tiny_name: str, tmp_path: Path) -> None:
    call = ["run", "--method", "zeroshot", "--dataset", "mini_digits", "--backbone", tiny_name, "--seeds", "1"]
    assert main([*call, "--output", str(tmp_path)]) == 0
    path, _ = result_of(tmp_path, "base2new", "zeroshot")
    assert main(["eval", "--run", str(path), "--protocol", "few_shot"]) == 0
    assert result_of(tmp_path, "few_shot", "zeroshot")[1].spec.dataset == "mini_digits"


@pytest.mark.slow
def test_a_method_bound_to_its_classes_has_no_scores_elsewhere(tiny_name: str, tmp_path: Path) -> None:
    call = ["run", "--method", "linear_probe", "--dataset", "mini_fabrics", "--backbone", tiny_name, "--seeds", "1"]
    assert main([*call, "--shots", "2", "--output", str(tmp_path)]) == 0
    path, _ = result_of(tmp_path, "base2new", "linear_probe")
    assert main(["eval", "--run", str(path), "--protocol", "ood"]) == 0
    _, result = result_of(tmp_path, "ood", "linear_probe")
    assert not result.metrics and "fitted on only" in result.notes["id/"]


@pytest.mark.slow
def test_two_suites_that_call_different_data_the_same_are_told_apart(tiny_name: str, tmp_path: Path) -> None:
    names = set()
    for plugin in ("mini_fabrics", "mini_neon"):
        suite = tmp_path / plugin / "mine.yaml"
        suite.parent.mkdir()
        roles = {"base2new": [{"name": "birds", "dataset": plugin}]}
        facts = {"title": "mine", "backbone": tiny_name, "seeds": [1], "threads": 1, "roles": roles}
        suite.write_text(json.dumps(facts))
        assert main(["run", "--suite", str(suite), "--method", "zeroshot", "--output", str(tmp_path / "runs")]) == 0
    results = read_results(tmp_path / "runs")
    names = {result.spec.dataset_plugin for result in results}
    assert names == {"mini_fabrics", "mini_neon"} and {result.spec.dataset for result in results} == {"birds"}
