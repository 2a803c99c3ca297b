"""One file from the network, whole and with the right checksum.

torchvision's `download_url` is no substitute: it takes a connection that was cut for the end of the file, has no
timeout, and asks again without TLS where a request over https failed. Split files have no checksum that would tell.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
import time
from collections.abc import Iterator
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
