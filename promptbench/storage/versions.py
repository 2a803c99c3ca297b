"""Where and when a number was made: library versions, commit, time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path

DISTRIBUTIONS = {
    "numpy": "numpy",
    "open_clip": "open_clip_torch",
    "promptbench": "promptbench-clip",
    "pytorch_lightning": "pytorch-lightning",
    "torch": "torch",
    "torchvision": "torchvision",
}


def library_versions() -> dict[str, str]:
    """Version of Python and of every library that can change a number; "" for one that is not installed."""
    versions = {"python": platform.python_version()}
    for name, distribution in DISTRIBUTIONS.items():
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return versions


@lru_cache(maxsize=1)
def git_commit() -> str:
    """Commit of the checkout that promptbench runs from, with `-dirty` if files changed since; "" outside one."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # an environment inside someone's own repository must not report theirs
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
