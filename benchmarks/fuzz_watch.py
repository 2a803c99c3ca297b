"""What a case does to the world around it: files, processes, connections, time, what it says."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_FOREIGN = {
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
    "socket.connect", "socket.getaddrinfo", "pickle.find_class",
}  # fmt: skip


class Endless(BaseException):
    """A case takes too long; no `except Exception` of the code stops it."""


@dataclass
class Watch:
    """Python's audit events while a case goes on: files that are written elsewhere, processes, connections, pickles."""

    allowed: tuple[str, ...] = ()
    on: bool = False
    seen: list[str] = field(default_factory=list)

    hooked: bool = False

    def begin(self) -> None:
        """Listen, for good: Python has no way to stop."""
        if not self.hooked:
            sys.addaudithook(self)
            self.hooked = True

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _FOREIGN:
            self.seen.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            if not _is_folder(arguments[0]):  # a temporary file without a name is opened so
                self.written(arguments[0])
        elif event in _CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self.written(path)

    def written(self, path: Any) -> None:
        """Note a path outside of what is allowed."""
        if isinstance(path, (str, bytes, os.PathLike)):
            place = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
            full = os.path.join(place, os.path.basename(os.fsdecode(path)))
            harmless = (os.devnull, f"/proc/{os.getpid()}/clear_refs")  # each run measures its memory anew
            if full not in harmless and not full.startswith(self.allowed):
                self.seen.append(f"wrote {full!r}"[:200])


def _is_folder(path: Any) -> bool:
    try:
        return os.path.isdir(path)
    except (TypeError, ValueError):
        return False


WATCH = Watch()


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises Endless within it after so many seconds."""

    def stop(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def heard() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Within it, stdout and stderr are files in memory, with the errors of a terminal's."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err
