"""The script that makes results/mini again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from promptbench.benchmarks import mini_results as script
from promptbench.benchmarks.mini_results import Part

from promptbench import registry
from promptbench.results.predictions import load_predictions
from promptbench.results.result import find_predictions, learned_path, read_results
from promptbench.runs.plan import plan_runs
from promptbench.runs.request import Request


@pytest.mark.slow
def test_every_method_has_a_row_in_every_protocol_of_the_suite(no_plugins: None) -> None:
    planned: dict[str, set[str]] = {}
    for part in script.parts():
        asked = {name: value for name, value in part.call.items() if name != "save_predictions"}
        for run in plan_runs(Request.of(**asked)):
            planned.setdefault(run.spec.protocol, set()).add(run.spec.method)
    assert set(planned) == {"base2new", "robustness", "cross_dataset", "domain_generalization", "ood", "few_shot"}
    assert all(methods == set(registry.names("methods")) for methods in planned.values())


@pytest.mark.slow
def test_results_take_the_place_of_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"protocol": "base2new", "datasets": ["mini_fabrics"], "settings": {"coop.epochs": 1}, "companions": False}
    call = {"methods": ["coop"], "seeds": [1, 2], "save_predictions": True, **words}
    monkeypatch.setattr(script, "parts", lambda: [Part("one", "", call), Part("two", "more", {**call, "seeds": 1})])
    output, report = tmp_path / "mini", tmp_path / "report.json"
    (output / "results" / "old").mkdir(parents=True)
    (output / "results" / "old" / "coop.json").write_text("{}")
    (output / "regenerate.yaml").write_text("tables: [{file: base2new.md, protocol: base2new}]\n")
    given = ["mini_results", "-o", str(output), "--runs", str(tmp_path / "runs"), "--report", str(report)]
    monkeypatch.setattr(sys, "argv", given)
    script.main()
    first, second = sorted(read_results(output), key=lambda result: result.spec.train_seed)
    assert [first.spec.train_seed, second.spec.train_seed] == [1, 2] and len(read_results(output / "more")) == 1
    packed = find_predictions(output, first.spec)
    assert packed is not None and packed.suffix == ".xz" and set(load_predictions(packed)) == {"base", "joint", "new"}
    assert learned_path(output, first.spec).is_file()
    assert find_predictions(output, second.spec) is None and not learned_path(output, second.spec).exists()
    assert not (output / "results" / "old").exists() and "| CoOp" in (output / "base2new.md").read_text()
    found = json.loads(report.read_text())
    assert found["parts"]["one"]["runs"] == 2 and found["parts"]["one"]["seconds"] > 0 and found["machine"]["cores"]
