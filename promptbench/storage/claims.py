"""Who works on what, in a folder that processes and machines share.

    <folder>/<name>.claim

A claim is a file that only one process can create. Its owner touches it every few seconds, so that it goes stale where
the owner died, and another takes it over. Nothing is locked, because network file systems lock badly: creating and
renaming are all it takes.

Two things say that an owner is dead: a process of our own on this machine, that we would see, is gone; or the claim is
old and stays untouched while somebody watches it. Its age alone, told by the file system's clock since those of
machines differ, may come from a clock that was set.
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
WATCH = 5.0  # seconds, more than two signs of life apart, that an old claim is watched before it counts as dead
LOOK = 0.5  # seconds between looks at it
LONGEST = 1.0  # seconds between two looks that count as watched: nobody sees anything while all processes are frozen
SUFFIX = ".claim"

_ATTEMPTS = 5  # at a claim that others take over or release at the same time
_PROGRESS = 160  # bytes; of fixed width, so that it is replaced in place
_WATCHES = 10_000  # claims at most that are remembered

CLAIMS = "claims"  # folder in the output folder
GOES_ON = "what is finished is kept, and the same command goes on from here."


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
        alive: Whether the claim stands, as far as a look tells: touched of late, and its process not known to be dead.
        dead: Whether the owner is dead for certain; a claim that is only old is neither.
    """

    name: str
    about: Mapping[str, Any] = field(default_factory=dict)
    host: str = ""
    pid: int = 0
    since: float = 0.0
    progress: Mapping[str, Any] = field(default_factory=dict)
    alive: bool = True
    dead: bool = False


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
        place = {"host": socket.gethostname(), "machine": machine(), "uid": user()}
        owner = {**place, "pid": os.getpid(), "born": born(os.getpid())}
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

    def is_ours(self) -> bool:
        """Whether no other process has taken it over, by a look at it now; it is touched, too."""
        self.beat()
        return not self.lost

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

        A claim that is only old is watched before it is taken over, which takes seconds.

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
                f"The output folder {self.folder.parent} cannot be written ({error.strerror}); name another one with "
                f"--output; {GOES_ON}"
            ) from error
        return None

    def busy(self, name: str) -> bool:
        """Whether a living owner has the claim of that name."""
        holder = read(self.folder / f"{name}{SUFFIX}")
        return holder is not None and holder.alive

    def clear(self) -> None:
        """Remove the claims of dead owners, and what killed processes left that were about to do so."""
        with contextlib.suppress(OSError):
            for place in self.folder.glob(f".*{SUFFIX}.*"):
                if _is_stray(place):
                    place.unlink()
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
        holder = _watched(path)
        if holder is None:
            return True
        if not holder.dead:
            return False
        guard = path.with_name(f".{path.name}.guard")
        try:
            os.close(os.open(guard, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            with contextlib.suppress(OSError):  # left behind by a crash between its making and its removal
                if _is_stray(guard):
                    guard.unlink()
            return False
        try:
            return self._removed(path)
        finally:
            guard.unlink(missing_ok=True)

    def _removed(self, path: Path) -> bool:
        """Whether the claim is not there any more, or is still stale and is removed."""
        holder = read(path)
        if holder is None or not holder.dead:
            return holder is None
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return True
        taken = read(aside)
        if taken is not None and not taken.dead:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
        return taken is None or taken.dead

    def _live(self) -> None:
        while not self._stop.wait(BEAT):
            for claim in self._held:
                claim.beat()


def read(path: Path) -> Holder | None:
    """Who holds a claim; None where there is none."""
    try:
        with path.open("rb") as file:  # opening makes a network file system look at the file anew
            status = os.fstat(file.fileno())
            head, _, rest = file.read().partition(b"\n")
    except FileNotFoundError:
        return None
    name = path.name.removesuffix(SUFFIX)
    said = _parsed(head)
    alive, dead = (False, True) if _is_gone(said) else _looked_at(status, head, path.parent)
    try:
        owner = str(said["host"]), int(said["pid"]), float(said["since"])
        return Holder(name, dict(said["about"]), *owner, progress=_parsed(rest), alive=alive, dead=dead)
    except (KeyError, TypeError, ValueError, OverflowError):  # just being made, or cut short by a crash
        return Holder(name, alive=alive, dead=dead)


def stands(path: Path) -> bool:
    """Whether there is a claim whose owner is not dead for certain; one that is only old is watched for that."""
    holder = _watched(path)
    return holder is not None and not holder.dead


def _watched(path: Path) -> Holder | None:
    """Who holds a claim; one that is only old is watched until it is alive or dead. None where there is none."""
    holder = read(path)
    while holder is not None and not holder.alive and not holder.dead:
        time.sleep(LOOK)
        holders(path.parent)  # the others too, so that all of them are waited for at once
        holder = read(path)
    return holder


@dataclass
class _Watch:
    """What this process saw of a file in looks of its own.

    Attributes:
        touched: When it was last changed, by its file system's clock.
        looked: When it was last looked at, by a clock that nobody sets.
        seconds: For how long it has been seen unchanged.
        moved: Whether it was ever seen to be touched.
    """

    touched: int
    looked: float
    seconds: float = 0.0
    moved: bool = False


_watches: dict[tuple[int, bytes], _Watch] = {}  # by inode and what the owner says of itself, wherever a claim is moved


def _looked_at(status: os.stat_result, head: bytes, folder: Path) -> tuple[bool, bool]:
    """Whether the owner of a claim gives signs of life, and whether it surely gives none, by what was seen so far.

    Where the clock was set forward, or the machine slept, a claim is old until its owner touches it again. Where it was
    set back, one that nobody touches looks fresh for as long, and only watching it tells.
    """
    looked, which = time.monotonic(), (status.st_ino, head)
    if len(_watches) >= _WATCHES:
        _watches.clear()
    watch = _watches.setdefault(which, _Watch(status.st_mtime_ns, looked))
    if watch.touched != status.st_mtime_ns:
        moved = watch.moved or status.st_mtime_ns > watch.touched
        watch = _watches[which] = _Watch(status.st_mtime_ns, looked, moved=moved)
    watch.seconds += min(looked - watch.looked, LONGEST)
    watch.looked = looked
    old = now(folder) - status.st_mtime >= STALE
    dead = watch.seconds >= (WATCH if old else STALE)
    return not dead and (watch.moved or not old), dead


def _is_stray(path: Path) -> bool:
    """Whether a file that exists for a moment was left by a killed process, whatever way the clock was set."""
    return abs(now(path.parent) - path.stat().st_mtime) > STALE


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


def _is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the owner ran on this machine as the user that this process runs as, and its process is gone.

    Of another user's nothing is known: the system may hide it, and each space of user ids has its own.
    """
    here = bool(machine()) and (owner.get("machine"), owner.get("uid")) == (machine(), user())
    pid, was_born = owner.get("pid"), owner.get("born")
    if not here or type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)  # does nothing; the kernel answers whatever /proc shows
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    is_born = _started(pid)
    return bool(was_born) and is_born is not None and is_born != was_born


def user() -> int:
    """The id of the user that this process runs as; -1 where users have none, as on Windows."""
    return os.getuid() if hasattr(os, "getuid") else -1


@cache
def machine() -> str:
    """What tells this machine, since it was started, and its spaces of process and user ids from all others; "" if
    unknown, or if processes are not shown under their own ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        shown = os.readlink("/proc/self") == str(os.getpid())
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.readlink('/proc/self/ns/user')}" if shown else ""
    except OSError:
        return ""


def born(pid: int) -> str:
    """When a process was started, in the system's ticks, which tells it from another of the same id; "" if it ended."""
    return _started(pid) or ""


def _started(pid: int) -> str | None:
    """When a process was started; "" if it ended and nobody has asked how; None where the system shows no such one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = text.rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    except (OSError, ValueError, IndexError):
        return None
