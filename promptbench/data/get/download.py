"""Files from the network: fetched whole and with the right checksum, unpacked without trusting them.

torchvision's `download_url` is no substitute: it takes a connection that was cut for the end of the file, has no
timeout, and asks again without TLS where a request over https failed. Split files have no checksum that would tell.

Of a zip or tar file nothing is written outside the target: an archive with an absolute path, a "..", a link that leaves
it or a device is refused as a whole. Links are never made: one that stays inside becomes a copy of the file it names.
What comes out is bounded by the size of what went in, since photographs hardly shrink: a small archive that claims to
be a large folder is a bomb.

`tarfile` and `zipfile` do the unpacking. By themselves, they would make the links that tarfile's data filter allows,
strip an absolute path or a ".." of a zip file without a word, and unpack any amount.
"""

from __future__ import annotations

import errno
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
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
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
MOST_FILES = 2_000_000
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
        for _ in range(budget.bytes // _BLOCK + 1):  # the rest is padding, and then a compressed file's checksum
            if not (tar.fileobj and tar.fileobj.read(_BLOCK)):
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
