"""What is installed: the declared ranges, the versions known to work, and what each target of the Makefile takes."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from shared_paths import REPOSITORY

CONSTRAINTS = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()


def declared() -> list[Requirement]:
    """All that pyproject.toml asks for, of extras too."""
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    wanted = [Requirement(text) for text in texts]
    return [one for one in wanted if one.name != project["name"]]


def constrained() -> dict[str, Version]:
    pairs = (line.split("==") for line in CONSTRAINTS if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_versions_known_to_work_are_within_the_declared_ranges() -> None:
    known = constrained()
    needed = [one for one in declared() if one.name not in ("tensorboard", "wandb")]  # which no test needs
    assert len(needed) > 20
    for one in needed:
        assert known[canonicalize_name(one.name)] in one.specifier, one


def test_constraints_name_releases_alone() -> None:
    assert all(re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in CONSTRAINTS)
    assert all(version.local is None and not version.is_prerelease for version in constrained().values())


def test_malicious_and_unsafe_versions_of_lightning_are_out() -> None:
    (lightning,) = (one for one in declared() if one.name == "pytorch-lightning")
    assert not [version for version in ("2.6.2", "2.6.3", "2.6.5") if version in lightning.specifier]


@pytest.mark.parametrize(("target", "installs"), [("demo", "--editable ."), ("test", "--editable '.[test]'")])
def test_targets_install_what_they_need_and_no_more(target: str, installs: str, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    told = ["make", "-n", target, f"VENV={tmp_path / 'venv'}"]
    said = subprocess.run(told, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert [line for line in said.splitlines() if "pip install" in line and line.endswith(f"--quiet {installs}")]
    assert said.count("pip install") == 1
