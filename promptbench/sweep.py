"""Several runs at once: what is to be done, what the processes that do it are told, and what became of it.

A worker plans the same runs from the same request and goes through them as a lone process would, so that the numbers
are the same. Workers share the runs by claims; who starts them, and where, is an executor's business. What is done and
what failed is read from the files of the output folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench import registry
from promptbench.config import UsageError
from promptbench.results.result import write_failure
from promptbench.runner import failures_on_record, place_of
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.request import Request
from promptbench.runs.session import Bench
from promptbench.standing import Standing, standing_of
from promptbench.storage.atomic import write_atomically
from promptbench.storage.claims import CLAIMS, Claims

if TYPE_CHECKING:
    from promptbench.executors.contract import Executor
    from promptbench.progress import Overview

POLL = 0.5  # seconds between looks at the workers and the files
DEATHS = 2  # of processes at the same run, after which it counts as failed
UNEXPLAINED = 6  # deaths of processes at no run that is known


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Attributes:
        request: What was asked for.
        bench: What the runs share; the worker opens datasets and backbone itself.
        names: Of the runs to do, in order.
        known: The failures that are to be tried again, as `failures_on_record` gives them.
        plugins: Files with methods, datasets or protocols.
    """

    request: Request
    bench: Bench
    names: tuple[str, ...]
    known: Mapping[str, int]
    plugins: tuple[Path, ...]

    def runs(self) -> list[Run]:
        """The runs, planned here.

        Raises:
            UsageError: One of them comes out otherwise here.
        """
        for path in self.plugins:
            registry.add_file(path)
        planned = {run.spec.name: run for run in plan_runs(self.request)}
        missing = [name for name in self.names if name not in planned]
        if missing:
            raise UsageError(
                f"The run {missing[0]} comes out otherwise on {socket.gethostname()} than where the call is; install "
                "the same promptbench and plugins there."
            )
        return [planned[name] for name in self.names]


class Sweep:
    """The runs that are to be done, and what became of them.

    Args:
        job: What a worker is told.
        runs: Those of the job.
        jobs: How many at once; None for what the executor makes of it.
        per_gpu: How many on one GPU, at most.
    """

    def __init__(self, job: Job, runs: Sequence[Run], jobs: int | None = None, per_gpu: int = 1) -> None:
        self.job, self.jobs, self.per_gpu = replace(job, bench=replace(job.bench, _datasets={})), jobs, per_gpu
        self.runs = {run.spec.name: run for run in runs}
        self.output = job.bench.output
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
            name for name, run in self.runs.items() if name not in failed and not self.job.bench.is_finished(run.spec)
        ]

    def settled(self, standing: Standing) -> bool:
        """Whether no run is left, as far as a look at names tells; False where each has more than a result to write."""
        left = self.runs.keys() - standing.done
        return not self.job.bench.save_predictions and left.issubset(self.failed() if left else ())

    def failed(self) -> list[str]:
        """The runs that failed in this call."""
        bench, known = self.job.bench, self.job.known
        now = failures_on_record(bench.output, self.runs.values())
        return [
            name
            for name, when in now.items()
            if known.get(name) != when and not bench.is_finished(self.runs[name].spec)
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
        self.deaths[name] += 1
        if not name and self.deaths[name] >= UNEXPLAINED:
            raise UsageError(f"Worker processes end with {how} before they do anything: {words.rpartition(chr(10))[2]}")
        if name and self.deaths[name] >= DEATHS:
            run = self.runs[name]
            reason = f"the process at this run ended with {how}, {DEATHS} times; it may be short of memory, see --jobs"
            with Claims(self.output / CLAIMS) as claims:
                if claims.take(run.spec.digest, {"kind": "failure"}) is not None:
                    where = place_of(run, RuntimeError())
                    write_failure(self.output, run.spec, reason=reason, traceback=words, where=where)


def carry_out(sweep: Sweep, executor: Executor, overview: Overview) -> int:
    """Do the runs of a sweep; returns how many failed.

    Raises:
        UsageError: The sweep cannot go on, such as for a full disk, or leaves runs undone.
    """
    with contextlib.closing(executor.execute(sweep)) as looks:  # type: ignore[type-var]  # a generator
        for standing in looks:
            overview.update(standing)
    overview.update(sweep.standing())
    left = sweep.unfinished()
    if left:
        raise UsageError(
            f"{len(left)} of {len(sweep.runs)} runs are left undone, such as {left[0]}, though every process has ended "
            "well; what is finished is kept, and the same command goes on from here."
        )
    return len(sweep.failed())


def ended_with(code: int) -> str:
    """How a process ended, by its exit code."""
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


class Silent:
    """A listener that says nothing: others see the files."""

    def started(self, run: Run) -> None: ...

    def step(self, done: int, total: int, loss: float) -> None: ...

    def finished(self, run: Run, result: Any) -> None: ...

    def failed(self, run: Run, reason: str) -> None: ...

    def elsewhere(self, run: Run) -> None: ...


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
    """The runs, those that may share a training or features one after another."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(group_of(run), []).append(run)
    return [run for group in groups.values() for run in group]


def group_of(run: Run) -> str:
    """Equal for runs that may share a training or features."""
    spec = run.spec
    recipe = {key: value for key, value in spec.recipe.items() if key != "origin"}
    what = [spec.dataset, spec.dataset_options, spec.shots, spec.seeds, spec.method, spec.config, recipe]
    return json.dumps([*what, run.plan.train.classes], sort_keys=True)
