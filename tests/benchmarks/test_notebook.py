"""The notebook of the first hour runs, cell by cell, and is stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shared_paths import REPOSITORY

NOTEBOOK = json.loads((REPOSITORY / "benchmarks" / "first_hour.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_small_and_has_no_outputs() -> None:
    assert NOTEBOOK["nbformat"] == 4 and len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in CODE:
        exec("".join(cell["source"]), names)
    assert "coop" in capsys.readouterr().out
    assert repr(names["trained"]).startswith("Trained coop: base2new on mini_fabrics, seed 1")
    assert set(names["accuracy"].label) == {"zeroshot", "zeroshot@generic", "coop"}
