"""A Ray cluster: `--executor ray` or `--executor ray:ADDRESS`.

A run is a Ray task that takes the CPUs and the share of a GPU that it needs; Ray finds a node for it, and another one
where that is lost. Threads here go through the runs with `run_all`, one for each run that the cluster has room for, so
that claims are held, results written and failures recorded where the call is. Nodes need not see the output folder.

Carried to them through Ray's object store: the request with plugins and environment, and stored trainings that may be
those of the run. Carried back once it is done: result, training, predictions and logs. Not carried: where a training
stands, so that a run that is tried again begins anew and `status` shows no epoch; data and packages, which nodes have.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError, build
from promptbench.results.result import Result, failure_path, read_result, result_path, write_result
from promptbench.runs.listener import Busy, Standing, Work
from promptbench.storage.atomic import write_atomically
from promptbench.sweep.executors.contract import Parcel, inside, installed, packed, reach

if TYPE_CHECKING:  # nodes set their environment before torch is imported
    from promptbench.runs.plan import Run
    from promptbench.runs.session import Session
    from promptbench.sweep.loop import Sweep

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between looks at the tasks
FAREWELL, LEAVE = 5.0, 10.0  # seconds that a task has to remove its files, and threads have to end
PARTS = ("trainings", "predictions", "logs")  # of an output folder: what travels as files


@dataclass(frozen=True)
class Options:
    """The options of Ray."""

    num_cpus: float | None = field(default=None, metadata={"source": "of a run; its threads, or 1 beside a GPU"})
    max_retries: int = field(default=3, metadata={"source": "of a run whose node or process is lost"})
    cache: str = field(default="", metadata={"source": "PROMPTBENCH_CACHE on the nodes"})
    data_root: str = field(default="", metadata={"source": "a data root on the nodes"})

    def __post_init__(self) -> None:
        if self.num_cpus is not None and not self.num_cpus > 0:
            raise UsageError(f"'num_cpus' must be more than 0, not {self.num_cpus:g}.")
        if self.max_retries < 0:
            raise UsageError(f"'max_retries' must be at least 0, not {self.max_retries}.")


def create(address: str, options: Mapping[str, Any]) -> Ray:
    """The cluster at an address; without one, that of RAY_ADDRESS, or of this machine, or a new one on it."""
    installed("ray", "ray")
    return Ray(address, build(Options, options, "--executor-option"))


@dataclass
class Ray:
    """A cluster; see `loop.Executor`."""

    address: str
    options: Options
    ours: bool = False  # whether this call has connected

    def prepare(self, device: str = "") -> None:
        """Connect to the cluster, unless this process is connected already."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_task_oom_retries", str(self.options.max_retries))  # without end by default
        import ray

        if ray.is_initialized():
            return
        reach(self.address)
        try:
            ray.init(self.address or None, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # many kinds, from refused connections to other versions
            said = " ".join(str(error).split()).rstrip(".")
            raise UsageError(f"--executor ray:{self.address}: no cluster there can be used ({said}).") from error
        self.ours = True

    def execute(self, sweep: Sweep) -> Iterator[Standing]:
        """Do the runs of a sweep on the nodes of the cluster, and say how they stand meanwhile."""
        self.prepare()
        import ray

        tasks = Tasks(sweep, self.options, not self.ours)
        threads: list[threading.Thread] = []
        try:
            room = tasks.room()
            if not room:
                asked = " and ".join(f"{amount:g} {kind}" for kind, amount in tasks.needs.items())
                raise UsageError(
                    f"--executor ray: no node of the cluster has the {asked} that a run takes; give fewer --threads, "
                    "or --executor-option num_cpus=N."
                )
            for _ in range(sweep.at_once(room)):
                threads.append(threading.Thread(target=tasks.attend, daemon=True))
                threads[-1].start()
            while any(thread.is_alive() for thread in threads) and not tasks.errors:
                time.sleep(POLL)
                before, room = room, tasks.room()
                if room < before:
                    log.warning("a node is lost, and its run is done again; there is room for %d runs at once", room)
                yield sweep.standing()
            if tasks.errors:
                raise tasks.errors[0]
        finally:
            tasks.stop.set()
            deadline = time.monotonic() + LEAVE
            for thread in threads:
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if self.ours:
                ray.shutdown()
                self.ours = False


class Tasks:
    """The runs of a sweep as Ray tasks, in processes that serve this call alone."""

    def __init__(self, sweep: Sweep, options: Options, others: bool) -> None:
        import ray

        self.sweep = sweep
        self.tries = options.max_retries + 1
        self.stop = threading.Event()
        self.errors: list[BaseException] = []  # that the call ends with
        place = sweep.job.place
        root = [Path(options.data_root)] if options.data_root else []
        job = replace(sweep.job, place=replace(place, roots=(*root, *place.roots)))
        self.parcel = packed(job, options.cache, secrets=True)  # it stays in memory
        gpu = place.device.startswith("cuda")
        threads = 1 if gpu else max(run.spec.threads for run in sweep.runs.values())
        self.needs = {"CPU": float(options.num_cpus or threads), **({"GPU": 1 / sweep.per_gpu} if gpu else {})}
        told: dict[str, Any] = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs.get("GPU", 0)}
        if others:
            told["max_calls"] = 1  # which Ray does itself where a run has a GPU
        self.task: Any = ray.remote(max_retries=options.max_retries, **told)(perform)

    def room(self) -> int:
        """How many runs the nodes have room for."""
        import ray

        places = 0
        for node in [node["Resources"] for node in ray.nodes() if node["Alive"]]:
            places += min(int(node.get(kind, 0.0) / amount + 1e-6) for kind, amount in self.needs.items())
        return places

    def attend(self) -> None:
        """What each thread does: hand run after run to the cluster until none is left."""
        from promptbench.runs.session import Session
        from promptbench.sweep.loop import Silent, run_all

        job = self.sweep.job
        session = Session(replace(job.place, loggers=()), job.asked["suite"])  # the nodes write logs
        try:
            run_all(session, self.sweep.runs.values(), Silent(), job.known, self.do)
        except BaseException as error:  # is raised in the call's own thread
            if not isinstance(error, KeyboardInterrupt):
                self.errors.append(error)

    def do(self, session: Session, run: Run, work: Work) -> Result:
        """Do a run on a node and write here what it leaves, its result last; how `run_all` does it.

        Raises:
            Busy: Another process is at an equal training, or has taken over the run.
            UsageError: The run failed, or lost its node too often.
        """
        from promptbench.sweep.loop import group_of
        from promptbench.training.files import stored_for

        group = f"training-{hashlib.sha256(group_of(run).encode()).hexdigest()[:32]}"
        claim = work.claims.take(group, {"kind": "training", "run": run.spec.name})
        if claim is None:
            raise Busy(group)
        with claim:
            stored = stored_for(session.output, run.spec)
            given = {f"trainings/{path.name}": path.read_bytes() for path in stored}
            outcome, files = self.answer(run.spec.name, given, work)
            work.check(claim)
            for path, name in {inside(session.output, name, PARTS): name for name in files}.items():
                if files[name] != given.get(name):
                    write_atomically(path, methodcaller("write", files[name]))
                    path.with_suffix(".partial").unlink(missing_ok=True)
        if isinstance(outcome, Result):
            write_result(session.output, outcome)
            return outcome
        error = UsageError(outcome["reason"])
        error.where = outcome["where"]  # type: ignore[attr-defined]
        raise error from RuntimeError(f"on the node:\n{outcome['traceback']}")

    def answer(self, name: str, given: Mapping[str, bytes], work: Work) -> tuple[Any, dict[str, bytes]]:
        """What `perform` says of a run, on a node that has room; KeyboardInterrupt where the call ends."""
        import ray

        task = self.task.remote(self.parcel, name, given)
        try:
            while not ray.wait([task], timeout=POLL)[0]:
                if self.stop.is_set():
                    raise KeyboardInterrupt
                if work.claim.lost:
                    raise Busy(work.claim.name)
            answered: tuple[Any, dict[str, bytes]] = ray.get(task)
            return answered
        except (KeyboardInterrupt, Busy):
            ray.cancel(task)  # as Ctrl-C would, so that it removes its files
            ray.wait([task], timeout=FAREWELL)
            raise
        except ray.exceptions.RayTaskError as error:  # of the node; a run records its own
            said = f"--executor ray: a node cannot do the runs ({error.cause!r})."
            self.errors.append(error.cause if isinstance(error.cause, UsageError) else UsageError(said))
            raise KeyboardInterrupt from error
        except ray.exceptions.RayError as error:
            said = " ".join(str(error).split()).partition(". ")[0].rstrip(".")  # it may go on for a page
            raise UsageError(f"the node or process at this run was lost, {self.tries} times ({said})") from error


@cache
def opened(parcel: Parcel) -> tuple[Session, dict[str, Run]]:
    """A job and its runs; a process that does several of them keeps backbone and datasets loaded."""
    job = parcel.open()
    session, runs = job.open()
    return session, {run.spec.name: run for run in runs}


def perform(parcel: Parcel, name: str, given: Mapping[str, bytes]) -> tuple[Any, dict[str, bytes]]:
    """Do a run on a node: its result or the record of its failure, and the files that it leaves."""
    parcel.check_versions()
    session, runs = opened(parcel)
    from promptbench.sweep.loop import Silent, run_all

    with tempfile.TemporaryDirectory(prefix="promptbench-ray-") as folder:
        session.place = replace(session.place, output=Path(folder))
        for path, content in given.items():
            write_atomically(session.output / path, methodcaller("write", content))
        run_all(session, [runs[name]], Silent())
        files = {}
        for place in session.output.rglob("*"):
            path = place.relative_to(folder).as_posix()
            if path.startswith(PARTS) and place.is_file() and place.suffix != ".partial":
                files[path] = place.read_bytes()
        failed = failure_path(folder, runs[name].spec)
        if failed.exists():
            return json.loads(failed.read_bytes()), files
        return read_result(result_path(folder, runs[name].spec)), files
