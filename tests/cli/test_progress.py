"""What is said of runs while several go at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from promptbench.cli.progress import Display, figures
from promptbench.results.result import Result, predictions_path, write_result
from promptbench.results.spec import Spec
from promptbench.sweep.status import standing_of


def stored(output: Path, seed: int) -> Any:
    """A run with a result."""
    spec = Spec(
        suite="mini",
        protocol="base2new",
        dataset="birds",
        method="coop",
        shots=4,
        data_seed=seed,
        train_seed=seed,
        backbone="mini",
        threads=1,
    )
    facts: dict[str, Any] = {"conditions": {}, "versions": {}, "commit": "", "created": "now"}
    write_result(output, Result(spec=spec, metrics={"h": 70.0 + seed}, **facts))
    return SimpleNamespace(spec=spec)


def test_a_finished_run_without_predictions_is_not_done_before_it_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = stored(tmp_path, 1), stored(tmp_path, 2)
    display = Display()
    display.begins([first, second], 2, tmp_path)
    display.stands(standing_of(tmp_path))
    assert capsys.readouterr().err == ""
    path = predictions_path(tmp_path, second.spec)
    path.parent.mkdir(parents=True)
    path.touch()
    display.stands(standing_of(tmp_path))
    assert capsys.readouterr().err == "[1/2] base2new, 4 shots: coop birds seed 2: h 72.0 (0.0 s)\n"


def test_figures_have_one_order_whether_a_result_was_just_made_or_read(tmp_path: Path) -> None:
    figures_of = {
        "joint/accuracy": 60.0,
        "open_world_auc": 50.0,
        "h": 75.0,
        "new/accuracy": 70.0,
        "base/accuracy": 80.0,
    }
    run = stored(tmp_path, 1)
    facts: dict[str, Any] = {"versions": {}, "commit": "", "created": "now"}
    for metrics in (figures_of, dict(sorted(figures_of.items()))):
        result = Result(spec=run.spec, conditions={"images": {"base": 1}}, metrics=metrics, **facts)
        assert figures(result) == "base 80.0  new 70.0  h 75.0  joint 60.0  open_world_auc 50.0"
