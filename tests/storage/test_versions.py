"""Versions, commit and time of a result."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import promptbench as pb
from promptbench.cli.main import main
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


@pytest.mark.parametrize(("tag", "version"), [("", r"0\.1\.1\.dev1"), ("v0.2.0", r"0\.2\.0"), (None, r"0\.1\.0")])
def test_the_version_is_that_of_the_tag(tag: str | None, version: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((Path(__file__).parents[2] / "pyproject.toml").read_bytes())
    if tag is not None:  # else a copy without git
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"], ["tag", tag] if tag else ["status"]):
            subprocess.run([*git, *words], check=True, capture_output=True)
    said = subprocess.run(
        [sys.executable, "-m", "setuptools_scm"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert re.fullmatch(version, said.strip())


def test_results_and_the_command_have_the_installed_version(capsys: pytest.CaptureFixture[str]) -> None:
    installed = metadata.version("promptbench-clip")
    assert pb.__version__ == provenance.library_versions()["promptbench"] == installed
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"promptbench {installed}\n"


def test_another_version_is_no_other_code() -> None:
    """A release must not outdate results; which code decides a number is digested, and no file of it has a version."""
    for path in provenance.closure("promptbench.runs.train"):
        assert "__version__ = " not in path.read_text()
