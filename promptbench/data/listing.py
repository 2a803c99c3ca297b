"""The image files of class folders, remembered until a folder changes.

A folder's times change when a file in it appears, disappears or gets another name, so a folder of a million images need
not be read again for as long as they stay. What is remembered lies in the cache, a file for each tree:

    <cache>/listings/<key>.txt    a line of JSON, folder to its state and its names, and a checksum

Small trees are read in no time and not remembered, nor are folders that changed just now, for the clock of a file
system may stand still for that long, nor those with links, whose ends may go without a trace.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from promptbench.config import UsageError
from promptbench.storage.atomic import read_checked, write_checked
from promptbench.storage.cache import cache_dir, limit, make_room, touch

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder, in lower case."""

LARGE = 20_000  # images of a tree that is remembered, at least
SETTLED = 5.0  # seconds since a folder's last change, so that the next one gets another time
BETWEEN = "/"  # names, none of which has it


class Listing:
    """The image files in the folders of one place, all of them folders of images.

    Args:
        place: The folder of these folders.
    """

    def __init__(self, place: Path) -> None:
        self.place = Path(place).absolute()
        key = hashlib.sha256(os.fsencode(self.place)).hexdigest()[:32]
        self.path = cache_dir() / "listings" / f"{key}.txt"
        self._known: dict[str, tuple[str, str]] = _read(self.path)  # folder to its state and the names in it
        self._new: dict[str, tuple[str, str]] = {}
        self._images = 0

    def images(self, folder: str) -> list[str]:
        """The names of the image files in a folder, sorted by code point, hidden ones left out; none where it is no
        folder.

        Raises:
            UsageError: It cannot be read.
        """
        path = self.place / folder
        if not path.is_dir():
            return []
        state = _state(path)  # before it is read: what comes later changes it
        known, joined = self._known.get(folder, ("", ""))
        if state and known == state:
            names = joined.split(BETWEEN) if joined else []
        else:
            names, links = image_files(path)
            if state and not links:
                self._new[folder] = (state, BETWEEN.join(names))
        self._images += len(names)
        return names

    def remember(self) -> None:
        """Keep what was read, if it is much and new; where the cache cannot be written it is read again next time."""
        if self._known:
            touch(self.path)
        if not self._new or self._images < LARGE:
            return
        content = json.dumps({**self._known, **self._new}).encode()
        if len(content) > limit():
            return
        with contextlib.suppress(OSError):
            write_checked(self.path, content)
            make_room()


def _read(path: Path) -> dict[str, tuple[str, str]]:
    content = read_checked(path)
    found = {} if content is None else json.loads(content)
    return {folder: (state, names) for folder, (state, names) in found.items()}


def _state(folder: Path) -> str:
    """What is another one after a change of what is in a folder; "" where that cannot be told, or soon not any more."""
    try:
        status = folder.stat()
    except OSError:
        return ""
    changed = max(status.st_mtime, status.st_ctime)  # the second tells of the first one set back
    if time.time() - changed < SETTLED:
        return ""
    return f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def image_files(folder: Path) -> tuple[list[str], bool]:
    """The names of the image files in `folder`, sorted by code point, hidden ones left out, and whether any is a link.

    Raises:
        UsageError: It cannot be read.
    """
    entries = [entry for entry in scan(folder) if is_image(entry.name) and entry.is_file()]
    return sorted(entry.name for entry in entries), any(entry.is_symlink() for entry in entries)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """All that is in a folder; nothing where it is not there.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"Cannot read the folder {folder}: {error.strerror}.") from error
