"""A run under way: what it holds, who is told of it, and how it may end without a result.

Nothing here needs what does a run; a call that only starts other processes imports this alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from promptbench.results.result import Result
    from promptbench.runs.loggers import Tracker
    from promptbench.runs.plan import Run
    from promptbench.storage.claims import Claim, Claims


class Listener(Protocol):
    """Told how the runs go; the command line draws it."""

    def started(self, run: Run) -> None: ...

    def step(self, done: int, total: int, loss: float) -> None: ...

    def finished(self, run: Run, result: Result) -> None: ...

    def failed(self, run: Run, reason: str) -> None: ...

    def elsewhere(self, run: Run) -> None: ...


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
