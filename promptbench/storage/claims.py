"""Who works on what, in a folder that processes and machines share.

    <folder>/<name>.claim

A claim is a file that only one process can create. Its owner touches it every few seconds, so that it goes stale where
the owner died, and another takes it over. Nothing is locked, because network file systems lock badly: creating and
renaming are all it takes. Ages are told by the file system's clock, since those of machines differ; a process id says
something only on the machine it comes from.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from promptbench.config import UsageError

STALE = 60.0  # seconds without a sign of life after which a claim is anybody's
BEAT = 2.0  # seconds between signs of life
SUFFIX = ".claim"

_ATTEMPTS = 5  # at a claim that others take over or release at the same time
_PROGRESS = 160  # bytes; of fixed width, so that it is replaced in place

CLAIMS = "claims"  # folder in the output folder


@dataclass(frozen=True)
class Holder:
    """Who holds a claim, as its file says.

    Attributes:
        name: Of the claim.
        about: What the owner said of it.
        host: The owner's machine; "" where the file does not say yet.
        pid: Its process id there.
        since: When it was taken, seconds since 1970 by the owner's clock.
        progress: What the owner said last.
        alive: Whether the claim stands: touched of late, and its process not known to be dead.
    """

    name: str
    about: Mapping[str, Any] = field(default_factory=dict)
    host: str = ""
    pid: int = 0
    since: float = 0.0
    progress: Mapping[str, Any] = field(default_factory=dict)
    alive: bool = True


class Claim:
    """A claim that this process holds; as a context it is released at the end.

    Attributes:
        lost: Whether another process has taken it over, after this one was silent for too long.
    """

    def __init__(self, path: Path, descriptor: int, about: Mapping[str, Any], lock: threading.Lock) -> None:
        self.path, self.descriptor, self.lock = path, descriptor, lock
        self.name = path.name.removesuffix(SUFFIX)
        self.lost = False
        self.progress: Mapping[str, Any] = {}
        owner = {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid(), "born": born(os.getpid())}
        head = json.dumps({**owner, "since": time.time(), "token": secrets.token_hex(8), "about": dict(about)})
        self.offset = os.write(descriptor, head.encode() + b"\n")

    def beat(self) -> None:
        """Touch the claim as a sign of life, and write down the progress."""
        line = json.dumps(dict(self.progress)).encode().ljust(_PROGRESS)
        with self.lock:
            if self.descriptor < 0:
                return
            try:
                if len(line) == _PROGRESS:
                    os.pwrite(self.descriptor, line, self.offset)
                os.utime(self.descriptor)  # a network file system's server sets its own time
                self.lost = not os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
            except OSError as error:  # others, such as a network that is away, may pass
                self.lost = error.errno in (errno.ENOENT, errno.ESTALE)

    def release(self) -> None:
        """Give the claim up; a second time does nothing."""
        with self.lock:
            if self.descriptor < 0:
                return
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
                    os.unlink(self.path)
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Claims:
    """The claims in a folder; as a context, those that this object took are released at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[Claim] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, name: str, about: Mapping[str, Any]) -> Claim | None:
        """The claim of that name, or None while a living owner has it.

        Raises:
            UsageError: The folder cannot be written.
        """
        path = self.folder / f"{name}{SUFFIX}"
        try:
            for _ in range(_ATTEMPTS):
                claim = self._create(path, about)
                if claim is not None:
                    self._held = [*(other for other in self._held if other.descriptor >= 0), claim]
                    if self._thread is None:
                        self._thread = threading.Thread(target=self._live, name="claims", daemon=True)
                        self._thread.start()
                    return claim
                if not self._cleared(path):
                    return None
        except OSError as error:
            raise UsageError(
                f"The output folder {self.folder.parent} cannot be written ({error.strerror}); finished runs are kept, "
                "and the same command goes on from here once it can, or with another --output."
            ) from error
        return None

    def busy(self, name: str) -> bool:
        """Whether a living owner has the claim of that name."""
        holder = read(self.folder / f"{name}{SUFFIX}")
        return holder is not None and holder.alive

    def clear(self) -> None:
        """Remove the claims of dead owners."""
        for holder in holders(self.folder):
            if not holder.alive:
                self._cleared(self.folder / f"{holder.name}{SUFFIX}")

    def close(self) -> None:
        """Release all claims that this object took."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for claim in self._held:
            claim.release()
        with contextlib.suppress(OSError):  # the last one to leave
            self.folder.rmdir()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self, path: Path, about: Mapping[str, Any]) -> Claim | None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, flags, 0o666)
        except (FileExistsError, FileNotFoundError):  # the latter: another one has just removed the empty folder
            return None
        try:
            return Claim(path, descriptor, about, self._lock)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise

    def _cleared(self, path: Path) -> bool:
        """Whether the claim is not there any more, or was stale and is removed.

        Of several processes that find it stale only the one that makes a guard beside it removes it: whoever came late
        would remove its successor. An owner that had only been held up may have made way meanwhile; then the successor
        is put back.
        """
        holder = read(path)
        if holder is None:
            return True
        if holder.alive:
            return False
        guard = path.with_name(f".{path.name}.guard")
        try:
            os.close(os.open(guard, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            with contextlib.suppress(OSError):  # left behind by a crash between its making and its removal
                if now(path.parent) - guard.stat().st_mtime > STALE:
                    guard.unlink()
            return False
        try:
            return self._removed(path)
        finally:
            guard.unlink(missing_ok=True)

    def _removed(self, path: Path) -> bool:
        """Whether the claim is not there any more, or is still stale and is removed."""
        holder = read(path)
        if holder is None or holder.alive:
            return holder is None
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return True
        taken = read(aside)
        if taken is not None and taken.alive:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
        return taken is None or not taken.alive

    def _live(self) -> None:
        while not self._stop.wait(BEAT):
            for claim in self._held:
                claim.beat()


def read(path: Path) -> Holder | None:
    """Who holds a claim; None where there is none."""
    try:
        with path.open("rb") as file:  # opening makes a network file system look at the file anew
            touched = os.fstat(file.fileno()).st_mtime
            head, _, rest = file.read().partition(b"\n")
    except FileNotFoundError:
        return None
    name = path.name.removesuffix(SUFFIX)
    said = _parsed(head)
    alive = not _is_dead(said) and now(path.parent) - touched < STALE
    try:
        owner = str(said["host"]), int(said["pid"]), float(said["since"])
        return Holder(name, dict(said["about"]), *owner, progress=_parsed(rest), alive=alive)
    except (KeyError, TypeError, ValueError, OverflowError):  # just being made, or cut short by a crash
        return Holder(name, alive=alive)


def holders(folder: Path) -> list[Holder]:
    """Who holds the claims in a folder, oldest first; none where there is no such folder."""
    try:
        paths = [Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(SUFFIX)]
    except OSError:
        return []
    found = [read(path) for path in paths]
    return sorted((holder for holder in found if holder is not None), key=lambda holder: (holder.since, holder.name))


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Within it, no other process is within the same name; waits for one that is, unless nothing can be written."""
    with Claims(folder) as claims:
        try:
            while (claim := claims.take(name, {})) is None:
                time.sleep(0.2)
        except UsageError:
            claim = None
        with claim or contextlib.nullcontext():
            yield


def now(folder: Path) -> float:
    """The time by the clock that dates the files of a folder, seconds since 1970."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # read-only
        return time.time()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether the owner ran on this machine, and its process is gone."""
    here = bool(machine()) and owner.get("machine") == machine()
    return here and isinstance(owner.get("pid"), int) and born(owner["pid"]) != owner.get("born")


@cache
def machine() -> str:
    """What tells this machine, since it was started, and its space of process ids from all others; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> str:
    """When a process was started, in the system's ticks, which tells it from another of the same id; "" if it ended."""
    try:
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else rest[18]
