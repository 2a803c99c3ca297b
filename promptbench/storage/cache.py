"""What lies in the cache: its entries, their facts, and which of them go when it grows beyond its bound.

    <cache>/features/<key>.safetensors     features of an ordered list of images
    <cache>/rendered/<digest>/<set>-...    rendered images of one version of the renderer
    <cache>/readable/<dataset>.txt         which image files were found readable
    <cache>/listings/<key>.txt             which image files the class folders of a large tree have
    <cache>/weights/<key>                  the hash of a backbone's weights
    <cache>/calls/<key>                    what a call with finished runs came to; the newest hundred

Everything here can be computed again. An entry was last used when its file was last changed: whoever reads one touches
it. An entry is busy while a living process has a claim on its name; a busy one is never removed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from promptbench.config import UsageError, number, path_of, unknown
from promptbench.storage.atomic import remove_drafts
from promptbench.storage.claims import SUFFIX, Claims, holders, stands

log = logging.getLogger(__name__)

LIMIT = 20.0  # GB, unless PROMPTBENCH_CACHE_GB says otherwise
GB = 10**9
CLAIMS = "claims"  # folder in the cache folder
EVICTION = "eviction"  # claim of the process that makes room
ABOUT = "about"  # where the header of a features file says what it holds
_USE = "~"  # between an entry's name and what tells apart the claims of those who read it


@dataclass(frozen=True)
class Entry:
    """One thing in the cache.

    Attributes:
        name: As `cache clear` takes it.
        kind: `features`, `dense features`, `views`, `rendered`, `readable`, `listing` or `weights`.
        what: The dataset, or the set that was rendered; "" where the file does not say.
        backbone: That encoded it; "" for what no backbone made.
        images: How many; 0 where the file does not say.
        size: Bytes on disk.
        used: When it was last used, seconds since 1970.
        files: On disk.
    """

    name: str
    kind: str
    what: str
    backbone: str
    images: int
    size: int
    used: float
    files: tuple[Path, ...]


def limit() -> int:
    """The most bytes that the cache keeps: `PROMPTBENCH_CACHE_GB` times 10^9.

    Raises:
        UsageError: It is no number from 0 on.
    """
    return int(number("PROMPTBENCH_CACHE_GB", LIMIT, "gigabytes") * GB)


def entries() -> list[Entry]:
    """Everything in the cache, what was used last in front."""
    root = cache_dir()
    found = [*_features(root / "features"), *_rendered(root / "rendered"), *_readable(root / "readable")]
    found += [*_listings(root / "listings"), *_weights(root / "weights")]
    return sorted(found, key=lambda entry: (-entry.used, entry.name))


def touch(*files: Path) -> None:
    """Note that an entry is used now; nothing where the cache cannot be written."""
    for file in files:
        with contextlib.suppress(OSError):
            os.utime(file)


def hold(name: str) -> None:
    """Keep an entry for as long as this process lives, for what is mapped from disk instead of read."""
    with contextlib.suppress(UsageError):  # a cache that cannot be written loses no entry either
        _held(cache_dir(), os.getpid()).take(f"{name}{_USE}{secrets.token_hex(4)}", {"kind": "use"})


@cache
def _held(root: Path, _pid: int) -> Claims:
    """The claims of this process; a forked one has its own."""
    claims = Claims(root / CLAIMS)
    atexit.register(claims.close)
    return claims


def busy() -> frozenset[str]:
    """Names of the entries that living processes read or write, as far as a look tells."""
    alive = [holder.name for holder in holders(cache_dir() / CLAIMS) if holder.alive]
    return frozenset(map(_used_by, alive))


def _used_by(claim: str) -> str:
    """The name of the entry that a claim is on."""
    return claim.partition(_USE)[0]


def make_room() -> list[str]:
    """Remove the entries that were used longest ago until the rest is within the bound; returns their names.

    Of several processes one does so; the others go on.
    """
    most = limit()
    with Claims(cache_dir() / CLAIMS) as claims:
        try:
            claim = claims.take(EVICTION, {})
        except UsageError:  # read-only
            return []
        if claim is None:
            return []
        with claim:
            remove_drafts(cache_dir(), time.time())
            claims.clear()
            known = entries()
            excess = sum(entry.size for entry in known) - most
            gone = []
            for entry in reversed(known):
                if excess <= 0:
                    break
                if remove(entry):
                    excess -= entry.size
                    gone.append(entry.name)
    return gone


def remove(entry: Entry) -> bool:
    """Remove an entry unless somebody is at it; whether it is gone."""
    folder = cache_dir() / CLAIMS
    claims = [holder.name for holder in holders(folder) if _used_by(holder.name) == entry.name]
    if any(stands(folder / f"{name}{SUFFIX}") for name in claims):
        return False
    with contextlib.suppress(OSError):
        for file in entry.files:
            file.unlink(missing_ok=True)
        return True
    return False


def chosen(words: Sequence[str], older_than: float | None) -> list[Entry]:
    """The cache entries that `cache clear` is told to remove.

    Args:
        words: Names or their beginnings, kinds or datasets; none for all.
        older_than: Days since an entry was last used, at least; None for any.

    Raises:
        UsageError: A word means no entry.
    """
    known = entries()
    for word in words:
        if not any(_means(word, entry) for entry in known):
            names = chain.from_iterable((entry.name, entry.kind, entry.what) for entry in known)
            raise unknown("cache entry", word, dict.fromkeys(filter(None, names)))
    picked = [entry for entry in known if not words or any(_means(word, entry) for word in words)]
    latest = time.time() - (older_than or 0.0) * 86400
    return [entry for entry in picked if older_than is None or entry.used <= latest]


def _means(word: str, entry: Entry) -> bool:
    return word in (entry.kind, entry.what) or (len(word) >= 4 and entry.name.startswith(word))


def _features(folder: Path) -> Iterator[Entry]:
    for file in _files(folder, ".safetensors"):
        about = header(file)
        kind = "dense features" if about.get("dense") else "features"
        kind = "views" if about.get("views") else kind
        text = [value if isinstance(value := about.get(name), str) else "" for name in ("dataset", "backbone")]
        images = about.get("images")
        yield from _entry(file.stem, kind, text[0], text[1], images if isinstance(images, int) else 0, (file,))


def _rendered(folder: Path) -> Iterator[Entry]:
    """Rendered splits; the images and labels of one are one entry."""
    for images in sorted(folder.glob("*/*-images.npy")):
        stem = images.name.removesuffix("-images.npy")
        name = rendered_name(images.parent.name, stem)
        yield from _entry(name, "rendered", stem, "", 0, (images, images.with_name(f"{stem}-labels.npy")))


def rendered_name(digest: str, stem: str) -> str:
    """The name of a rendered split."""
    return f"{stem}-{digest}"


def _readable(folder: Path) -> Iterator[Entry]:
    for file in _files(folder, ".txt"):
        yield from _entry(f"readable-{file.stem}", "readable", file.stem, "", 0, (file,))


def _listings(folder: Path) -> Iterator[Entry]:
    for file in _files(folder, ".txt"):
        yield from _entry(f"listing-{file.stem}", "listing", "", "", 0, (file,))


def _weights(folder: Path) -> Iterator[Entry]:
    for file in _files(folder, ""):
        yield from _entry(f"weights-{file.name}", "weights", "", "", 0, (file,))


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith("."))


def _entry(name: str, kind: str, what: str, backbone: str, images: int, files: tuple[Path, ...]) -> Iterator[Entry]:
    """The entry, unless another process removes it just now."""
    sizes, times = [], []
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            sizes.append(status.st_size)
            times.append(status.st_mtime)
    if sizes:
        yield Entry(name, kind, what, backbone, images, sum(sizes), max(times), files)


def header(file: Path) -> dict[str, Any]:
    """What a features file says of itself; nothing if it is damaged or another version of promptbench wrote it."""
    from safetensors import SafetensorError, safe_open  # listing flags and tables must not wait for it

    try:
        with safe_open(file, framework="numpy") as features:
            about = json.loads(features.metadata()[ABOUT])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def cache_dir() -> Path:
    """The writable folder for rendered images and features.

    `PROMPTBENCH_CACHE`, or else `$XDG_CACHE_HOME/promptbench`, or else `~/.cache/promptbench`. If that one cannot be
    written, a temporary folder that lives as long as the process, with one warning.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get("PROMPTBENCH_CACHE") or os.path.join(base, "promptbench")
    try:
        return _writable(path_of(named).absolute())
    except UsageError as error:  # a user who is in no list of users has no home folder
        return _substitute(named, str(error).partition(": ")[2].rstrip("."))


@cache
def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        return _substitute(str(folder), error.strerror or str(error))


@cache
def _substitute(folder: str, reason: str) -> Path:
    """A temporary folder that lives as long as the process."""
    substitute = Path(tempfile.mkdtemp(prefix="promptbench-"))
    atexit.register(shutil.rmtree, substitute, ignore_errors=True)
    log.warning(
        "The cache folder %s cannot be written (%s); using %s for this process only. "
        "Set PROMPTBENCH_CACHE to a writable folder to keep what is computed.",
        folder,
        reason,
        substitute,
    )
    return substitute
