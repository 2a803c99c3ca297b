"""One list of what decides a run: a field that is added to it once is known to all of its readers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from promptbench.results.spec import DATA, MACHINE, PLACE, SEED, SETTING, SOURCE, Spec, expect, fields_of
from promptbench.training.files import training_key

ADDED = '''
import io, json, sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from promptbench.results import spec as specs


@dataclass(frozen=True, kw_only=True)
class Wider(specs.Spec):
    """What decides a run, and a temperature; and a digest of the thermometer."""

    temperature: float = specs.decides(specs.SETTING, trains=True, later=True, default=0.25)
    thermometer: str = specs.decides(specs.SOURCE, trains=True, renews="read off another thermometer", default="")


Plain, specs.Spec = specs.Spec, Wider  # before anybody reads it

from promptbench.cli.main import main
from promptbench.method import Method
from promptbench.results.diff import match, told_apart
from promptbench.results.frame import to_frame
from promptbench.results.result import Result, read_result, result_path, write_result
from promptbench.sweep.loop import group_of
from promptbench.sweep.preflight import cause_of
from promptbench.training.files import training_key

facts = {
    **{"suite": "mini", "protocol": "base2new", "dataset": "birds", "method": "coop", "shots": 4, "data_seed": 1},
    **{"train_seed": 1, "backbone": "mini", "threads": 1},
}
cold, warm = Wider(**facts), Wider(**facts, temperature=0.5, thermometer="a")
assert cold.name == Plain(**facts).name != warm.name  # where it says nothing, older files keep their names
assert warm.name == replace(warm, thermometer="b").name  # it renews a run instead of naming it
assert cause_of(warm, replace(warm, thermometer="b")) == "read off another thermometer"
assert not cause_of(replace(warm, thermometer=""), warm)
keys = {training_key(one) for one in (cold, replace(cold, temperature=0.5), warm, replace(warm, thermometer="b"))}
assert len(keys) == 4
planned = {"plan": SimpleNamespace(train=SimpleNamespace(classes="all")), "method": Method}
assert group_of(SimpleNamespace(spec=cold, **planned)) != group_of(SimpleNamespace(spec=warm, **planned))

results = []
for spec, h in ((cold, 50.0), (warm, 70.0)):
    said = {"versions": {}, "commit": "", "created": "2026-01-01", "conditions": {"images": {"base": 9, "new": 9}}}
    metrics = {"base/accuracy": h, "new/accuracy": h, "h": h}
    results.append(Result(spec=spec, metrics=metrics, **said))
    write_result("out", results[-1])
    assert read_result(result_path("out", spec), spec).spec == spec

frame = to_frame(results)
assert set(frame.temperature) == {0.25, 0.5} and set(frame.thermometer) == {"", "a"}
matched = match([results[0]], [results[1]])
(pair,) = matched.pairs
assert pair.differs["temperature"] == "0.25 → 0.5"
both = match(results, results)
assert told_apart(both.pairs) == ["temperature=0.25", "temperature=0.5"]


def printed(*words):
    with redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--results", "out"]) == 0
    return out.getvalue()


table = printed("table")
assert "CoOp (temperature=0.25)" in table and "CoOp (temperature=0.5)" in table
head, *lines = printed("table", "--format", "csv-long").splitlines()
place = head.split(",").index("temperature")
assert {line.split(",")[place] for line in lines} == {"0.25", "0.5"}
printed("report", "-o", "report.html")
page = Path("report.html").read_text(encoding="utf-8")
assert "temperature" in page and "thermometer" in page
print("all know it")
'''


@pytest.mark.slow
def test_a_field_that_is_added_is_known_to_all_readers(tmp_path: object) -> None:
    done = subprocess.run([sys.executable, "-c", ADDED], cwd=str(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "all know it"


def test_every_field_has_a_role_and_what_renews_names_no_file() -> None:
    spec = Spec(
        suite="s", protocol="p", dataset="d", method="m", shots=1, data_seed=1, train_seed=1, backbone="b", threads=1
    )
    assert {item.metadata["role"] for item in fields_of(spec)} == {PLACE, SEED, SETTING, MACHINE, DATA, SOURCE}
    renewing = {item.name for item in fields_of(spec) if item.metadata["renews"]}
    assert renewing - {"plugin"} & set(spec.naming()) == set() and spec.naming()["plugin"] == ""
    assert {item.name for item in fields_of(spec, SOURCE)} <= renewing


def test_where_a_recipe_comes_from_changes_no_training() -> None:
    facts: dict[str, Any] = {
        **{"suite": "s", "protocol": "p", "dataset": "d", "method": "m", "shots": 1, "data_seed": 1, "train_seed": 1},
        **{"backbone": "b", "threads": 1},
    }
    one, same = (Spec(**facts, recipe={"lr": 0.1, "origin": origin}) for origin in ("ours", "the paper"))
    other = Spec(**facts, recipe={"lr": 0.2, "origin": "ours"})
    assert training_key(one) == training_key(same) != training_key(other)


def test_a_value_of_another_kind_is_told_in_short() -> None:
    with pytest.raises(TypeError) as caught:
        expect(["x" * 10_000], str, "the name")
    assert str(caught.value).startswith("the name must be str, not ['xxx") and len(str(caught.value)) < 200
