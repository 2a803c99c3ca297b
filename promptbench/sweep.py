"""Several runs at once: worker processes that share the runs of a call by claims, and a parent that watches them.

A worker plans the same runs from the same request and goes through them as a lone process would, so that the numbers
are the same. The parent counts from files what is done, takes note of a run that kills its process, and ends the
workers when it ends: each reads a pipe that only the parent holds open.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from promptbench import registry
from promptbench.bench import Bench
from promptbench.claims import Claims, Holder, holders
from promptbench.config import UsageError
from promptbench.planning import Request, Run, plan_runs
from promptbench.progress import Overview
from promptbench.results import write_failure
from promptbench.runner import failures_on_record, place_of, run_all
from promptbench.standing import CLAIMS, standing_of

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between looks at the workers and the files
DEATHS = 2  # of processes at the same run, after which it counts as failed
UNEXPLAINED = 6  # deaths of processes at no run that is known
MISUSE, INTERRUPTED = 2, 130  # exit codes
GIB = 2**30


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Attributes:
        request: What was asked for.
        bench: What the runs share; the worker opens datasets and backbone itself.
        names: Of the runs to do, in order.
        known: The failures that are to be tried again, as `failures_on_record` gives them.
        plugins: Files with methods.
    """

    request: Request
    bench: Bench
    names: tuple[str, ...]
    known: Mapping[str, int]
    plugins: tuple[Path, ...]


class Worker(NamedTuple):
    """A worker process, and the file with what it says."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def last_words(self) -> str:
        """The end of what it said."""
        self.said.seek(0)
        return self.said.read().decode(errors="replace")[-4000:].strip()


class Sweep:
    """The workers of a call.

    Args:
        job: What each of them is told.
        runs: Those of the job.
        gpus: The devices to spread the workers over; none on a CPU.
    """

    def __init__(self, job: Job, runs: Sequence[Run], gpus: Sequence[str] = ()) -> None:
        self.job, self.gpus = replace(job, bench=replace(job.bench, _datasets={})), gpus
        self.runs = {run.spec.name: run for run in runs}
        self.workers: list[Worker] = []
        self.started = 0
        self.at: dict[int, str] = {}  # process id to the run it was last seen at
        self.deaths: Counter[str] = Counter()

    def carry_out(self, jobs: int, overview: Overview) -> int:
        """Do the runs, so many at once; returns how many failed.

        Raises:
            UsageError: A worker says that it cannot go on, such as for a full disk.
        """
        try:
            self.workers = [self.start() for _ in range(jobs)]
            while self.workers:
                time.sleep(POLL)
                standing = standing_of(self.job.bench.output)
                self.look(standing.running)
                overview.update(standing)
                self.workers = [other for worker in self.workers for other in self.after(worker)]
        finally:
            self.stop()
        overview.update(standing_of(self.job.bench.output))
        return len(self.failed())

    def after(self, worker: Worker) -> list[Worker]:
        """The worker as long as it lives; another one in its place where it was killed."""
        code = worker.process.poll()
        if code is None:
            return [worker]
        if code == MISUSE:
            raise UsageError(worker.last_words().rpartition("\n")[2].removeprefix("promptbench: error: "))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code == 0:
            return []
        unfinished = self.unfinished()
        if not unfinished:
            return []
        self.look(holders(self.job.bench.output / CLAIMS))  # its own is there unless another has taken it over
        name = self.at.pop(worker.process.pid, "")
        name = name if name in unfinished else ""
        self.deaths[name] += 1
        if self.deaths[name] >= (DEATHS if name else UNEXPLAINED):
            self.bury(name, code, worker.last_words())
        return [self.start()]

    def look(self, claims: Iterable[Holder]) -> None:
        """Remember which process of this machine is at which run."""
        for holder in claims:
            if holder.host == socket.gethostname() and holder.about.get("kind") == "run":
                self.at[holder.pid] = holder.about["run"]

    def bury(self, name: str, code: int, words: str) -> None:
        """Record that a run ends its process."""
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        if not name:
            raise UsageError(f"Worker processes end with {how} before they do anything: {words.rpartition(chr(10))[2]}")
        run, output = self.runs[name], self.job.bench.output
        reason = f"the process at this run ended with {how}, {DEATHS} times; it may be short of memory, see --jobs"
        with Claims(output / CLAIMS) as claims:
            if claims.take(run.spec.digest, {"kind": "failure"}) is not None:
                where = place_of(run, RuntimeError())
                write_failure(output, run.spec, reason=reason, traceback=words, where=where)

    def unfinished(self) -> list[str]:
        """The runs with neither a result nor a failure of this call."""
        failed = self.failed()
        return [
            name for name, run in self.runs.items() if name not in failed and not self.job.bench.is_finished(run.spec)
        ]

    def failed(self) -> list[str]:
        """The runs that failed in this call."""
        bench, known = self.job.bench, self.job.known
        now = failures_on_record(bench.output, self.runs.values())
        return [
            name
            for name, when in now.items()
            if known.get(name) != when and not bench.is_finished(self.runs[name].spec)
        ]

    def start(self) -> Worker:
        """One more worker."""
        environment = dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[self.started % len(self.gpus)]
        self.started += 1
        said = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended
        process = subprocess.Popen(
            [sys.executable, "-c", "from promptbench.sweep import work; work()"],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it through the parent alone
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead already, which `after` sees
            process.stdin.write(pickle.dumps(self.job))
            process.stdin.flush()
        return Worker(process, said)

    def stop(self) -> None:
        """End the workers, as Ctrl-C would."""
        for worker in self.workers:
            assert worker.process.stdin is not None
            with contextlib.suppress(OSError):
                worker.process.stdin.close()
        for worker in self.workers:
            try:
                worker.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


class Silent:
    """A listener that says nothing: the parent sees the files."""

    def started(self, run: Run) -> None: ...

    def step(self, done: int, total: int, loss: float) -> None: ...

    def finished(self, run: Run, result: Any) -> None: ...

    def failed(self, run: Run, reason: str) -> None: ...

    def elsewhere(self, run: Run) -> None: ...


def work() -> None:
    """A worker process: its job comes on stdin, which stays open as long as the parent lives."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="promptbench: %(message)s", stream=sys.stderr)
    try:
        job: Job = pickle.load(sys.stdin.buffer)  # from the parent's memory, never from a file
        threading.Thread(target=_follow_parent, daemon=True).start()
        for path in job.plugins:
            registry.add_file(path)
        planned = {run.spec.name: run for run in plan_runs(job.request)}
        run_all(job.bench, [planned[name] for name in job.names if name in planned], Silent(), job.known)
    except UsageError as error:
        print(f"promptbench: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(MISUSE)
    except (KeyboardInterrupt, EOFError):
        sys.exit(INTERRUPTED)


def _follow_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):  # not through sys.stdin, whose lock a thread may not hold when Python ends
            pass
    os.kill(os.getpid(), signal.SIGINT)


def neighbours(runs: Sequence[Run]) -> list[Run]:
    """The runs, those that may share a training or features one after another."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        spec = run.spec
        recipe = {key: value for key, value in spec.recipe.items() if key != "origin"}
        what = [spec.dataset, spec.dataset_options, spec.shots, spec.seeds, spec.method, spec.config, recipe]
        groups.setdefault(json.dumps([*what, run.plan.train.classes], sort_keys=True), []).append(run)
    return [run for group in groups.values() for run in group]


def places(jobs: int, device: str, per_gpu: int) -> tuple[int, list[str]]:
    """How many of the runs asked for to do at once, and the GPUs to spread them over; says so where it is fewer."""
    if device == "cuda":
        import torch

        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = [gpu for gpu in gpus if gpu] or [str(index) for index in range(torch.cuda.device_count())]
        if jobs > len(gpus) * per_gpu:
            log.warning("--jobs %d: %d runs on each of %d GPUs; see --runs-per-gpu", jobs, per_gpu, len(gpus))
        return min(jobs, len(gpus) * per_gpu), gpus
    need, free = 1.5 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, free_memory()
    most = max(1, int(free // need))
    if jobs > most:
        log.warning(
            "--jobs %d: a run takes about %.1f GiB and %.1f GiB are free: %d at once",
            jobs,
            need / GIB,
            free / GIB,
            most,
        )
    return min(jobs, most), []


def free_memory() -> float:
    """Bytes that new processes may use; infinite where the system does not say."""
    free = float("inf")
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024.0
    with contextlib.suppress(OSError, ValueError, KeyError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        free = min(free, limit - float(used["anon"]))  # files in memory make room
    return free
