"""Files from the network: fetched whole and with the right checksum, unpacked without trusting them.

torchvision's `download_url` is no substitute: it takes a connection that was cut for the end of the file, has no
timeout, and asks again without TLS where a request over https failed. Split files have no checksum that would tell.

Of a zip or tar file nothing is written outside the target: an archive with an absolute path, a "..", a link that leaves
it or a device is refused as a whole. Links are never made: one that stays inside becomes a copy of the file it names.
What comes out is bounded by the size of what went in, since photographs hardly shrink: a small archive that claims to
be a large folder, or very many files, is a bomb. So is a tar file with long headers, which Python reads whole.

`tarfile` and `zipfile` do the unpacking. By themselves, they would make the links that tarfile's data filter allows,
strip an absolute path or a ".." of a zip file without a word, and unpack any amount.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import http.client
import lzma
import posixpath
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias
from urllib.error import URLError
from urllib.request import Request, urlopen

from promptbench.config import UsageError

TIMEOUT = 60.0  # seconds without an answer after which a server counts as gone
_CHUNK = 2**18  # bytes
_REFRESH = 0.5  # seconds between two lines of progress

_DRIVE = re.compile(r"https://drive\.google\.com/file/d/([\w-]+)")


def fetch_url(url: str, path: Path, md5: str = "") -> None:
    """Writes what `url` gives to `path`; the checksum is verified where one is given.

    Raises:
        UsageError: The file cannot be had, came in part or is another one.
        OSError: `path` cannot be written.
    """
    checksum = hashlib.md5(usedforsecurity=False)
    with open(path, "wb") as file:
        for chunk in _chunks(url):
            checksum.update(chunk)
            file.write(chunk)
    if md5 and checksum.hexdigest() != md5:
        raise UsageError(
            f"{url} gives another file than it used to (MD5 {checksum.hexdigest()}, not {md5}); get it by hand."
        )


def _chunks(url: str) -> Iterator[bytes]:
    """What `url` gives, piece by piece, with a line of progress; raises UsageError where it ends early."""
    try:
        request = Request(_direct(url), headers={"User-Agent": "promptbench"})
        with urlopen(request, timeout=TIMEOUT) as response:
            total = int(response.headers.get("Content-Length") or 0)
            got = 0
            shown = 0.0
            while chunk := response.read(_CHUNK):
                yield chunk
                got += len(chunk)
                if time.monotonic() - shown > _REFRESH:
                    shown = time.monotonic()
                    _show(url, got, total)
            _show(url, got, total, end="\n")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UsageError(f"{url} cannot be fetched ({_reason(error)}); try again, or get it by hand.") from error
    if got < total:  # urllib ends a cut connection without a word
        raise UsageError(f"{url} came in part, {got:,} of {total:,} bytes; try again, or get it by hand.")


def _direct(url: str) -> str:
    """The address of a shared file itself, not of the page about it."""
    shared = _DRIVE.match(url)
    return f"https://drive.usercontent.google.com/download?id={shared[1]}&export=download" if shared else url


def _reason(error: Exception) -> str:
    """`[Errno -2] Name or service not known`, `HTTP Error 404: Not Found`, `timed out`."""
    said = error.reason if type(error) is URLError else error
    return " ".join(str(said).split()).rstrip(".") or type(error).__name__


def _show(url: str, got: int, total: int, end: str = "\r") -> None:
    """Prints how much came; elsewhere than on a terminal, the last line only."""
    if sys.stderr.isatty() or end == "\n":
        of = f" of {total / 1e6:,.1f}" if total else ""
        print(f"{url}: {got / 1e6:,.1f}{of} MB", end=end, file=sys.stderr, flush=True)


GROWTH = 4  # times the archive's size, and
SLACK = 2**26  # bytes on top of that, may come out of it
FILES = 5000  # may come out of any archive, and
BYTES_PER_FILE = 400  # is what each further one has to take in it; a tar file's long names count as files
_LONGEST_HEADER = 4096  # bytes that a long name or a file's attributes in a tar file take
_MOST_LINKS = 40  # that one follows from one to the next
_BLOCK = 2**20  # bytes

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
        size = archive.stat().st_size
        self.bytes = self.read = size * GROWTH + SLACK
        self.files = FILES + size // BYTES_PER_FILE

    def count(self, files: int = 1) -> None:
        """Counts more files; raises BadArchive when it is too much."""
        self.files -= files
        self._check(self.files)

    def spend(self, size: int) -> None:
        """Counts the bytes of a file that is written; raises BadArchive when it is too much."""
        self.bytes -= size
        self._check(self.bytes)

    def decompress(self, size: int) -> None:
        """Counts bytes that are read of a compressed archive; raises BadArchive when it is too much."""
        self.read -= size
        self._check(self.read)

    def _check(self, left: int) -> None:
        if left < 0:
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
        if _is_tar(archive):
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


# Tar files

_ABOUT_THE_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Headers with a name or attributes of the entry that follows."""
_COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"]\0\0": lzma.open,
}


class _Decompressed:
    """What a compressed file holds, as far as the budget goes; a step back begins anew."""

    def __init__(self, file: BinaryIO, budget: _Budget) -> None:
        self.file, self.budget = file, budget

    def read(self, size: int | None = -1) -> bytes:
        """At most so many bytes, all of them unless the file ends; at most 1 MiB where no size is given."""
        wanted = _BLOCK if size is None or size < 0 else size
        parts = []
        while wanted and (part := self.file.read(min(wanted, _BLOCK))):
            self.budget.decompress(len(part))
            wanted -= len(part)
            parts.append(part)
        return b"".join(parts)

    def seek(self, place: int) -> int:
        """Goes to a place, counted from the beginning, or to the end of the file."""
        if place < self.file.tell():
            self.file.seek(0)
        while (left := place - self.file.tell()) > 0 and self.read(min(left, _BLOCK)):
            pass
        return self.file.tell()

    def tell(self) -> int:
        """Where it is read next."""
        return self.file.tell()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class _Entry(tarfile.TarInfo):
    """A header of a tar file; `tarfile` calls `_proc_member` with each, before it reads what belongs to it."""

    def _proc_member(self, tar: _Tar) -> tarfile.TarInfo:
        long = self.size if self.type in _ABOUT_THE_NEXT else 0
        if self.size < 0 or long > _LONGEST_HEADER:
            raise BadArchive(f"has a header of {self.size:,} bytes")
        tar.budget.count(max(1, (long // tarfile.BLOCKSIZE) ** 2))  # the time that Python takes over attributes
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise BadArchive(f"holds a sparse file, {self.name!r}")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _sparse(self, *_: object) -> None:
        raise BadArchive(f"holds a sparse file, {self.name!r}")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


class _Tar(tarfile.TarFile):
    """A tar file whose headers count against a budget."""

    def __init__(self, archive: Path, budget: _Budget) -> None:
        self.budget = budget
        with archive.open("rb") as file:
            start = file.read(8)
        opened = next((opener(archive) for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
        self.stream = archive.open("rb") if opened is None else _Decompressed(opened, budget)  # closed by `close`
        try:
            super().__init__(fileobj=self.stream, tarinfo=_Entry)  # type: ignore[arg-type]
        except BaseException:
            self.stream.close()
            raise

    def close(self) -> None:
        """Closes the file, too."""
        super().close()
        self.stream.close()

    def entries(self) -> Iterator[tarfile.TarInfo]:
        """All that it holds; none is kept."""
        while (entry := self.next()) is not None:
            if entry.size < 0:
                raise BadArchive(f"holds a file of {entry.size} bytes, {entry.name!r}")
            self.members.clear()  # type: ignore[attr-defined]
            self.pax_headers = {}  # of all entries that come; each would get a copy
            yield entry


class _Content(NamedTuple):
    """Where the bytes of a file are in a tar file."""

    place: int
    size: int


_Held: TypeAlias = _Content | str | None
"""What a name in a tar file stands for: a file, the path that a symbolic link goes to, or None for a folder."""


def _is_tar(archive: Path) -> bool:
    try:
        _Tar(archive, _Budget(archive)).close()
    except tarfile.TarError:
        return False
    return True


def _unpack_tar(archive: Path, folder: str, target: Path) -> None:
    budget = _Budget(archive)
    known: dict[str, _Held] = {}
    links: dict[str, _Held] = {}
    with _Tar(archive, budget) as tar:
        for entry in tar.entries():
            place, name = _place(entry.name, folder), posixpath.normpath(entry.name)
            harmless = _harmless(entry, str(target))
            known[name] = _held(entry, known)
            if entry.isreg():
                budget.spend(entry.size)
                if place:
                    tar.extract(harmless.replace(name=place, deep=False), target, filter="fully_trusted")
            elif place and not entry.isdir():
                links[place] = known[name]
        while tar.stream.read(_BLOCK):  # the rest is padding, and then a compressed file's checksum
            pass
        _copy_linked(tar, {target / place: _followed(held, known) for place, held in links.items()}, budget)


def _held(entry: tarfile.TarInfo, known: dict[str, _Held]) -> _Held:
    """What an entry's name stands for; raises KeyError for a hard link to a file that does not come before it."""
    if entry.islnk():
        return known[posixpath.normpath(entry.linkname)]
    if entry.issym():
        return posixpath.normpath(posixpath.join(posixpath.dirname(entry.name), entry.linkname))
    return None if entry.isdir() else _Content(entry.offset_data, entry.size)


def _followed(held: _Held, known: dict[str, _Held]) -> _Content | None:
    """The file at the end of links; None for a folder. Raises KeyError where there is nothing at the end."""
    for _ in range(_MOST_LINKS):
        if not isinstance(held, str):
            return held
        held = known[held]
    raise KeyError("links that lead to links")


def _harmless(entry: tarfile.TarInfo, root: str) -> tarfile.TarInfo:
    """The entry without owners and odd permissions, refused if it is a device or a link that leaves `root`."""
    try:
        return tarfile.data_filter(entry, root)
    except tarfile.SpecialFileError as error:
        raise BadArchive(f"holds a device, {entry.name!r}") from error
    except (tarfile.AbsoluteLinkError, tarfile.LinkOutsideDestinationError) as error:
        raise BadArchive(f"is unsafe: a link to {entry.linkname!r} leaves its folder") from error


def _copy_linked(tar: _Tar, links: dict[Path, _Content | None], budget: _Budget) -> None:
    """Writes the files that links name; a link to a folder is left out.

    In the order in which the archive holds them, and each read once: every step back in a compressed file begins anew.
    """
    wanted = sorted((content, path) for path, content in links.items() if content)
    read, copied = None, Path()
    for content, path in wanted:
        budget.spend(content.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == read:
            shutil.copyfile(copied, path)
            continue
        with open(path, "wb") as file:
            for piece in _pieces(tar, content):
                file.write(piece)
        read, copied = content, path


def _pieces(tar: _Tar, content: _Content) -> Iterator[bytes]:
    """The bytes of a file in a tar file; raises EOFError where it ends early."""
    tar.stream.seek(content.place)
    left = content.size
    while left:
        piece = tar.stream.read(min(left, _BLOCK))
        if not piece:
            raise EOFError("unexpected end of data")
        left -= len(piece)
        yield piece


def _unpack_zip(archive: Path, folder: str, target: Path) -> None:
    budget = _Budget(archive)
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            place = _place(entry.filename, folder)
            budget.count()
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise BadArchive(f"holds a link, {entry.filename!r}")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # `zipfile` would decompress it in pieces of any size
                raise BadArchive(f"holds a file that is packed by another method than deflate, {entry.filename!r}")
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
