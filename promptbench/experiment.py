"""From what is asked for to results: what is finished is read, and what is missing or outdated is done, somewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.config import path_of, unknown
from promptbench.results.result import (
    Result,
    check_writable,
    failure_path,
    find_predictions,
    has_died,
    stored_results,
)
from promptbench.runs.listener import listening
from promptbench.storage.atomic import superseded
from promptbench.storage.claims import CLAIMS
from promptbench.sweep.executors.contract import LOCAL, choose

if TYPE_CHECKING:
    from promptbench.runs.listener import Listener
    from promptbench.runs.plan import Run
    from promptbench.runs.request import Request
    from promptbench.runs.session import Session
    from promptbench.sweep.loop import Sweep

RAISE, RECORD = "raise", "record"


class RunsFailed(RuntimeError):
    """Runs of a call have no result; the message names the first of them and says why.

    Attributes:
        results: Of the others, in the order of the plan.
        failed: The runs that failed in this call.
        left: Those that failed in an earlier one, and were not to be tried again.
        tried: How many runs this call had to do.
    """

    def __init__(
        self, message: str, results: Sequence[Result], failed: Sequence[Run], left: Sequence[Run], tried: int
    ) -> None:
        super().__init__(message)
        self.results, self.failed, self.left, self.tried = list(results), tuple(failed), tuple(left), tried


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where and how the runs of a call are done.

    Attributes:
        jobs: Runs at once; None for as many as have room, here or on a cluster.
        runs_per_gpu: Of them, most on one GPU.
        executor: `local`, `ray`, `ray:ADDRESS` or `slurm`.
        options: Of Ray or Slurm, `key=value` each.
        plugins: Files with methods, datasets or protocols, which other processes need.
    """

    jobs: int | None = None
    runs_per_gpu: int = 1
    executor: str = LOCAL
    options: Sequence[str] = ()
    plugins: Sequence[Path | str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", tuple(path_of(path).absolute() for path in self.plugins))

    @property
    def here(self) -> bool:
        """Whether this machine does the runs."""
        return self.executor == LOCAL

    def check(self) -> None:
        """Raise a UsageError where the executor is unknown, or an option of it; this machine needs no more."""
        if not self.here or self.options:
            choose(self.executor, self.options)


def run(
    request: Request,
    session: Session,
    listener: Listener,
    *,
    where: Where | None = None,
    retry_failed: bool | None = None,
    keep_outdated: bool = False,
    on_error: str = RAISE,
) -> list[Result]:
    """The results of all runs that are asked for, in the order of the plan.

    Those that are finished are read, those that are outdated are set aside and done again, and the others are done.

    Args:
        request: What is asked for.
        session: Of the request's suite.
        listener: Told of the runs that are done.
        where: One after another in this process unless something else is said.
        retry_failed: Whether runs that failed in an earlier call are tried again; None for those that did not end the
            process itself, twice.
        keep_outdated: Whether finished runs stand whose weights or whose method's code changed since.
        on_error: `raise`, when everything else is done, or `record`: the result of a run that failed is missing, and a
            file `*.failed.json` says why.

    Raises:
        UsageError: Nothing can be done, such as for missing data.
        RunsFailed: Runs failed.
    """
    from promptbench.runs.plan import plan_runs
    from promptbench.runs.session import as_it_was
    from promptbench.sweep.preflight import check_finished, renew

    where = where or Where()
    where.check()  # before it is needed
    runs = plan_runs(request)
    results = stored_results(session.output, [one.spec for one in runs])
    here = session if where.here else session.at(device="cpu")  # this machine may have no GPU
    check_finished(here, results)
    with as_it_was():
        results = renew(here, runs, results, keep=keep_outdated)
    started = Start(session, listener, where, request)
    return finish(runs, results, started, retry_failed=retry_failed, on_error=on_error)


def do(runs: Sequence[Run], session: Session, listener: Listener, *, on_error: str = RAISE) -> list[Result]:
    """The results of runs that somebody else has planned, in their order: read where they are finished, or done here.

    Raises:
        UsageError, RunsFailed: As `run`.
    """
    results = stored_results(session.output, [one.spec for one in runs])
    return finish(runs, results, Start(session, listener), on_error=on_error)


def finish(
    runs: Sequence[Run],
    results: Mapping[str, Result],
    start: Start,
    *,
    retry_failed: bool | None = None,
    on_error: str = RAISE,
) -> list[Result]:
    """The results of runs, those that are not there made by `start`.

    Args:
        results: Of the runs that are finished, by name.
    """
    if on_error not in (RAISE, RECORD):
        raise unknown("value of on_error", on_error, (RAISE, RECORD))
    output = start.session.output

    def lacks_something(one: Run, there: Mapping[str, Result]) -> bool:
        predictions = start.session.save_predictions and find_predictions(output, one.spec) is None
        return predictions or one.spec.name not in there

    def stays_failed(one: Run) -> bool:
        if retry_failed is None:
            return has_died(output, one.spec)
        return not retry_failed and failure_path(output, one.spec).exists()

    todo = [one for one in runs if lacks_something(one, results)]
    left = [one for one in todo if stays_failed(one)]
    names = {one.spec.name for one in left}
    todo = [one for one in todo if one.spec.name not in names]
    if todo:
        start(todo, len(runs), again=bool(retry_failed))
    elif (output / CLAIMS).is_dir() or superseded(output / "trainings"):  # killed between its last result and its end
        from promptbench.sweep.loop import tidy

        tidy(output)
    results = {**results, **stored_results(output, [one.spec for one in todo])}
    found = [results[one.spec.name] for one in runs if one.spec.name in results]
    failed = [one for one in todo if lacks_something(one, results)]
    if (failed or left) and on_error == RAISE:
        raise RunsFailed(why_failed([*failed, *left], start.session.place.named), found, failed, left, len(todo))
    return found


def why_failed(runs: Sequence[Run], output: Path) -> str:
    """Which of these runs is the first, why it failed, and how many others did."""
    path = failure_path(output, runs[0].spec)
    reason = "its predictions were not written"
    if path.exists():
        reason = str(json.loads(path.read_text(encoding="utf-8"))["reason"]).rstrip(".")
    others = f"; {len(runs) - 1} more failed" if len(runs) > 1 else ""
    return f"{runs[0].spec.name} failed: {reason}{others}; see *.failed.json in {output}."


class Start:
    """Does runs, in this process or in others.

    Args:
        session: Of this process.
        listener: Told of the runs.
        where: To do them; in this process if None.
        request: What they were planned from, which other processes plan again.
    """

    def __init__(
        self, session: Session, listener: Listener, where: Where | None = None, request: Request | None = None
    ) -> None:
        self.session, self.listener, self.where, self.request = session, listener, where or Where(), request

    def __call__(self, todo: Sequence[Run], total: int, again: bool = False) -> None:
        """Do the runs, of so many that were asked for.

        Args:
            again: Whether this includes those at which the process has ended too often.

        Raises:
            UsageError: Nothing can be done.
        """
        from promptbench.runs.session import as_it_was

        check_writable(self.session.place.named)
        with as_it_was(deterministic=any(one.spec.deterministic for one in todo)):
            self.carry_out(todo, total, again)

    def carry_out(self, todo: Sequence[Run], total: int, again: bool) -> None:
        """Do the runs, in a process that they may change; see `__call__`."""
        from promptbench.sweep.loop import announced, carry_out, look_for_deaths, run_all, several

        engine = None
        if self.request is not None and (not self.where.here or several(todo, self.session.device, self.where.jobs)):
            engine = choose(self.where.executor, self.where.options)
            engine.prepare(self.session.device)  # first, for what it starts may take as long as what follows
        self.check(todo)
        output = self.session.output
        look_for_deaths(output, todo, again)
        with announced(output, [one.spec.name for one in todo]), listening(self.listener, todo, total, output):
            if engine is None or self.request is None:
                run_all(self.session, todo, self.listener)
            else:
                self.session.close()  # the workers open their own
                carry_out(self.sweep(self.request, todo), engine, self.listener)

    def check(self, todo: Sequence[Run]) -> None:
        """Raise a UsageError where data are missing or a method cannot do what is asked of it."""
        from promptbench.runs.session import remembered_backbone
        from promptbench.sweep.preflight import preflight

        preflight(self.session if self.where.here else self.session.at(device="cpu"), todo)
        if self.where.here:
            remembered_backbone(self.session)  # so that the next call need not load the backbone to compare its weights

    def sweep(self, request: Request, todo: Sequence[Run]) -> Sweep:
        """The runs as other processes are told of them."""
        from promptbench.sweep.loop import Job, Sweep, failures_on_record, neighbours

        asked = {**request.asked, "threads": todo[0].spec.threads}  # nodes differ in cores
        names = tuple(one.spec.name for one in neighbours(todo))
        plugins = tuple(map(Path, self.where.plugins))
        known = failures_on_record(self.session.output, todo)
        job = Job(asked, self.session.place, names, known, plugins)
        return Sweep(job, todo, self.where.jobs, self.where.runs_per_gpu)
