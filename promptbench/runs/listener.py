"""A run under way: what it holds, who is told of it, and how it may end without a result.

Nothing here needs what does a run; a call that only starts other processes imports this alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from promptbench.storage.claims import Claim, Claims, Holder

if TYPE_CHECKING:
    from promptbench.results.result import Result
    from promptbench.runs.loggers import Tracker
    from promptbench.runs.plan import Run


@dataclass(frozen=True)
class Standing:
    """How the runs of a folder stand.

    Attributes:
        done: Names of the runs that have a result.
        failed: Name to the file that says why.
        running: Who is at which run, those that began first in front.
        waiting: Names of those that calls under way have still to do.
        seconds_left: Until these calls are through, if the rest goes as what they did so far; None where nobody knows.
    """

    done: frozenset[str]
    failed: dict[str, Path]
    running: tuple[Holder, ...]
    waiting: frozenset[str]
    seconds_left: float | None


class Listener(Protocol):
    """Told how the runs of a call go, whether they go one after another or several at once; a display draws it."""

    def begins(self, todo: Sequence[Run], total: int | None, output: Path) -> None:
        """A call begins.

        Args:
            todo: The runs that it has to do.
            total: How many it has asked for; those that are not to do are finished. None where nobody knows yet.
            output: The folder with their results.
        """

    def ends(self) -> None:
        """Nothing more comes, whether all went well or not."""

    def started(self, run: Run) -> None:
        """This process begins a run."""

    def step(self, done: int, total: int, loss: float) -> None:
        """A training step of that run is done."""

    def finished(self, run: Run, result: Result) -> None:
        """That run is done."""

    def failed(self, run: Run, reason: str) -> None:
        """That run failed."""

    def elsewhere(self, run: Run) -> None:
        """Another process has done a run."""

    def stands(self, standing: Standing) -> None:
        """How the runs stand that other processes do for this call; said every other second or so."""


class Silent:
    """A listener that says nothing: others see the files."""

    def begins(self, todo: Sequence[Run], total: int | None, output: Path) -> None: ...

    def ends(self) -> None: ...

    def started(self, run: Run) -> None: ...

    def step(self, done: int, total: int, loss: float) -> None: ...

    def finished(self, run: Run, result: Result) -> None: ...

    def failed(self, run: Run, reason: str) -> None: ...

    def elsewhere(self, run: Run) -> None: ...

    def stands(self, standing: Standing) -> None: ...


@contextmanager
def listening(listener: Listener, todo: Sequence[Run], total: int | None, output: Path) -> Iterator[None]:
    """Within it, a listener is told of the runs of a call; see `Listener.begins`."""
    listener.begins(todo, total, output)
    try:
        yield
    finally:
        listener.ends()


class Busy(Exception):
    """Another process does what a run needs; the message is the name of its claim."""


@dataclass(frozen=True)
class Work:
    """A run under way: what it holds, and who is told of it."""

    listener: Listener
    tracker: Tracker
    claims: Claims
    claim: Claim

    def step(self, done: int, total: int, loss: float) -> None:
        """A training step is done."""
        if self.claim.lost:
            raise Busy(self.claim.name)
        self.claim.progress = {"done": done, "total": total}
        self.listener.step(done, total, loss)
