"""Where promptbench keeps what it can compute again, and how it writes files that others may be reading."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

DRAFT_AGE = 3600.0  # seconds after which an unfinished file is nobody's


def cache_dir() -> Path:
    """The writable folder for rendered images and features.

    `PROMPTBENCH_CACHE`, or else `$XDG_CACHE_HOME/promptbench`, or else `~/.cache/promptbench`. If that one cannot be
    written, a temporary folder that lives as long as the process, with one warning.
    """
    given = os.environ.get("PROMPTBENCH_CACHE")
    if given:
        return _writable(Path(given).expanduser().absolute())
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _writable(Path(base).expanduser().absolute() / "promptbench")


@cache
def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        substitute = Path(tempfile.mkdtemp(prefix="promptbench-"))
        atexit.register(shutil.rmtree, substitute, ignore_errors=True)
        log.warning(
            "The cache folder %s cannot be written (%s); using %s for this process only. "
            "Set PROMPTBENCH_CACHE to a writable folder to keep what is computed.",
            folder,
            error.strerror or error,
            substitute,
        )
        return substitute


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Creates or replaces `path` with what `write` puts into the open file, whole or not at all.

    The bytes go to a temporary file beside `path`, reach the disk and take its place in one step; on any failure,
    Ctrl-C included, `path` stays as it was. Missing folders are made.
    """
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
