"""Files that appear whole or not at all: what reaches the disk, in which order, and what a failure leaves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from promptbench.storage.atomic import write_atomically


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order."""
    seen: list[str] = []
    replace = os.replace

    def sync(descriptor: int) -> None:
        seen.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")

    def rename(source: Path, target: Path) -> None:
        seen.append(f"rename to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not name open files")
def test_the_name_of_a_file_reaches_the_disk_as_its_content_does(tmp_path: Path, steps: list[str]) -> None:
    write_atomically(tmp_path / "a", lambda file: file.write(b"1"))
    draft, *rest = steps
    assert draft.startswith("sync .a.") and rest == ["rename to a", f"sync {tmp_path.name}"]
    steps.clear()
    write_atomically(tmp_path / "new" / "newer" / "b", lambda file: file.write(b"1"))
    assert steps[2:] == ["sync newer", "sync new", f"sync {tmp_path.name}"]  # which names the folders that were made


def test_a_system_that_syncs_no_folders_writes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def of_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    write_atomically(tmp_path / "a", lambda file: file.write(b"1"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
