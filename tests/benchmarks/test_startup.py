"""What a call imports that has nothing to do: torch, for a table pandas, and nothing else that takes long."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from promptbench.cli.main import main

SLOW = (
    "matplotlib",
    "open_clip",
    "pandas",
    "pytorch_lightning",
    "rich",
    "scipy",
    "sklearn",
    "torchmetrics",
    "torchvision",
)
LOOK = f"""
import sys
from promptbench.cli.main import main
assert main() == 0
print("slow:", *[name for name in {SLOW!r} if name in sys.modules], file=sys.stderr)
"""


def test_the_committed_tables_of_the_start_are_those_of_its_figures() -> None:
    repository = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("startup", repository / "benchmarks" / "stress" / "startup.py")
    assert spec is not None and spec.loader is not None
    startup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(startup)
    measured = repository / "results" / "measured" / "startup.json"
    found = json.loads(measured.read_text(encoding="utf-8"))
    assert startup.tables(found) == measured.with_suffix(".md").read_text(encoding="utf-8")
    assert found["finished runs"]["runs done again"] == 0
    for name in ("run, finished and remembered", "table", "status", "list", "report"):
        assert "torch" not in found["commands"][name], name
    assert found["commands"]["run, finished and remembered"]["all"] < found["finished runs"]["import torch"]


@pytest.mark.slow
def test_a_finished_grid_imports_torch_and_what_its_table_takes(tmp_path: Path) -> None:
    words = ["run", "--method", "zeroshot", "--dataset", "mini_diagrams", "--seeds", "1", "--output", str(tmp_path)]
    assert main([*words, "--device", "cpu"]) == 0
    call = [sys.executable, "-c", LOOK, *words, "--device", "cpu"]
    again = subprocess.run(call, capture_output=True, text=True, check=True)
    assert "zero" in again.stdout.lower()
    assert again.stderr.splitlines()[-1] == "slow: pandas"  # of the table


@pytest.mark.slow
def test_a_dry_run_of_a_finished_grid_measures_nothing(tmp_path: Path) -> None:
    words = ["run", "--method", "zeroshot", "--dataset", "mini_diagrams", "--seeds", "1", "--output", str(tmp_path)]
    assert main([*words, "--device", "cpu"]) == 0
    call = [sys.executable, "-c", LOOK, *words, "--device", "cpu", "--dry-run"]
    again = subprocess.run(call, capture_output=True, text=True, check=True)
    assert "2 finished, 0 to do" in again.stdout and "calibration" not in again.stdout
    assert again.stderr.splitlines()[-1] == "slow:"
