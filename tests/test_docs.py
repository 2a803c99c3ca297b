"""`make docs`: pages of the public names and of the contracts, from their docstrings."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import promptbench as pb

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_pages_have_every_public_name_and_say_shapes(tmp_path: Path) -> None:
    steps = ["make", "--no-print-directory", "--dry-run", "docs", f"VENV={tmp_path}"]
    said = subprocess.run(steps, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    command = shlex.split(said.splitlines()[-1].replace("build/docs", str(tmp_path / "docs")))
    done = subprocess.run([sys.executable, *command[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    page = (tmp_path / "docs" / "promptbench.html").read_text()
    assert [name for name in pb.__all__ if f'id="{name}"' not in page] == []
    assert "(B, K)" in page and "Raises" in page
    for contract in ("method", "protocol", "metrics/ood", "clip/prompts", "protocols/base2new"):
        assert (tmp_path / "docs" / "promptbench" / f"{contract}.html").exists()
