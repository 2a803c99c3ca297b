"""Unpack zip and tar files of the network without trusting them.

Nothing is written outside the target: an archive with an absolute path, a "..", a link that leaves it or a device is
refused as a whole. Links are never made: one that stays inside becomes a copy of the file it names. What comes out is
bounded by the size of what went in, since photographs hardly shrink: a small archive that claims to be a large folder
is a bomb.

`tarfile` and `zipfile` do the unpacking. By themselves, they would make the links that tarfile's data filter allows,
strip an absolute path or a ".." of a zip file without a word, and unpack any amount.
"""

from __future__ import annotations

import errno
import lzma
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from contextlib import closing
from pathlib import Path

GROWTH = 4  # times the archive's size, and
SLACK = 2**26  # bytes on top of that, may come out of it
MOST_FILES = 2_000_000
_CHUNK = 2**20  # bytes

_ROOTED = re.compile(r"/|[A-Za-z]:")
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    KeyError,  # a link to a file that the archive does not hold
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # an encrypted zip file
    ValueError,
)
_BROKEN_ERRNOS = (None, errno.EINVAL)  # of an OSError by a decompressor, or by a look before the file's beginning


class BadArchive(Exception):
    """Why an archive is refused: the end of a sentence that begins with its name."""


class _Budget:
    """What may still come out of an archive, in files and bytes."""

    def __init__(self, archive: Path) -> None:
        self.bytes = archive.stat().st_size * GROWTH + SLACK
        self.files = MOST_FILES

    def spend(self, size: int) -> None:
        """Counts one more file of `size` bytes; raises BadArchive when it is too much."""
        self.bytes -= size
        self.files -= 1
        if self.bytes < 0 or self.files < 0:
            raise BadArchive("would unpack to far more than an archive of its size holds")


def unpack(archive: Path, folder: str, target: Path) -> int:
    """Writes the files below `folder` of an archive into `target` and returns how many there are.

    Args:
        archive: A zip or tar file; its content tells which, not its name.
        folder: The folder in the archive that becomes `target`, or "" for all of it.
        target: A folder that does not exist yet. It is left half-filled where this raises; the caller removes it.

    Raises:
        BadArchive: The archive is damaged, unsafe or far larger than it looks, or has no such folder.
        OSError: `target` cannot be written.
    """
    try:
        if tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder, target)
        elif zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, target)
        else:
            raise BadArchive("is neither a zip nor a tar file")
    except (OSError, *_BROKEN) as error:
        if isinstance(error, OSError) and error.errno not in _BROKEN_ERRNOS:
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BadArchive(f"is damaged or cut short ({reason})") from error
    files = sum(path.is_file() for path in target.rglob("*"))
    if not files:
        raise BadArchive(f"holds no files{f' below {folder!r}' if folder else ''}")
    return files


def _unpack_tar(archive: Path, folder: str, target: Path) -> None:
    budget = _Budget(archive)
    links: dict[str, tarfile.TarInfo] = {}

    def choose(entry: tarfile.TarInfo, root: str) -> tarfile.TarInfo | None:
        """The entry under its name below `root`; None for what is not, or not yet, to be written."""
        place = _place(entry.name, folder)
        harmless = _harmless(entry, root)
        if entry.isreg():
            budget.spend(entry.size)
            return harmless.replace(name=place, deep=False) if place else None
        if place and not entry.isdir():
            links[place] = entry
        return None

    with tarfile.open(archive) as tar:
        tar.extractall(target, filter=choose)
        for _ in range(budget.bytes // _CHUNK + 1):  # the rest is padding, and then a compressed file's checksum
            if not (tar.fileobj and tar.fileobj.read(_CHUNK)):
                break
        for place, link in links.items():
            _copy_linked(tar, link, target / place, budget)


def _harmless(entry: tarfile.TarInfo, root: str) -> tarfile.TarInfo:
    """The entry without owners and odd permissions, refused if it is a device or a link that leaves `root`."""
    try:
        return tarfile.data_filter(entry, root)
    except tarfile.SpecialFileError as error:
        raise BadArchive(f"holds a device, {entry.name!r}") from error
    except (tarfile.AbsoluteLinkError, tarfile.LinkOutsideDestinationError) as error:
        raise BadArchive(f"is unsafe: a link to {entry.linkname!r} leaves its folder") from error


def _copy_linked(tar: tarfile.TarFile, link: tarfile.TarInfo, path: Path, budget: _Budget) -> None:
    """Writes the file that a link names to `path`; a link to a folder is left out."""
    source = tar.extractfile(link)  # follows links within the archive alone
    if source is None:
        return
    with closing(source):
        budget.spend(source.seek(0, 2))
        source.seek(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            shutil.copyfileobj(source, file)


def _unpack_zip(archive: Path, folder: str, target: Path) -> None:
    budget = _Budget(archive)
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            place = _place(entry.filename, folder)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise BadArchive(f"holds a link, {entry.filename!r}")
            if entry.is_dir():
                continue
            budget.spend(entry.file_size)
            if place:
                entry.filename = place  # where `extract` puts it
                file.extract(entry, target)


def _place(name: str, folder: str) -> str:
    """The path of an entry within `folder` in its shortest form; "" if it lies elsewhere."""
    shortest = posixpath.normpath(name)
    if _ROOTED.match(name) or "\\" in name or "\0" in name or shortest.split("/")[0] == "..":
        raise BadArchive(f"is unsafe: the path {name!r} leaves its folder")
    prefix = f"{folder}/" if folder else ""
    return shortest[len(prefix) :] if shortest.startswith(prefix) else ""
