"""Running what was planned: train once, evaluate, write one result per run.

A finished run is never done twice, nor one that another process is doing: it is looked at again at the end. A failed
one is recorded and the rest go on; a disk that is full, or a folder that turns read-only, ends the call instead.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from promptbench.config import UsageError
from promptbench.results.result import Result, failure_path, write_failure
from promptbench.runs.listener import Busy, Listener, Work
from promptbench.runs.loggers import tracked
from promptbench.runs.plan import Run
from promptbench.runs.session import Bench
from promptbench.storage.atomic import remove_drafts
from promptbench.storage.claims import CLAIMS, Claim, Claims, now
from promptbench.training.fit import TrainingDiverged

LOOK_AGAIN = 1.0  # seconds between looks at runs that others do
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # only writing fails so
DENIED = (errno.EACCES, errno.EPERM)


def run_all(
    bench: Bench,
    runs: Iterable[Run],
    listener: Listener,
    known: Mapping[str, int] | None = None,
    how: Callable[[Bench, Run, Work], Result] | None = None,
) -> int:
    """Do every run that is not finished; returns how many failed. Ctrl-C passes through, and loses nothing finished.

    Args:
        known: The failures on record that are to be tried again, as `failures_on_record` gives them; those that come
            later are other processes'. Without it, those there are now.
        how: Does a run and writes its result; `execute` unless it is done elsewhere.

    Raises:
        UsageError: The output folder cannot be written.
    """
    from promptbench.runs.run import execute  # seconds to import, for those that do runs themselves

    pending = [(run, "") for run in runs]  # with the claim that it waits for
    known = failures_on_record(bench.output, [run for run, _ in pending]) if known is None else known
    failures = 0
    with Claims(bench.output / CLAIMS) as claims:
        while pending:
            waiting: list[tuple[Run, str]] = []
            for run, awaited in pending:
                claim = None if awaited and claims.busy(awaited) else claims.take(run.spec.digest, about(run))
                if claim is None:
                    waiting.append((run, awaited or run.spec.digest))
                    continue
                with claim:
                    try:
                        failures += not settled(bench, run, listener, known, (claims, claim), how or execute)
                    except Busy as busy:
                        waiting.append((run, str(busy)))
            if len(waiting) == len(pending):
                time.sleep(LOOK_AGAIN)
            pending = waiting
    return failures


@contextlib.contextmanager
def announced(output: Path, names: Iterable[str]) -> Iterator[None]:
    """Within it, `status` knows which runs a call has to do; at the end, what killed processes left is removed."""
    with Claims(output / CLAIMS) as claims:
        claims.take(f"call-{secrets.token_hex(8)}", {"kind": "call", "runs": list(names)})
        yield
        claims.clear()
        today = now(output)
        for part in ("results", "trainings", "predictions"):
            remove_drafts(output / part, today)


def tidy(output: Path) -> None:
    """Remove the claims of killed processes from a folder with nothing left to do, where that is allowed."""
    with contextlib.suppress(OSError, UsageError), Claims(output / CLAIMS) as claims:
        claims.clear()


def about(run: Run) -> dict[str, Any]:
    """What a claim says of a run."""
    return {"kind": "run", "run": run.spec.name, "seeds": run.spec.seeds, "epochs": run.spec.recipe.get("epochs", 0)}


def failures_on_record(output: Path, runs: Iterable[Run]) -> dict[str, int]:
    """When the failures of runs were recorded, in nanoseconds, by name."""
    paths = {run.spec.name: failure_path(output, run.spec) for run in runs}
    return {name: path.stat().st_mtime_ns for name, path in paths.items() if path.exists()}


def settled(
    bench: Bench,
    run: Run,
    listener: Listener,
    known: Mapping[str, int],
    held: tuple[Claims, Claim],
    how: Callable[[Bench, Run, Work], Result],
) -> bool:
    """Do a run that this process holds, unless another was faster; whether it has a result."""
    if bench.is_finished(run.spec):
        listener.elsewhere(run)
        return True
    tried = failures_on_record(bench.output, [run]).get(run.spec.name)
    if tried != known.get(run.spec.name) and tried is not None:
        listener.elsewhere(run)
        return False
    listener.started(run)
    try:
        with tracked(bench.loggers, bench.output, run.spec) as tracker:
            result = how(bench, run, Work(listener, tracker, *held))
            tracker.finished(result.metrics)
    except Busy:
        raise
    except Exception as error:  # one failed run must not end a sweep
        if cannot_write(error, bench.output):
            said = str(error).rstrip(".")
            raise UsageError(f"{said}; what is finished is kept, and the same command goes on from here.") from error
        reason = str(error) if isinstance(error, (UsageError, TrainingDiverged)) else f"{type(error).__name__}: {error}"
        trace, place = traceback.format_exc(), place_of(run, error)
        write_failure(bench.output, run.spec, reason=reason, traceback=trace, where=place)
        listener.failed(run, reason)
        return False
    listener.finished(run, result)
    return True


def cannot_write(error: BaseException | None, output: Path) -> bool:
    """Whether an error says that nothing more can be written, which no other run would survive either."""
    while error is not None:
        if isinstance(error, OSError):
            ours = str(error.filename or "").startswith(str(output))
            if error.errno in FULL or (error.errno in DENIED and ours):
                return True
        error = error.__cause__
    return False


def place_of(run: Run, error: Exception) -> dict[str, Any]:
    """Method, dataset and seeds of a failure; epoch, step and learning rate where they are known."""
    spec = run.spec
    place = {
        "method": spec.label,
        "dataset": spec.dataset,
        "data_seed": spec.data_seed,
        "train_seed": spec.train_seed,
    }
    return {**place, **getattr(error, "where", {})}
