"""Worker processes on this machine.

The parent counts from files what is done, takes note of a run that kills its process, and ends the workers when it
ends: each reads a pipe that only the parent holds open.

On a CPU, workers are forked from a process that has imported what runs need, and has done nothing else: importing takes
longer than many a run. With a GPU each is a fresh process, for some library might have touched the GPU.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, NamedTuple

from promptbench.config import UsageError, unknown
from promptbench.runs.listener import Silent, Standing
from promptbench.storage.claims import CLAIMS, Holder, holders
from promptbench.sweep.executors.contract import no_address
from promptbench.sweep.loop import POLL, Job, Sweep, ended_with, room_here, run_all
from promptbench.training.numerics import peak_memory

log = logging.getLogger(__name__)

MISUSE, INTERRUPTED, ORPHANED = 2, 130, 255  # exit codes; the last of a worker that nobody can wait for
IMPORTED = [
    "promptbench.sweep.executors.local",
    "promptbench.runs.run",
    "promptbench.training.fit",
    "promptbench.clip.load",
    "open_clip",
]  # before forks
FORKS = sys.platform == "linux"  # elsewhere libraries may not survive a fork
GIB = 2**30


def create(address: str, options: Mapping[str, Any]) -> Local:
    """This machine; it has no options."""
    no_address("local", address)
    if options:
        raise UsageError(f"--executor-option: {unknown('option of local', next(iter(options)), ())}")
    return Local()


class Local:
    """Processes of this machine; see `loop.Executor`."""

    def prepare(self, device: str) -> None:
        """Start the process that workers are forked from, which imports what they need meanwhile."""
        if FORKS and device == "cpu":
            with unseen_main(), undisturbed():
                multiprocessing.set_forkserver_preload(IMPORTED)
                forkserver.ensure_running()

    def execute(self, sweep: Sweep) -> Iterator[Standing]:
        """Do the runs of a sweep in worker processes, and say how they stand meanwhile."""
        device = sweep.job.place.device
        jobs = sweep.at_once(room_here(list(sweep.runs.values()), device))
        jobs, gpus = places(jobs, device, sweep.per_gpu, asked=sweep.jobs is not None)
        workers = Workers(sweep, gpus)
        try:
            workers.start(jobs)
            while workers.alive:
                time.sleep(POLL)
                standing = sweep.standing()
                workers.look(standing.running)
                workers.pass_on()
                yield standing
                workers.alive = list(chain.from_iterable(map(workers.after, workers.alive)))
                if not standing.running and sweep.settled(standing):
                    workers.dismiss()  # such as one that is still starting
        finally:
            workers.stop()
            workers.pass_on()


class Worker(NamedTuple):
    """A worker process, the pipe that it lives by, and the file with what it says."""

    process: BaseProcess
    lifeline: Connection
    said: IO[bytes]

    def last_words(self) -> str:
        """The end of what the worker process printed."""
        self.said.seek(0)
        return self.said.read().decode(errors="replace")[-4000:].strip()


class Workers:
    """The worker processes of a sweep.

    Args:
        sweep: What they do.
        gpus: The GPUs to spread them over; none on a CPU.
    """

    def __init__(self, sweep: Sweep, gpus: Sequence[str] = ()) -> None:
        self.sweep, self.gpus = sweep, gpus
        self.alive: list[Worker] = []
        self.started = 0
        self.at: dict[int, str] = {}  # process id to the run it was last seen at
        self.told: dict[IO[bytes], int] = {}  # file with what a worker said to how much of it was passed on

    def after(self, worker: Worker) -> list[Worker]:
        """The worker as long as it lives; another one in its place where it was killed and there is work for it."""
        code = worker.process.exitcode
        if code is None:
            return [worker]
        if code == ORPHANED:  # what it was forked from is gone; it may be at work
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid or 0, signal.SIGKILL)
        if code == MISUSE:
            raise UsageError(worker.last_words().rpartition("\n")[2].removeprefix("promptbench: error: "))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code == 0:
            return []
        unfinished = self.sweep.unfinished()
        self.look(holders(self.sweep.output / CLAIMS))  # its own is there unless another has taken it over
        name = self.at.pop(worker.process.pid or 0, "")
        if name in unfinished or name in self.sweep.failed():  # as another worker may have found out, in fewer words
            self.sweep.died(name, ended_with(code), worker.last_words())
        elif unfinished:
            self.sweep.died("", ended_with(code), worker.last_words())
        if not unfinished:
            return []
        others = any(other.process.exitcode is None for other in self.alive)
        taken = {holder.about["run"] for holder in self.sweep.standing().running}
        left = self.sweep.unfinished()
        return [] if not left or (others and taken.issuperset(left)) else [self.one_more()]

    def look(self, claims: Iterable[Holder]) -> None:
        """Remember which process of this machine is at which run."""
        for holder in claims:
            if holder.host == socket.gethostname() and holder.about.get("kind") == "run":
                self.at[holder.pid] = holder.about["run"]

    def pass_on(self) -> None:
        """Log what workers said of their runs since the last look, where anybody wants to read as much."""
        if not log.isEnabledFor(logging.INFO):
            return
        for file, told in list(self.told.items()):
            lines, end, _ = os.pread(file.fileno(), 1 << 20, told).rpartition(b"\n")  # leaves the place to write at
            self.told[file] = told + len(lines + end)
            for line in lines.decode(errors="replace").splitlines():
                log.info("%s", line.removeprefix("promptbench: "))

    def start(self, jobs: int) -> None:
        """Start so many worker processes."""
        for _ in range(jobs):
            self.alive.append(self.one_more())

    def one_more(self) -> Worker:
        """Start another worker process, on the next GPU where there are several."""
        environment = dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[self.started % len(self.gpus)]
        self.started += 1
        forks = FORKS and self.sweep.job.place.device == "cpu"
        context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        said = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended
        self.told[said] = 0
        theirs, lifeline = context.Pipe(duplex=False)
        voice = Connection(os.dup(said.fileno()), readable=False)  # as which its descriptor can be handed over
        told = (pickle.dumps(self.sweep.job), theirs, voice, environment, os.getcwd(), log.getEffectiveLevel())
        process = context.Process(target=work, args=told)
        with unseen_main(), undisturbed(), theirs, voice:
            try:
                process.start()
            except (EOFError, OSError):  # somebody killed the process that it was to be forked from
                process = context.Process(target=work, args=told)
                process.start()
        return Worker(process, lifeline, said)

    def dismiss(self) -> None:
        """End the workers at once, where none of them is at a run."""
        for worker in self.alive:
            end(worker)
        self.alive = []

    def stop(self) -> None:
        """End the workers, as Ctrl-C would."""
        for worker in self.alive:
            worker.lifeline.close()
        for worker in self.alive:
            worker.process.join(timeout=20)
            end(worker)


def end(worker: Worker) -> None:
    """End a worker at once, if it still lives."""
    worker.process.kill()
    worker.process.join()


@contextlib.contextmanager
def unseen_main() -> Iterator[None]:
    """Within it, a process that is started does not run the caller's script again, as multiprocessing would."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within it, a process that is started does not hear Ctrl-C, which a terminal sends to all that a call has started.

    Until it can say that it ignores it, which takes as long as it imports, it would end with a traceback.
    """
    resource_tracker.ensure_running()  # whose start, which may be part of another's, lets signals through again
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def work(
    told: bytes,
    lifeline: Connection,
    voice: Connection,
    environment: Mapping[str, str],
    folder: str,
    level: int,
) -> None:
    """Do the runs of a job in a worker process, until they are done or the parent is gone.

    Args:
        told: Its job, pickled in the parent's memory.
        lifeline: Says nothing, and ends with the parent.
        voice: Has the file that takes what the process says.
        environment: The parent's.
        folder: That the parent is in.
        level: What the parent's log lets through.
    """
    gc.freeze()  # what was imported stays, and need not be looked through, nor copied for that
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches it through the parent alone
    for output in (1, 2):
        os.dup2(voice.fileno(), output)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `undisturbed`
    logging.basicConfig(level=logging.WARNING, format="promptbench: %(message)s", stream=sys.stderr, force=True)
    logging.getLogger("promptbench").setLevel(level)
    try:
        threading.Thread(target=_follow_parent, args=(lifeline,), daemon=True).start()
        job: Job = pickle.loads(told)
        run_all(*job.open(), Silent(), job.known)
    except UsageError as error:
        print(f"promptbench: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(MISUSE)
    except (KeyboardInterrupt, EOFError):
        sys.exit(INTERRUPTED)


def _follow_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os.kill(os.getpid(), signal.SIGINT)


def places(jobs: int, device: str, per_gpu: int, asked: bool = True) -> tuple[int, list[str]]:
    """How many runs to do at once, no more than memory has room for, and the GPUs to spread them over.

    Args:
        jobs: Runs at once, at most.
        device: `cpu`, `cuda` or `cuda:N`.
        per_gpu: Most runs on a GPU.
        asked: Whether somebody asked for so many, who is told where it is fewer.
    """
    if device.startswith("cuda:"):  # that one
        return min(jobs, per_gpu), []
    if device == "cuda":
        import torch

        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = [gpu for gpu in gpus if gpu] or [str(index) for index in range(torch.cuda.device_count())]
        if jobs > len(gpus) * per_gpu:
            log.warning("--jobs %d: %d runs on each of %d GPUs; see --runs-per-gpu", jobs, per_gpu, len(gpus))
        return min(jobs, len(gpus) * per_gpu), gpus
    need = 1.5 * peak_memory("cpu")
    free = free_memory()
    most = max(1, int(min(jobs, free / need))) if need else jobs
    if asked and jobs > most:
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
