"""Worker processes on this machine.

The parent counts from files what is done, takes note of a run that kills its process, and ends the workers when it
ends: each reads a pipe that only the parent holds open.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from promptbench.claims import Holder, holders
from promptbench.config import UsageError, unknown
from promptbench.executors.contract import no_address
from promptbench.runner import run_all
from promptbench.standing import CLAIMS, Standing
from promptbench.sweep import POLL, Job, Silent, Sweep, ended_with

log = logging.getLogger(__name__)

MISUSE, INTERRUPTED = 2, 130  # exit codes
GIB = 2**30


def create(address: str, options: Mapping[str, Any]) -> Local:
    """This machine; it has no options."""
    no_address("local", address)
    if options:
        raise UsageError(f"--executor-option: {unknown('option of local', next(iter(options)), ())}")
    return Local()


class Local:
    """Processes of this machine; see `contract.Executor`."""

    def prepare(self) -> None:
        """It is here."""

    def execute(self, sweep: Sweep) -> Iterator[Standing]:
        """Do the runs in worker processes."""
        jobs, gpus = places(sweep.at_once(1), sweep.job.bench.device, sweep.per_gpu, sweep.job.request.devices)
        workers = Workers(sweep, gpus)
        try:
            workers.start(jobs)
            while workers.alive:
                time.sleep(POLL)
                standing = sweep.standing()
                workers.look(standing.running)
                yield standing
                workers.alive = [other for worker in workers.alive for other in workers.after(worker)]
                if not standing.running and sweep.settled(standing):
                    workers.dismiss()  # such as one that is still starting
        finally:
            workers.stop()


class Worker(NamedTuple):
    """A worker process, and the file with what it says."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def last_words(self) -> str:
        """The end of what it said."""
        self.said.seek(0)
        return self.said.read().decode(errors="replace")[-4000:].strip()


class Workers:
    """The worker processes of a sweep.

    Args:
        sweep: What they do.
        gpus: The devices to spread them over; none on a CPU.
    """

    def __init__(self, sweep: Sweep, gpus: Sequence[str] = ()) -> None:
        self.sweep, self.gpus = sweep, gpus
        self.alive: list[Worker] = []
        self.started = 0
        self.at: dict[int, str] = {}  # process id to the run it was last seen at

    def after(self, worker: Worker) -> list[Worker]:
        """The worker as long as it lives; another one in its place where it was killed and there is work for it."""
        code = worker.process.poll()
        if code is None:
            return [worker]
        if code == MISUSE:
            raise UsageError(worker.last_words().rpartition("\n")[2].removeprefix("promptbench: error: "))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code == 0:
            return []
        unfinished = self.sweep.unfinished()
        if not unfinished:
            return []
        self.look(holders(self.sweep.output / CLAIMS))  # its own is there unless another has taken it over
        name = self.at.pop(worker.process.pid, "")
        self.sweep.died(name if name in unfinished else "", ended_with(code), worker.last_words())
        others = any(other.process.poll() is None for other in self.alive)
        taken = {holder.about["run"] for holder in self.sweep.standing().running}
        left = self.sweep.unfinished()
        return [] if not left or (others and taken.issuperset(left)) else [self.one_more()]

    def look(self, claims: Iterable[Holder]) -> None:
        """Remember which process of this machine is at which run."""
        for holder in claims:
            if holder.host == socket.gethostname() and holder.about.get("kind") == "run":
                self.at[holder.pid] = holder.about["run"]

    def start(self, jobs: int) -> None:
        """So many workers."""
        for _ in range(jobs):
            self.alive.append(self.one_more())

    def one_more(self) -> Worker:
        """A worker."""
        environment = dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[self.started % len(self.gpus)]
        self.started += 1
        said = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended
        process = subprocess.Popen(
            [sys.executable, "-c", "from promptbench.executors.local import work; work()"],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it through the parent alone
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead already, which `after` sees
            process.stdin.write(pickle.dumps(self.sweep.job))
            process.stdin.flush()
        return Worker(process, said)

    def dismiss(self) -> None:
        """End the workers, which are at nothing."""
        for worker in self.alive:
            worker.process.kill()
            worker.process.wait()
        self.alive = []

    def stop(self) -> None:
        """End the workers, as Ctrl-C would."""
        for worker in self.alive:
            assert worker.process.stdin is not None
            with contextlib.suppress(OSError):
                worker.process.stdin.close()
        for worker in self.alive:
            try:
                worker.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def work() -> None:
    """A worker process: its job comes on stdin, which stays open as long as the parent lives."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="promptbench: %(message)s", stream=sys.stderr)
    try:
        job: Job = pickle.load(sys.stdin.buffer)  # from the parent's memory, never from a file
        threading.Thread(target=_follow_parent, daemon=True).start()
        run_all(job.bench, job.runs(), Silent(), job.known)
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


def places(jobs: int, device: str, per_gpu: int, devices: int = 1) -> tuple[int, list[str]]:
    """How many of the runs asked for to do at once, and the GPUs to spread them over; says so where it is fewer.

    Args:
        jobs: Runs asked for.
        device: `cpu`, `cuda` or `cuda:N`.
        per_gpu: Most runs on a GPU, or on those that share a training.
        devices: How many share a training.
    """
    if device.startswith("cuda:"):  # that one
        return min(jobs, per_gpu), []
    if device == "cuda":
        import torch

        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = [gpu for gpu in gpus if gpu] or [str(index) for index in range(torch.cuda.device_count())]
        gpus = [",".join(gpus[start : start + devices]) for start in range(0, len(gpus) - devices + 1, devices)]
        if jobs > len(gpus) * per_gpu:
            log.warning("--jobs %d: %d runs on each of %d GPUs; see --runs-per-gpu", jobs, per_gpu, len(gpus))
        return min(jobs, len(gpus) * per_gpu), gpus
    need, free = 1.5 * devices * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, free_memory()
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
