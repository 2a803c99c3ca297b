"""The tables committed under results/ follow from the result files beside them, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from promptbench.benchmarks import mini_bars
from shared_paths import REPOSITORY
from short_cases import slow_but

from promptbench import registry
from promptbench.cli import main
from promptbench.results.predictions import find_predictions
from promptbench.results.result import find, learned_path, read_results
from promptbench.runs.plan import plan_runs
from promptbench.runs.request import Request
from promptbench.show.evidence.pages import PAGES as PAGE_NAMES

MINI = REPOSITORY / "results" / "mini"
LISTED = yaml.safe_load((MINI / "regenerate.yaml").read_text(encoding="utf-8"))
TABLES = sorted(MINI / table["file"] for table in LISTED["tables"])
PAGES = sorted(MINI / page["file"] for page in LISTED["pages"])


def test_there_are_results_and_tables() -> None:
    results = read_results(MINI)
    shown = {path.stem for path in TABLES} | {path.stem for path in PAGES}  # robustness has a page
    assert {path.stem for path in TABLES} <= {result.spec.protocol for result in results} <= shown
    assert sorted(MINI.glob("*.md")) == sorted(TABLES + PAGES) and {path.stem for path in PAGES} == set(PAGE_NAMES)
    assert not list(MINI.rglob("*.failed.json"))


def test_what_seed_1_predicted_and_learned_is_there_and_small(no_plugins: None) -> None:
    results = [result for result in read_results(MINI) if result.spec.train_seed == 1]
    predicted = [result for result in results if find_predictions(MINI, result.spec)]
    assert {result.spec.protocol for result in predicted} == {"base2new", "cross_dataset", "ood"}
    assert len(predicted) == sum(result.spec.protocol in ("base2new", "cross_dataset", "ood") for result in results)
    learned = [result for result in results if learned_path(MINI, result.spec).exists()]
    assert {result.spec.protocol for result in learned} == {"base2new"}
    assert set(registry.names("methods")) - {result.spec.method for result in learned} == {"zeroshot"}
    sizes = [sum(path.stat().st_size for path in (MINI / name).rglob("*")) for name in ("predictions", "learned")]
    assert sizes[0] <= 15e6 and sizes[1] <= 10e6


@pytest.mark.parametrize("table", slow_but(TABLES, *TABLES[:1]), ids=lambda path: path.stem)
def test_a_table_is_rebuilt_from_its_results(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["table", "--protocol", table.stem, "--results", str(MINI)]) == 0
    assert capsys.readouterr().out == table.read_text(encoding="utf-8")


def test_committed_results_are_of_a_clean_checkout_and_one_version_of_everything() -> None:
    results = read_results(MINI)
    assert all(result.commit and not result.commit.endswith("-dirty") for result in results)
    assert len({result.spec.weights_hash for result in results}) == 1


def test_committed_results_are_called_as_runs_of_today_with_the_usual_halves() -> None:
    asked: dict[str, Any] = {
        "methods": "zeroshot",
        "seeds": 1,
        "device": "cpu",
        "companions": False,
        "temperature": True,
    }
    usual = plan_runs(Request.of(**asked))
    assert len(usual) == 7 and all(find(MINI, run.spec) for run in usual)
    swapped = {f"{run.spec.dataset}.swapped": True for run in usual}
    for run in plan_runs(Request.of(**asked, settings=swapped)):
        assert run.spec.dataset_options == {"render_seed": 1, "swapped": True}
        assert find(MINI, run.spec) is None


def test_the_bars_follow_from_the_figures_beside_them() -> None:
    report = json.loads((MINI / "bars.json").read_text(encoding="utf-8"))
    again = mini_bars.judge(report["figures"], report["auroc"])
    assert [(bar.what, bar.measured, bar.holds) for bar in again] == [
        (bar["what"], bar["measured"], bar["holds"]) for bar in report["bars"]
    ]
    assert report["render_seed"] == 2 and len(report["seeds"]) >= 3


def test_zero_shot_stands_in_every_table_of_the_mini_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["table", "--results", str(MINI), "--method", "coop", "--dataset", "mini_neon"]) == 0
    out = capsys.readouterr().out
    assert "| Zero-shot CLIP " in out and "| Zero-shot CLIP (generic) " in out and "| MaPLe" not in out
