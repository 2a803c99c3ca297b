"""A run under way: what it holds, who is told of it, and how it may end without a result.

Nothing here needs what does a run; a call that only starts other processes imports this alone.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from promptbench.config import UsageError
from promptbench.results.spec import Spec, to_plain
from promptbench.storage.claims import CLAIMS, Claim, Claims, Holder

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from promptbench.results.result import Result
    from promptbench.runs.plan import Run

PROJECT = "promptbench"
OPTIONAL = ("tensorboard", "wandb")  # packages, and extras of ours, named as their loggers


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


class Quiet:
    """A text stream on which everything can be written, whether or not it arrives, and which cannot be closed.

    Args:
        stream: Where it goes, as long as that works; None for nowhere.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with suppress(OSError, ValueError, AttributeError):
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write, if that is possible."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def close(self) -> None:
        """Others still write."""

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return not getattr(self.stream, "closed", True) and bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Busy(Exception):
    """Another process does what a run needs; the message is the name of its claim."""


class Attempt:
    """A run that this process is about to begin; as a context, noted in a file beside the claims until it has ended.

    Whatever ends the process itself leaves the file behind, with one line more for each process that ends so. Only who
    holds the claim of the run writes it.
    """

    suffix = ".begun"

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.path = folder / CLAIMS / f"{spec.digest}{self.suffix}"
        self.line = os.fsencode(f"{spec.name}\n")

    def deaths(self) -> int:
        """How many processes have begun the run and died at it, this one included if it has begun."""
        try:
            return self.path.stat().st_size // len(self.line)
        except OSError:
            return 0

    def got_on(self) -> None:
        """The run will go on from here and not from its start: deaths before this are not of a run that kills."""
        with suppress(OSError):
            os.truncate(self.path, len(self.line))

    def forget(self) -> None:
        """The run has ended, whether well or not, or its deaths are explained."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Attempt:
        with suppress(OSError), self.path.open("ab") as file:  # a disk that is full is the run's to find
            file.write(self.line)
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()


@dataclass(frozen=True)
class Work:
    """A run under way: what it holds, and who is told of it."""

    listener: Listener
    tracker: Tracker
    claims: Claims
    claim: Claim
    attempt: Attempt | None = None  # where another process does the run

    def step(self, done: int, total: int, loss: float) -> None:
        """A training step is done."""
        if self.claim.lost:
            raise Busy(self.claim.name)
        self.claim.progress = {"done": done, "total": total}
        self.listener.step(done, total, loss)

    def check(self, *others: Claim) -> None:
        """Before something is written: raises Busy where another process has taken over the run, or another claim."""
        for claim in (self.claim, *others):
            if not claim.is_ours():
                raise Busy(claim.name)

    def got_on(self) -> None:
        """What was done so far is stored, and need not be done again."""
        if self.attempt is not None:
            self.attempt.got_on()


class Tracker:
    """The loggers of one run."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers, self.steps = loggers, 0

    def step(self, done: int, values: Mapping[str, float]) -> None:
        """A training step, counted from 1."""
        self.steps = done
        for logger in self.loggers:
            logger.log_metrics(dict(values), done)

    def finished(self, metrics: Mapping[str, float]) -> None:
        """The metrics of the run, filed under its last step."""
        self.step(self.steps, metrics)


@contextmanager
def tracked(names: Iterable[str], folder: Path | str, spec: Spec) -> Iterator[Tracker]:
    """Opens the loggers of a run and closes them, as failed where it ends in an error.

    Args:
        names: Of `LOGGERS`.
        folder: The output folder.
        spec: Of the run.
    """
    tracker = Tracker([_opened(name, log_folder(folder, spec), spec) for name in names])
    try:
        yield tracker
    except BaseException:
        _close(tracker.loggers, "failed")
        raise
    _close(tracker.loggers, "success")


def log_folder(folder: Path | str, spec: Spec) -> Path:
    """Where the loggers of this spec write."""
    return Path(folder).absolute() / "logs" / spec.name


def check_installed(names: Iterable[str]) -> None:
    """Raises UsageError where a logger's package is missing, before anything is run."""
    for name in names:
        if name in OPTIONAL and importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--logger {name} needs the package {name}; install it with `pip install promptbench-clip[{name}]`."
            )


def _opened(name: str, folder: Path, spec: Spec) -> Logger:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the log of a run that failed before is replaced, which Lightning warns of
        folder.mkdir(parents=True, exist_ok=True)
        logger = LOGGERS[name](folder, spec)
        logger.log_hyperparams(to_plain(spec))
    return logger


def _close(loggers: Iterable[Logger], status: str) -> None:
    for logger in loggers:
        logger.finalize(status)
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:  # wandb: else the next run of the process would be written into this one
            finish(exit_code=int(status != "success"))


def _csv(folder: Path, spec: Spec) -> Logger:
    from pytorch_lightning.loggers import CSVLogger

    return CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)


def _tensorboard(folder: Path, spec: Spec) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    # purge_step hides what an earlier, failed run has left
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=0)


def _wandb(folder: Path, spec: Spec) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    return WandbLogger(
        name=spec.name,
        save_dir=folder,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings={"silent": True},
    )


LOGGERS: Mapping[str, Callable[[Path, Spec], Logger]] = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}
