"""Memory does not depend on how long a run trains, nor on how many test images it scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import flat
import pytest
from shared_paths import REPOSITORY

MEASURED = REPOSITORY / "results" / "measured" / "flat.json"


def row(epochs: int, images: int, peak: float) -> dict[str, Any]:
    return {"method": "coop", "epochs": epochs, "test images": images, "peak MiB": peak}


def test_growth_is_counted_from_the_shortest_run() -> None:
    rows = [row(2, 100, 500.0), row(20, 100, 501.0), row(200, 100, 503.5), row(2, 1100, 510.0)]
    assert flat.growth(rows) == {"coop": {"MiB over epochs": 3.5, "KiB a test image": 10.24}}


@pytest.mark.slow
def test_a_long_run_takes_no_more_memory_than_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "flat.json"
    sizes = ["--method", "coop", "--epochs", "1", "30", "--images", "20", "4020"]  # fewer, and what is in flight counts
    monkeypatch.setattr(sys, "argv", ["flat", *sizes, "-o", str(report)])
    with pytest.raises(SystemExit) as ended:
        flat.main()
    found = json.loads(report.read_text())
    assert ended.value.code == 0, found["growth"]
    assert [(run["epochs"], run["test images"]) for run in found["runs"]] == [(1, 20), (30, 20), (1, 4020)]
    assert all(run["peak MiB"] > 100 for run in found["runs"])


def test_growth_beyond_the_bounds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "measure", lambda *_: [row(2, 100, 500.0), row(2, 1100, 520.0)])
    monkeypatch.setattr(sys, "argv", ["flat", "--method", "coop"])
    with pytest.raises(SystemExit) as ended:
        flat.main()
    assert ended.value.code == 1  # 20.48 KiB an image


def test_a_run_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such command"):
        flat.peak_of([sys.executable, "-c", "raise SystemExit('no such command')"], tmp_path)


def test_the_committed_figures_are_within_the_bounds() -> None:
    if not MEASURED.exists():
        pytest.skip("no figures are committed")
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert found["growth"] == flat.growth(found["runs"])
    for method, grown in found["growth"].items():
        assert all(grown[what] <= most for what, most in flat.bounds(method).items())
