"""The command that is told of a result plans the run that the result is of."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from shared_paths import REPOSITORY

from promptbench.cli.flags import request_of
from promptbench.cli.main import parser
from promptbench.results.command import command_of, evaluation_of
from promptbench.results.result import Result, read_result
from promptbench.runs.plan import plan_runs

MINI = REPOSITORY / "results" / "mini" / "results"


def stored(pattern: str) -> Result:
    return read_result(sorted(MINI.glob(pattern))[0])


def planned(result: Result, *more: str) -> set[str]:
    options = parser().parse_args([*command_of(result)[1:], *more])
    return {run.spec.name for run in plan_runs(request_of(options, companions=False))}


@pytest.mark.parametrize("protocol", ["base2new", "cross_dataset", "domain_generalization", "few_shot", "ood"])
def test_the_command_of_a_committed_result_plans_its_run(protocol: str) -> None:
    result = stored(f"{protocol}/*/maple-*.json")
    assert result.name in planned(result)


def test_what_was_asked_for_is_asked_for_again() -> None:
    words = (
        "run --method coop --dataset mini_neon --data-seed 3 --train-seed 4 --shots 2 --split random:1 --temperature "
        "--corrupt fog:3 --precision bf16-mixed --deterministic --threads 2 --device cpu --sampler stratified "
        "--set coop.epochs=2 coop.ctx_init=dataset mini_neon.render_seed=4"
    )
    (run,) = plan_runs(request_of(parser().parse_args(words.split()), companions=False))
    conditions = {"provenance": run.settings.provenance}
    asked = replace(stored("base2new/mini_neon/coop-*.json"), spec=run.spec, conditions=conditions)
    assert planned(asked) == {run.spec.name}
    assert "coop.epochs=2" in command_of(asked) and not any("steps" in word for word in command_of(asked))


def test_a_folder_of_images_is_named_by_its_place(tmp_path: Path) -> None:
    for name in ("jay", "wren"):
        (tmp_path / "birds" / name).mkdir(parents=True)
    words = ["run", "--method", "coop", "--protocol", "few_shot", "--dataset", f"folder:{tmp_path / 'birds'}"]
    options = parser().parse_args([*words, "--seeds", "1", "--shots", "2", "--set", "birds.template=a {}"])
    (run,) = plan_runs(request_of(options, companions=False))
    asked = replace(stored("base2new/mini_neon/coop-*.json"), spec=run.spec, conditions={})
    assert planned(asked) == {run.spec.name}


def test_an_evaluation_of_a_training_is_told_in_two_commands() -> None:
    result = stored("base2new/mini_neon/coop-*.json")
    other = replace(result, spec=replace(result.spec, protocol="ood", trained_by="base2new"))
    assert command_of(other) == command_of(result)
    words = ["promptbench", "eval", "--run", "r.json", "--protocol", "ood", "--temperature"]
    assert evaluation_of(other, "r.json") == words
    assert not evaluation_of(result)


def test_commands_of_hundreds_of_results_take_no_torch_and_a_moment() -> None:
    code = (
        "import sys, time\n"
        "from promptbench.results.command import command_of\n"
        "from promptbench.results.result import read_results\n"
        f"results = read_results({str(MINI / 'base2new' / 'mini_colours')!r})\n"
        "began = time.process_time()\n"
        "words = [command_of(result) for result in results]\n"
        "assert time.process_time() - began < 0.01 * len(results) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_results_of_suites_that_are_not_here_have_a_command() -> None:
    result = stored("base2new/mini_neon/coop-*.json")
    gone = replace(result, spec=replace(result.spec, suite="gone", dataset="away", dataset_plugin="nowhere"))
    said = " ".join(command_of(gone))
    assert "--suite gone --dataset away --backbone mini" in said and "--shots 16" in said and "--threads 1" in said
