"""Versions, commit and time of a result."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptbench.storage import versions as provenance


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    provenance.git_commit.cache_clear()
    yield
    provenance.git_commit.cache_clear()


def test_versions_name_what_can_change_a_number() -> None:
    versions = provenance.library_versions()
    assert set(versions) >= {"python", "torch", "torchvision", "open_clip", "pytorch_lightning", "promptbench", "numpy"}
    assert re.match(r"\d+\.\d+", versions["torch"])


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "promptbench" / "storage" / "versions.py"
    module.parent.mkdir(parents=True)
    module.write_text("one\n")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.git_commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    provenance.git_commit.cache_clear()
    clean = provenance.git_commit()
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    module.write_text("two\n")
    provenance.git_commit.cache_clear()
    assert provenance.git_commit() == f"{clean}-dirty"


def test_an_installation_inside_another_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    module = tmp_path / "lib" / "site-packages" / "promptbench" / "storage" / "versions.py"
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.git_commit() == ""


def test_time_is_utc_to_the_second() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance.utc_now())
