"""Running what was planned: train once, evaluate, write one result per run.

A finished run is never done twice, nor one that another process is doing: it is looked at again at the end. A failed
one is recorded and the rest go on, whatever its code raised; a disk that is full, or a folder that turns read-only,
ends the call instead. A run at which the process itself ends, again and again, is recorded as failed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import secrets
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol

from promptbench import registry
from promptbench.config import UsageError
from promptbench.results.result import Result, failure_path, write_failure
from promptbench.runs.listener import Attempt, Busy, Listener, Silent, Standing, Work, tracked
from promptbench.runs.plan import Run, available_cores, plan_runs
from promptbench.runs.request import Request
from promptbench.runs.session import Place, Session, asked_by_signal
from promptbench.storage.atomic import remove_drafts, superseded, write_atomically
from promptbench.storage.claims import CLAIMS, GOES_ON, Claim, Claims, now
from promptbench.sweep.status import PLANNED, notes_of, planned_in, standing_of

log = logging.getLogger(__name__)

LOOK_AGAIN = 1.0  # seconds between looks at runs that others do
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # only writing fails so
DENIED = (errno.EACCES, errno.EPERM)

POLL = 0.5  # seconds between looks at the workers and the files
DEATHS = 2  # of processes at the same run that got no further, after which it counts as failed
ON_REQUEST = "--retry-failed does it again, as does removing this record"
UNEXPLAINED = 6  # deaths of processes at no run that is known


def run_all(
    session: Session,
    runs: Iterable[Run],
    listener: Listener,
    known: Mapping[str, int] | None = None,
    how: Callable[[Session, Run, Work], Result] | None = None,
) -> int:
    """Do every run that is not finished; returns how many failed. Ctrl-C passes through, and loses nothing finished.

    Args:
        known: The failures on record that are to be tried again, as `failures_on_record` gives them; those that come
            later are other processes'. Without it, those there are now.
        how: Does a run elsewhere and writes its result; `execute` does it here.

    Raises:
        UsageError: The output folder cannot be written.
    """
    from promptbench.runs.run import execute  # seconds to import, for those that do runs themselves

    if not gc.isenabled():  # the command leaves it off while it starts
        gc.freeze()  # what was imported stays, and need not be looked through again and again
        gc.enable()
    pending = [(run, "") for run in runs]  # with the claim that it waits for
    known = failures_on_record(session.output, [run for run, _ in pending]) if known is None else known
    failures = 0
    with Claims(session.output / CLAIMS) as claims:
        while pending:
            waiting: list[tuple[Run, str]] = []
            for run, awaited in pending:
                claim = None if awaited and claims.busy(awaited) else claims.take(run.spec.digest, about(run))
                if claim is None:
                    waiting.append((run, awaited or run.spec.digest))
                    continue
                with claim:
                    try:
                        attempt = Attempt(session.output, run.spec) if how is None else None
                        held = (claims, claim, attempt)
                        failures += not settled(session, run, listener, known, held, how or execute)
                    except Busy as busy:
                        waiting.append((run, str(busy)))
            if len(waiting) == len(pending):
                time.sleep(LOOK_AGAIN)
            pending = waiting
    return failures


@contextlib.contextmanager
def announced(output: Path, names: Iterable[str]) -> Iterator[None]:
    """Within it, `status` knows which runs a call has to do, and also afterwards where the call is interrupted; at the
    end, what killed processes left is removed."""
    with Claims(output / CLAIMS) as claims:
        call, runs = f"call-{secrets.token_hex(8)}", list(names)
        claims.take(call, {"kind": "call", "runs": runs})
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            note_plan(output, call, runs)
            raise
        _clear_away(output, claims)


def note_plan(output: Path, call: str, runs: Sequence[str]) -> None:
    """Note what a call that is interrupted had to do, in the place of what earlier ones noted of the same runs."""
    with contextlib.suppress(OSError):
        for note in notes_of(output):
            if planned_in(note) <= set(runs):
                note.unlink(missing_ok=True)
        (output / CLAIMS / f"{call}{PLANNED}").write_text(json.dumps(runs), encoding="utf-8")


def tidy(output: Path) -> None:
    """Remove what killed processes left in a folder with nothing left to do, where that is allowed."""
    with contextlib.suppress(OSError, UsageError), Claims(output / CLAIMS) as claims:
        _clear_away(output, claims)


def _clear_away(output: Path, claims: Claims) -> None:
    """Remove claims of dead owners, half-written files, and notes of runs and trainings that are finished now."""
    claims.clear()
    forget_finished(output)
    standing = standing_of(output)
    for note in notes_of(output):
        if not planned_in(note) - standing.done - set(standing.failed):
            note.unlink(missing_ok=True)
    today = now(output)
    for part in ("results", "trainings", "predictions"):
        remove_drafts(output / part, today)
    for note in superseded(output / "trainings"):
        if not claims.busy(note.stem):
            note.unlink(missing_ok=True)


def forget_finished(output: Path) -> None:
    """Remove the notes of processes that were killed between the result of a run and its end."""
    for path in (output / CLAIMS).glob(f"*{Attempt.suffix}"):
        with contextlib.suppress(OSError, ValueError):
            name = os.fsdecode(path.read_bytes().partition(b"\n")[0])
            if not name or (output / "results" / f"{name}.json").exists():
                path.unlink()


def look_for_deaths(output: Path, runs: Iterable[Run], again: bool) -> None:
    """Say at which runs processes have died.

    Args:
        again: Whether those that died too often are done again too.
    """
    claims = Claims(output / CLAIMS)
    died: Counter[str] = Counter()
    for run in runs:
        attempt = Attempt(output, run.spec)
        deaths = attempt.deaths()
        if not deaths or claims.busy(run.spec.digest):
            continue
        if again or deaths < DEATHS:
            died[run.spec.name] = deaths
        if again:
            attempt.forget()
    if died:
        ((name, deaths),) = died.most_common(1)
        times = "once" if deaths == 1 else f"{deaths} times"
        others = f", and at {len(died) - 1} more" if len(died) > 1 else ""
        log.warning("a process ended in the middle of %s (%s)%s; done again", name, times, others)


def about(run: Run) -> dict[str, Any]:
    """What a claim says of a run."""
    return {"kind": "run", "run": run.spec.name, "seeds": run.spec.seeds, "epochs": run.spec.recipe.get("epochs", 0)}


def failures_on_record(output: Path, runs: Iterable[Run]) -> dict[str, int]:
    """When the failures of runs were recorded, in nanoseconds, by name."""
    paths = {run.spec.name: failure_path(output, run.spec) for run in runs}
    return {name: path.stat().st_mtime_ns for name, path in paths.items() if path.exists()}


def settled(
    session: Session,
    run: Run,
    listener: Listener,
    known: Mapping[str, int],
    held: tuple[Claims, Claim, Attempt | None],
    how: Callable[[Session, Run, Work], Result],
) -> bool:
    """Do a run that this process holds, unless another was faster; whether it has a result."""
    _, claim, attempt = held
    if session.is_finished(run.spec):
        listener.elsewhere(run)
        return True
    tried = failures_on_record(session.output, [run]).get(run.spec.name)
    if tried != known.get(run.spec.name) and tried is not None:
        listener.elsewhere(run)
        return False
    listener.started(run)
    if attempt is not None and attempt.deaths() >= DEATHS:
        reason = f"the process ended {DEATHS} times in the middle of this run, as by a crash, a kill or os._exit"
        return failed(session, run, listener, f"{reason}; {ON_REQUEST}", deaths=DEATHS)
    try:
        with (
            attempt or contextlib.nullcontext(),
            tracked(session.loggers, session.output, run.spec) as tracker,
        ):
            result = how(session, run, Work(listener, tracker, *held))
            tracker.finished(result.metrics)
    except (Busy, KeyboardInterrupt):
        raise
    except BaseException as error:  # one failed run must not end a sweep, even where its code asks for that
        if asked_by_signal(error):
            raise
        if not claim.is_ours():  # it is another process's now, whatever went wrong here
            raise Busy(claim.name) from error
        if cannot_write(error, session.output):
            said = str(error)
            raise UsageError(said if GOES_ON in said else f"{said.rstrip('.')}; {GOES_ON}") from error
        return failed(session, run, listener, reason_of(error), traceback.format_exc(), getattr(error, "where", {}))
    listener.finished(run, result)
    return True


def failed(
    session: Session,
    run: Run,
    listener: Listener,
    reason: str,
    trace: str = "",
    where: Mapping[str, Any] | None = None,
    deaths: int = 0,
) -> bool:
    """Record the failure of a run, as `write_failure` does; False."""
    place = place_of(run, where)
    log.info("%s failed at %s\n%s", run.spec.name, place, trace)
    write_failure(session.output, run.spec, reason=reason, traceback=trace, where=place, deaths=deaths)
    Attempt(session.output, run.spec).forget()
    listener.failed(run, reason)
    return False


def reason_of(error: BaseException) -> str:
    """What an error says, with its type where it is not one of ours."""
    from promptbench.training.fit import TrainingDiverged  # with Lightning, which sweeps that go well may do without

    try:
        said = str(error)
    except Exception:  # a plugin's own type of error may fail at that, too
        said = ""
    if isinstance(error, (UsageError, TrainingDiverged)):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def cannot_write(error: BaseException | None, output: Path) -> bool:
    """Whether an error says that nothing more can be written, which no other run would survive either."""
    while error is not None:
        if isinstance(error, OSError):
            ours = str(error.filename or "").startswith(str(output))
            if error.errno in FULL or (error.errno in DENIED and ours):
                return True
        error = error.__cause__
    return False


def place_of(run: Run, where: object = None) -> dict[str, Any]:
    """Method, dataset and seeds of a failure; epoch, step and learning rate where they are known.

    Args:
        where: What an error says of that.
    """
    spec = run.spec
    place = {
        "method": spec.label,
        "dataset": spec.dataset,
        "data_seed": spec.data_seed,
        "train_seed": spec.train_seed,
    }
    return {**place, **where} if isinstance(where, Mapping) else place


@dataclass(frozen=True)
class Job:
    """What a worker is told: plain values, from which it builds its own request and session.

    Attributes:
        asked: What `Request.of` is given.
        place: Where the runs read and write.
        names: Of the runs to do, in order.
        known: The failures that are to be tried again, as `failures_on_record` gives them.
        plugins: Files with methods, datasets or protocols.
    """

    session: ClassVar[type[Session]] = Session

    asked: Mapping[str, Any]
    place: Place
    names: tuple[str, ...]
    known: Mapping[str, int]
    plugins: tuple[Path, ...]

    def open(self) -> tuple[Session, list[Run]]:
        """A session of this process, and the runs, planned here.

        Raises:
            UsageError: One of them comes out otherwise here.
        """
        for path in self.plugins:
            registry.add_file(path)
        request = Request.of(**self.asked)
        planned = {run.spec.name: run for run in self.plan(request)}
        missing = [name for name in self.names if name not in planned]
        if missing:
            raise UsageError(
                f"The run {missing[0]} comes out otherwise on {socket.gethostname()} than where the call is; install "
                "the same promptbench and plugins there."
            )
        return self.session(self.place, request.suite), [planned[name] for name in self.names]

    def plan(self, request: Request) -> list[Run]:
        """The runs that the request asks for."""
        return plan_runs(request)


class Sweep:
    """The runs that are to be done, and what became of them.

    Args:
        job: What a worker is told.
        runs: Those of the job.
        jobs: How many at once; None for what the executor makes of it.
        per_gpu: How many on one GPU, at most.
    """

    def __init__(self, job: Job, runs: Sequence[Run], jobs: int | None = None, per_gpu: int = 1) -> None:
        self.job, self.jobs, self.per_gpu = job, jobs, per_gpu
        self.runs = {run.spec.name: run for run in runs}
        self.output = job.place.output
        self.deaths: Counter[str] = Counter()

    def at_once(self, most: int) -> int:
        """How many of the runs to do at once where nothing is said: `most`, but no more than there are."""
        return max(1, min(self.jobs or most, len(self.runs)))

    def standing(self) -> Standing:
        """How the runs of the output folder stand."""
        return standing_of(self.output)

    def unfinished(self) -> list[str]:
        """The runs with neither a result nor a failure of this call."""
        failed = self.failed()
        return [
            name for name, run in self.runs.items() if name not in failed and not self.job.place.is_finished(run.spec)
        ]

    def settled(self, standing: Standing) -> bool:
        """Whether no run is left, as far as a look at names tells; False where each has more than a result to write."""
        left = self.runs.keys() - standing.done
        return not self.job.place.save_predictions and left.issubset(self.failed() if left else ())

    def failed(self) -> list[str]:
        """The runs that failed in this call."""
        place, known = self.job.place, self.job.known
        now = failures_on_record(place.output, self.runs.values())
        return [
            name
            for name, when in now.items()
            if known.get(name) != when and not place.is_finished(self.runs[name].spec)
        ]

    def died(self, name: str, how: str, words: str) -> None:
        """Take note of a process that died at a run; a run that ends its processes is recorded as failed.

        Args:
            name: Of the run; "" where nobody knows.
            how: The process ended.
            words: What it said last.

        Raises:
            UsageError: Processes end before they do anything.
        """
        attempt = Attempt(self.output, self.runs[name].spec) if name else None
        self.deaths[name] = (attempt.deaths() if attempt else 0) or self.deaths[name] + 1
        if not name and self.deaths[name] >= UNEXPLAINED:
            raise UsageError(f"Worker processes end with {how} before they do anything: {words.rpartition(chr(10))[2]}")
        if attempt and self.deaths[name] >= DEATHS:
            run = self.runs[name]
            reason = f"the process at this run ended with {how}, {DEATHS} times; it may be short of memory, see --jobs"
            reason = f"{reason}; {ON_REQUEST}"
            with Claims(self.output / CLAIMS) as claims:
                if claims.take(run.spec.digest, {"kind": "failure"}) is not None:
                    place = place_of(run)
                    write_failure(
                        self.output, run.spec, reason=reason, traceback=words, where=place, deaths=self.deaths[name]
                    )
                    attempt.forget()


def room_here(runs: Sequence[Run], device: str) -> int:
    """How many runs the cores of this machine do at once, each with its own threads; one on a GPU.

    Where tensors are small, a suite gives a run one thread, and the other cores have room for other runs. Threads are
    part of what a run is, so that its numbers do not depend on how many go at once.
    """
    if device != "cpu":
        return 1
    return max(1, available_cores() // max((run.spec.threads for run in runs), default=1))


def several(runs: Sequence[Run], device: str, jobs: int | None) -> bool:
    """Whether several runs go at once on this machine, where so many may, or as many as have room."""
    return min(jobs or room_here(runs, device), len(runs)) > 1


def carry_out(sweep: Sweep, executor: Executor, listener: Listener) -> int:
    """Do the runs of a sweep; returns how many failed.

    Raises:
        UsageError: The sweep cannot go on, such as for a full disk, or leaves runs undone.
    """
    with contextlib.closing(executor.execute(sweep)) as looks:  # type: ignore[type-var]  # a generator
        for standing in looks:
            listener.stands(standing)
    listener.stands(sweep.standing())
    left = sweep.unfinished()
    if left:
        raise UsageError(
            f"{len(left)} of {len(sweep.runs)} runs are left undone, such as {left[0]}, though every process has ended "
            f"well; {GOES_ON}"
        )
    return len(sweep.failed())


def ended_with(code: int) -> str:
    """How a process ended, by its exit code."""
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


class Noting(Silent):
    """A listener that keeps the run under way in a file, with the process at it, for whoever finds it dead.

    Args:
        path: Of the file; gone between runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def started(self, run: Run) -> None:
        """A run begins."""
        at = {"run": run.spec.name, "host": socket.gethostname(), "pid": os.getpid()}
        write_atomically(self.path, lambda file: file.write(json.dumps(at).encode()))

    def finished(self, run: Run, result: Any) -> None:
        """A run is done."""
        self.path.unlink(missing_ok=True)

    def failed(self, run: Run, reason: str) -> None:
        """A run failed."""
        self.path.unlink(missing_ok=True)


def neighbours(runs: Sequence[Run]) -> list[Run]:
    """The runs, those that may share a training or features one after another.

    What trains goes first: the short runs after it fill the time until the last training has ended, and processes that
    begin at the same time meet different datasets instead of waiting for each other's images and features.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(group_of(run), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: not group[0].method.trains)
    return list(chain.from_iterable(ordered))


def group_of(run: Run) -> str:
    """Equal for runs that may share a training or features."""
    return f"{run.spec.subject(run.method.Config.untrained())} {run.plan.train.classes}"


class Executor(Protocol):
    """Carries out sweeps.

    A module `promptbench.sweep.executors.<name>` offers `create(address, options)`, which returns one. Creating it
    imports no engine and starts nothing.
    """

    def prepare(self, device: str) -> None:
        """Find the engine, before anything is computed.

        Args:
            device: That runs are for.

        Raises:
            UsageError: It is not there.
        """

    def execute(self, sweep: Sweep) -> Iterator[Standing]:
        """Do the runs of a sweep; says every other second or so how they stand. Closing it ends what it has started.

        Raises:
            UsageError: The sweep cannot go on, such as for a full disk.
        """
