"""Unpack zip and tar files of the network without trusting them.

Nothing is written outside the target: an archive with an absolute path, a "..", a link that leaves it or a device is
refused as a whole. Links are never made: one that stays inside becomes a copy of the file it names. What comes out is
bounded by the size of what went in, since photographs hardly shrink: a small archive that claims to be a large folder
is a bomb.
"""

from __future__ import annotations

import lzma
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple

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
    OSError,
)


class BadArchive(Exception):
    """Why an archive is refused: the end of a sentence that begins with its name."""


class Member(NamedTuple):
    """A file of an archive: its checked relative path, its size in bytes and how to read it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


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
    prefix = f"{folder}/" if folder else ""
    count, room = 0, _most_bytes(archive)
    for index, member in enumerate(_members(archive)):
        room -= member.size
        if room < 0 or index >= MOST_FILES:
            raise BadArchive("would unpack to far more than an archive of its size holds")
        if member.name.startswith(prefix):
            _write(member, target / member.name[len(prefix) :])
            count += 1
    if not count:
        raise BadArchive(f"holds no files{f' below {folder!r}' if folder else ''}")
    return count


def unpack_file(archive: Path, name: str, target: Path) -> None:
    """Writes the single file `name` of an archive to `target`; raises what `unpack` raises."""
    for member in _members(archive):
        if member.name == name and member.size <= _most_bytes(archive):
            return _write(member, target)
    raise BadArchive(f"holds no file {name!r} of a fitting size")


def _most_bytes(archive: Path) -> int:
    return archive.stat().st_size * GROWTH + SLACK


def _members(archive: Path) -> Iterator[Member]:
    """The regular files of an archive, every entry checked."""
    try:
        if tarfile.is_tarfile(archive):
            yield from _tar_members(archive)
        elif zipfile.is_zipfile(archive):
            yield from _zip_members(archive)
        else:
            raise BadArchive("is neither a zip nor a tar file")
    except _BROKEN as error:
        raise _damaged(error) from error


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as tar:
        for entry in tar:
            name = _safe(entry.name)
            if entry.issym():
                _safe(posixpath.join(posixpath.dirname(entry.name), entry.linkname), link=entry.linkname)
            elif entry.islnk():
                _safe(entry.linkname, link=entry.linkname)
            elif not entry.isreg() and not entry.isdir():
                raise BadArchive(f"holds a device, {entry.name!r}")
            source = None if entry.isdir() else tar.extractfile(entry)  # follows links within the archive alone
            if source is not None:
                with closing(source):
                    size = source.seek(0, 2)
                    source.seek(0)
                    yield Member(name, size, lambda source=source: source)  # type: ignore[misc]
        for _ in range(_most_bytes(archive) // _CHUNK):  # the rest is padding, and then a compressed file's checksum
            if not (tar.fileobj and tar.fileobj.read(_CHUNK)):
                break


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            name = _safe(entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise BadArchive(f"holds a link, {entry.filename!r}")
            if not entry.is_dir():
                yield Member(name, entry.file_size, lambda entry=entry: file.open(entry))  # type: ignore[misc]


def _safe(name: str, link: str = "") -> str:
    """The path of an entry in its shortest form."""
    shortest = posixpath.normpath(name)
    rooted = _ROOTED.match(name) or _ROOTED.match(link)
    if rooted or "\\" in name or "\0" in name or shortest == ".." or shortest.startswith("../"):
        what = f"a link to {link!r}" if link else f"the path {name!r}"
        raise BadArchive(f"is unsafe: {what} leaves its folder")
    return shortest


def _write(member: Member, path: Path) -> None:
    """The member's bytes at `path`; both kinds of reader stop at the size that was announced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = _reading(member.open)
    with open(path, "wb") as file:
        while chunk := _reading(lambda: source.read(_CHUNK)):
            file.write(chunk)


def _reading(read: Callable[[], Any]) -> Any:
    """What `read` gives; its errors are the archive's, not the disk's."""
    try:
        return read()
    except _BROKEN as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> BadArchive:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return BadArchive(f"is damaged or cut short ({reason})")
