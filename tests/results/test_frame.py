"""Stored results as one long frame: every condition a column, values as they are stored."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import pandas as pd
import pytest

import promptbench as pb
from promptbench.results import frame
from promptbench.results.result import Result
from promptbench.results.spec import SETTING, Spec, decides

FACTS: dict[str, Any] = {
    "suite": "mini",
    "protocol": "base2new",
    "dataset": "shapes",
    "method": "maple",
    "preset": "deep",
    "config": {"n_ctx": 2, "at": [1, 2]},
    "recipe": {"epochs": 5, "lr": 0.002, "origin": "paper"},
    "shots": 16,
    "data_seed": 1,
    "train_seed": 2,
    "backbone": "mini",
    "threads": 1,
}


def make(base: float = 80.0, kind: type[Spec] = Spec, **facts: Any) -> Result:
    return Result(
        spec=kind(**{**FACTS, **facts}),
        conditions={"sample_size": 4, "images": {"base": 9}},
        metrics={"base/accuracy": base, "base/mcm/auroc": 60.0, "h": 68.5},
        versions={},
        commit="c0ffee",
        created="now",
    )


def test_a_line_is_a_run_an_evaluation_and_a_metric() -> None:
    found = pb.to_frame([make(), make(70.0, train_seed=3)])
    assert list(zip(found.train_seed, found.evaluation, found.metric, found.value, strict=True)) == [
        *((2, "base", "accuracy", 80.0), (2, "base", "mcm/auroc", 60.0), (2, "", "h", 68.5)),
        *((3, "base", "accuracy", 70.0), (3, "base", "mcm/auroc", 60.0), (3, "", "h", 68.5)),
    ]
    assert found.value.dtype == float and found.run.nunique() == 2


def test_every_field_of_the_spec_is_a_column() -> None:
    result = make(evaluated={"dtd": {"root": "x"}})
    line = pb.to_frame([result]).iloc[0]
    for item in fields(Spec):
        value = getattr(result.spec, item.name)
        assert line[item.name] == (frame.ENCODE(value) if isinstance(value, dict) else value)
    assert (line["config.n_ctx"], line["config.at"], line["recipe.lr"]) == (2, "[1, 2]", 0.002)
    assert (line["label"], line["conditions.sample_size"], line["commit"]) == ("maple@deep", 4, "c0ffee")


def test_a_new_field_of_the_spec_shows_up(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Younger(Spec):
        temperature: float = decides(SETTING, default=0.5)

    found = pb.to_frame([make(kind=Younger, temperature=0.25), make(70.0, kind=Younger)])
    assert list(found[found.metric == "h"].temperature) == [0.25, 0.5]


def test_a_setting_that_a_run_lacks_is_no_value() -> None:
    found = pb.to_frame([make(), make(70.0, config={"depth": None})])
    assert list(found["config.n_ctx"].isna()) == [False] * 3 + [True] * 3
    assert "conditions.split_source" not in found


def test_every_column_can_be_grouped_by() -> None:
    results = [make(value, train_seed=seed) for seed, value in ((1, 80.0), (2, 90.0), (3, 70.0))]
    found = pb.to_frame([*results, make(10.0, config={"n_ctx": 4})])
    seeds = {"run", "train_seed", "value"}
    groups = found.groupby([name for name in found if name not in seeds], dropna=False)
    assert [fmean(values) for _, values in groups.value if 80.0 in set(values)] == [80.0]
    assert groups.ngroups == 6


def test_settings_of_other_types_are_told_apart() -> None:
    values: list[Any] = [1, 1.0, True, "1", None]
    runs = frame.runs_frame([make(config={"csc": value}) for value in values] + [make(config={})])
    texts = frame.json_frame(runs)["config.csc"]
    assert list(texts)[:-1] == ["1", "1.0", "true", '"1"', "null"] and pd.isna(texts.iloc[-1])


@pytest.mark.slow
def test_ten_thousand_results_take_little_time() -> None:
    results = [make(float(seed % 90), data_seed=seed) for seed in range(10_000)]
    start = time.process_time()
    assert len(pb.to_frame(results)) == 30_000
    assert time.process_time() - start < 4.0  # measured: 0.9 s, half of it the names of the runs


def test_no_result_makes_an_empty_frame() -> None:
    assert len(pb.to_frame([])) == 0


def test_pandas_is_imported_when_a_frame_is_asked_for() -> None:
    code = "import sys, promptbench as pb, promptbench.cli.main; pb.read_results; assert 'pandas' not in sys.modules; "
    code += "pb.to_frame; assert 'pandas' in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
