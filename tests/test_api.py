"""The Python calls: the same runs, files and numbers as the command's."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from shared_paths import TINY
from short_cases import slow_but

import promptbench as pb
from promptbench import registry
from promptbench.cli import progress
from promptbench.cli.main import main
from promptbench.runs.plan import plan_runs

SHORT = {"coop.epochs": 1, "coop.batch": 4}
BROKEN = '''"""Broken: it cannot be trained.

A. Author, "Broken", 2026, arXiv:2601.00001.
"""

from promptbench.method import Method


class Broken(Method):
    trains = False

    def forward(self, images):
        raise RuntimeError("it broke.")
'''


@pytest.fixture(autouse=True)
def _elsewhere(no_plugins: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def what(birds: Path) -> dict[str, Any]:
    """Runs that take a moment."""
    return {
        "protocol": "base2new",
        "datasets": f"folder:{birds}",
        "backbone": TINY,
        "shots": 2,
        "threads": 1,
        "seeds": [1, 2],
        "companions": False,
    }


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    return path


def stored(output: str) -> dict[str, Any]:
    """What must be equal of result files, by name."""
    found = {}
    for path in Path(output, "results").rglob("*.json"):
        record = json.loads(path.read_text())
        found[path.name] = {key: record[key] for key in record if key not in ("cost", "created", "commit")}
    return found


def test_python_and_the_command_leave_the_same_files(
    what: dict[str, Any], birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = pb.run(
        ["zeroshot", "coop"], settings=SHORT, **{**what, "companions": True}, output="python", progress=False
    )
    said = capsys.readouterr()
    assert said.out == said.err == ""
    words = ["--method", "zeroshot", "coop", "--dataset", f"folder:{birds}", "--backbone", TINY, "--shots", "2"]
    words += ["--protocol", "base2new"]
    words += ["--threads", "1", "--seeds", "1", "2", "--set", "coop.epochs=1", "coop.batch=4"]
    assert main(["run", *words, "--output", "command"]) == 0
    assert stored("python") == stored("command") and len(stored("python")) == len(results) == 6
    printed = capsys.readouterr().out
    table, _, comment = str(pb.table(results)).partition("\n<!-- made of ")
    assert f"{table}\n" == printed and "| CoOp" in printed and comment.count("results/base2new/birds/") == 6


def test_results_know_their_files_and_are_read_again(what: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = pb.run("coop", settings=SHORT, **what, progress=False, save_predictions=True)
    monkeypatch.setattr("promptbench.runs.run.evaluate", lambda *_: pytest.fail("it was done again"))
    assert pb.run("coop", settings=SHORT, **what, progress=False) == first
    assert pb.read_results("promptbench-runs") == sorted(first, key=lambda result: result.name)
    assert all(isinstance(result, pb.Result) and result.path is not None for result in first)
    path = first[0].path
    assert path is not None and path.is_absolute() and pb.read_result(path).path == path
    assert "path" not in json.loads(path.read_text())
    assert pb.load(path).spec == first[0].spec
    (predictions,) = Path("promptbench-runs", "predictions").rglob(f"{path.stem}.safetensors")
    assert list(pb.load_predictions(predictions)) == ["base", "new", "joint"]
    frame = pb.to_frame(first)
    assert set(frame.label) == {"coop"} and sorted(set(frame.train_seed)) == [1, 2]


def test_a_table_has_every_format(what: dict[str, Any]) -> None:
    table = pb.table(pb.run("zeroshot", **what, progress=False), per_seed=True)
    assert str(table) == repr(table) and str(table).startswith("### base2new on mini")
    assert r"\begin{tabular}" in table.latex() and r"\toprule" in table.latex(plain=True)
    assert table.html().startswith("<!DOCTYPE html>") and table._repr_html_().startswith("<table>")
    assert table.csv().splitlines()[0].startswith("protocol,") and len(table.csv(long=True)) > len(table.csv())
    assert json.loads(table.json())
    with pytest.raises(pb.UsageError, match="metric of base2new"):
        pb.table(pb.read_results("promptbench-runs"), metric="accurracy")


@pytest.mark.parametrize("jobs", slow_but([1, 2], 1))
def test_a_failure_is_raised_once_the_others_are_done(what: dict[str, Any], broken: Path, jobs: int) -> None:
    call = {**what, "plugins": broken, "progress": False, "jobs": jobs}
    with pytest.raises(
        pb.RunsFailed, match=r"^base2new/birds/broken-\w+ failed: RuntimeError: it broke; 1 more"
    ) as met:
        pb.run(["broken", "zeroshot"], **call)
    assert isinstance(met.value, RuntimeError) and met.value.tried == 4
    assert [result.spec.label for result in met.value.results] == ["zeroshot", "zeroshot"]
    assert [run.spec.seeds for run in met.value.failed] == [(1, 1), (2, 2)]


def test_a_failure_is_recorded_where_that_is_asked_for(what: dict[str, Any], broken: Path) -> None:
    call = {**what, "plugins": [str(broken)], "progress": False}
    results = pb.run(["broken", "zeroshot"], **call, on_error="record")
    assert [result.spec.label for result in results] == ["zeroshot", "zeroshot"]
    assert len(list(Path("promptbench-runs").rglob("broken-*.failed.json"))) == 2
    assert pb.run(["broken", "zeroshot"], **call, on_error="record", retry_failed=False) == results
    with pytest.raises(pb.RunsFailed) as met:
        pb.run(["broken", "zeroshot"], **call, retry_failed=False)
    assert not met.value.failed and len(met.value.left) == 2 and met.value.tried == 0
    with pytest.raises(pb.UsageError, match="Unknown value of on_error 'recrd'. Did you mean 'record'"):
        pb.run("zeroshot", **call, on_error="recrd")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"methods": "mapel"}, "Did you mean 'maple'"),
        ({"methods": "coop@2000"}, "Unknown preset of coop '2000'"),
        ({"methods": "coop", "protocol": "base2knew"}, "Did you mean 'base2new'"),
        ({"methods": "coop", "suite": "minni"}, "Did you mean 'mini'"),
        ({"methods": "coop", "seeds": [1, 1]}, "--seeds takes different integers, not 1 1"),
        ({"methods": "coop", "seeds": [10**20]}, "--seeds takes integers from 0 to 9223372036854775807, not 1000000"),
        ({"methods": "coop", "seeds": [-1]}, "--seeds takes integers from 0 to 9223372036854775807, not -1"),
        ({"methods": "coop", "seeds": [True]}, "--seeds takes integers"),
        ({"methods": "coop", "seeds": ["1"]}, "--seeds takes integers"),
        ({"methods": "coop", "data_seed": 10**20}, "--data-seed takes integers"),
        ({"methods": "coop", "train_seed": -1}, "--train-seed takes integers"),
        ({"methods": "coop", "shots": 10**20}, "'shots' must be at most 9223372036854775807, not 1000000"),
        ({"methods": "coop", "threads": 10**20}, "'threads' must be at most 1024, not 1000000"),
        ({"methods": "coop", "settings": {"coop.epochs": 10**20}}, "it is beyond 64 bits"),
        ({"methods": "coop", "settings": {"coop.lr": float("nan")}}, "it is not finite"),
        ({"methods": "coop", "datasets": "folder:a\0b"}, "it holds a NUL character"),
        ({"methods": "coop", "suite": "a\0b.yaml"}, "it holds a NUL character"),
        ({"methods": "coop", "device": "cuda:9999999999999"}, "--device takes cpu, cuda, cuda:N or auto"),
        ({"methods": "coop", "shots": [1, 2]}, "--shots takes one number for the protocol base2new, not 1 2"),
        ({"methods": "coop", "sampler": "copo"}, "Did you mean 'coop'"),
        ({"methods": "coop", "sampler": "file:a.jsonl", "seeds": [1, 2]}, "write {seed} in the path"),
        ({"methods": "coop", "settings": {"maple.depth": 1}}, "--set maple.…: Unknown method or dataset of this call"),
        ({"methods": "coop", "settings": {"depth": 1}}, "Unknown setting of the methods of this call 'depth'"),
        ({"methods": "coop", "settings": {"a.b.c": 1}}, "--set a.b.c=1: write method.field=value"),
        ({"methods": "coop", "limit": True}, "--limit takes an integer from 1 on, not true"),
        ({"methods": "coop", "grid": {"coop.n_ctx": []}}, "--grid coop.n_ctx=: write method.field=value,value"),
        ({"methods": "coop", "grid": {"coop.n_ctx": 4}}, "--grid coop.n_ctx=4: write method.field=value,value"),
        ({"methods": "coop", "threads": 0}, "'threads' must be at least 1"),
        ({"methods": "coop", "precision": "64"}, "Unknown precision '64'. Known: 16-mixed, 32, authors, bf16-mixed."),
        ({"methods": "coop", "device": "gpu"}, "--device takes cpu, cuda, cuda:N or auto"),
        ({"methods": "coop", "device": "cuda:1", "elsewhere": True}, "the nodes choose the GPU"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_asked_for(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(pb.UsageError) as met:
        plan_runs(pb.Request.of(**asked))
    assert said in str(met.value)


def test_seeds_of_numpy_are_seeds() -> None:
    assert pb.Request.of(methods="coop", seeds=list(np.arange(2))).seeds == ((0, 0), (1, 1))


def test_another_process_plans_the_same_from_what_was_asked(what: dict[str, Any], broken: Path) -> None:
    registry.add_file(broken)
    asked = {**what, "methods": ["coop", "broken", "coop@200"], "grid": {"coop.n_ctx": [2, 4]}, "protocol": "all"}
    request = pb.Request.of(**{**asked, "datasets": (), "suite": "mini"})
    again = pb.Request.of(**pickle.loads(pickle.dumps(request.asked)))
    names = [run.spec.name for run in plan_runs(request)]
    assert names == [run.spec.name for run in plan_runs(again)] and len(set(names)) == len(names) > 20
    assert request.labels == ("coop", "broken", "coop@200") and len(request.protocols) >= 5
    assert again.asked == request.asked and again.device == request.device == request.asked["device"] != "auto"
    place = pb.Place(Path("runs"), (Path("/data"),), save_predictions=True)
    assert pickle.loads(pickle.dumps(place)) == place and place.output == Path.cwd() / "runs"
    with pytest.raises(TypeError, match="of one process"):
        pickle.dumps(pb.Session(place, request.suite))


def test_what_there_is_is_said_without_torch() -> None:
    code = "import sys, promptbench as pb; assert 'maple' in pb.list_methods() and 'dtd' in pb.list_datasets(); "
    code += "assert pb.list_protocols()['base2new']; pb.Result; assert not {'torch', 'pandas'} & set(sys.modules); "
    code += "print(pb.list_methods()['maple'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MaPLe")


@pytest.mark.parametrize("name", pb.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(pb, name).__doc__


def test_bars_are_drawn_in_a_notebook_that_has_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_jupyter=True)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert not progress.drawable(console)
    monkeypatch.setattr(progress, "find_spec", lambda name: name == "ipywidgets" or None)
    assert progress.drawable(console)
