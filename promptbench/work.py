"""A run under way: what it holds, who is told of it, and how it may end without a result.

Nothing here needs what does a run; a call that only starts other processes imports this alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from promptbench.planning import Run
    from promptbench.results.result import Result
    from promptbench.storage.claims import Claim, Claims
    from promptbench.trackers import Tracker
    from promptbench.training import PromptTraining


class Listener(Protocol):
    """Told how the runs go; the command line draws it."""

    def started(self, run: Run) -> None: ...

    def step(self, done: int, total: int, loss: float) -> None: ...

    def finished(self, run: Run, result: Result) -> None: ...

    def failed(self, run: Run, reason: str) -> None: ...

    def elsewhere(self, run: Run) -> None: ...


class Busy(Exception):
    """Another process does what a run needs; the message is the name of its claim."""


class TrainingDiverged(RuntimeError):
    """A loss or a learned tensor became NaN or infinite; the message says where.

    Attributes:
        where: `epoch` and `step`, counted from 1, and `lr`.
    """

    def __init__(self, what: str, module: PromptTraining, step: int) -> None:
        recipe, rate = module.recipe, module.trainer.optimizers[0].param_groups[0]["lr"]
        self.where = {"epoch": module.current_epoch + 1, "step": step + 1, "lr": rate}
        super().__init__(
            f"{what} in epoch {module.current_epoch + 1} of {recipe.epochs}, step {step + 1} of "
            f"{module.steps_per_epoch}, at learning rate {rate:.3g}; a smaller lr may help"
        )

    @classmethod
    def again(cls, message: str, where: dict[str, Any]) -> TrainingDiverged:
        """As another process raised it."""
        error = cls.__new__(cls, message)
        error.args, error.where = (message,), where
        return error


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
