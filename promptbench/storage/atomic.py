"""Files that appear whole or not at all, and what is left of those that did not."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

DRAFT_AGE = 3600.0  # seconds after which an unfinished file is nobody's


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Creates or replaces `path` with what `write` puts into the open file, whole or not at all.

    The bytes go to a temporary file beside `path`, reach the disk and take its place in one step; on any failure,
    Ctrl-C included, `path` stays as it was. Missing folders are made. What is written is there after a loss of power,
    too, where the system can say so of folders.
    """
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for folder in (path.parent, *(made.parent for made in missing)):
        _sync(folder)


def _sync(folder: Path) -> None:
    """Have the names in a folder reach the disk, where that can be; the file that got one is there already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def superseded(folder: Path) -> list[Path]:
    """The notes of where trainings stood, `NAME.partial`, beside what was learned since, `NAME.safetensors`."""
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:
        return []
    notes = [Path(folder, name) for name in sorted(names) if name.endswith(".partial")]
    return [path for path in notes if path.with_suffix(".safetensors").name in names]


def remove_drafts(folder: Path, now: float) -> None:
    """Removes what `write_atomically` left below a folder where the process was killed, once that is long ago.

    Args:
        now: Seconds since 1970, by the clock of the folder's file system.
    """
    for place, _, files in os.walk(folder):
        for draft in (Path(place, file) for file in files if file.startswith(".") and file.endswith(".tmp")):
            with contextlib.suppress(OSError):
                if draft.stat().st_mtime < now - DRAFT_AGE:
                    draft.unlink()
