"""A Ray cluster: `--executor ray` or `--executor ray:ADDRESS`.

Every slot is an actor with the CPUs and the share of a GPU that a run takes. A thread here goes through the runs with
`run_all` for each slot, so that claims are held, results written and failures recorded where the call is, and only the
work is done elsewhere; files travel as bytes. A run whose node is lost goes back to the others, with the last note of
where its training stood.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from promptbench.bench import Bench
from promptbench.config import UsageError, build
from promptbench.execution import Work
from promptbench.executors.contract import installed, reach
from promptbench.executors.parcel import Parcel, packed
from promptbench.executors.returned import Elsewhere, Store
from promptbench.executors.slot import Slot
from promptbench.planning import Run
from promptbench.results import Result
from promptbench.runner import run_all
from promptbench.standing import Standing
from promptbench.sweep import POLL, UNEXPLAINED, Silent, Sweep

log = logging.getLogger(__name__)

LEAVE = 10.0  # seconds that threads have to end
PATIENCE = 60.0  # seconds without a node that has room, after which it is said


@dataclass(frozen=True)
class Options:
    """The options of Ray."""

    num_cpus: float | None = field(default=None, metadata={"source": "of a run; its threads, or 1 beside a GPU"})
    max_retries: int = field(default=3, metadata={"source": "of a run whose node or process is lost"})
    cache: str = field(default="", metadata={"source": "PROMPTBENCH_CACHE on the nodes"})
    data_root: str = field(default="", metadata={"source": "a data root on the nodes"})


def create(address: str, options: Mapping[str, Any]) -> Ray:
    """The cluster at an address; without one, that of RAY_ADDRESS, or of this machine, or a new one on it."""
    installed("ray", "ray")
    return Ray(address, build(Options, options, "--executor-option"))


class Stopped(BaseException):
    """The call ends."""


class Lost(BaseException):
    """The node or process at a run is lost; the run goes back to the others."""


class Ray:
    """A cluster; see `contract.Executor`."""

    def __init__(self, address: str, options: Options) -> None:
        self.address, self.options = address, options
        self.ours = False  # whether this call has connected

    def prepare(self) -> None:
        """Connect."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
        """Do the runs on the nodes."""
        import ray

        self.prepare()
        cluster = Cluster(sweep, self.options)
        threads: list[threading.Thread] = []
        try:
            for _ in range(sweep.at_once(cluster.room())):
                threads.append(threading.Thread(target=cluster.attend, daemon=True))
                threads[-1].start()
            while any(thread.is_alive() for thread in threads) and not cluster.errors:
                time.sleep(POLL)
                yield sweep.standing()
            if cluster.errors:
                raise cluster.errors[0]
        finally:
            cluster.stop.set()
            deadline = time.monotonic() + LEAVE
            for thread in threads:
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if self.ours:
                ray.shutdown()
                self.ours = False


class Cluster:
    """The slots of a sweep.

    Args:
        sweep: What they do.
        options: Of the command line.
    """

    def __init__(self, sweep: Sweep, options: Options) -> None:
        self.sweep, self.options = sweep, options
        self.parcel: Parcel = packed(sweep.job, options.cache)
        self.store = Store(sweep.output)
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.errors: list[BaseException] = []
        gpu, devices = sweep.job.bench.device.startswith("cuda"), sweep.job.request.devices
        threads = max(run.spec.threads for run in sweep.runs.values())
        self.needs = {
            "num_cpus": float(1 if gpu else threads) if options.num_cpus is None else options.num_cpus,
            "num_gpus": (devices if devices > 1 else 1 / sweep.per_gpu) if gpu else 0.0,
        }

    def room(self) -> int:
        """How many runs the nodes have room for.

        Raises:
            UsageError: None.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.needs["num_cpus"], "GPU": self.needs["num_gpus"]}
        shares = [
            min(int(node.get(kind, 0.0) / amount + 1e-6) for kind, amount in wanted.items() if amount) for node in nodes
        ]
        if not sum(shares):
            asked = " and ".join(f"{amount:g} {kind}" for kind, amount in wanted.items() if amount)
            raise UsageError(
                f"--executor ray: no node of the cluster has the {asked} that a run takes; give fewer --threads, or "
                "--executor-option num_cpus=N."
            )
        return sum(shares)

    def attend(self) -> None:
        """A thread: a slot, and another one where it is lost, until no run is left."""
        sweep = self.sweep
        runs = list(sweep.runs.values())
        try:
            while True:
                slot = RemoteSlot(self)
                try:
                    if not slot.ready():
                        return
                    run_all(sweep.job.bench, runs, Silent(), sweep.job.known, slot.do)
                    return
                except Lost:
                    continue
                finally:
                    slot.close()
        except Stopped:
            return
        except BaseException as error:  # is raised in the call's own thread
            self.errors.append(error)
            self.stop.set()

    def lost(self, name: str, error: Exception) -> None:
        """Take note of the loss of a node or process at a run; "" for none.

        Raises:
            UsageError: That was once too often.
        """
        said = " ".join(str(error).split()).rstrip(".")
        with self.lock:
            self.sweep.deaths[name] += 1
            times = self.sweep.deaths[name]
        if name and times > self.options.max_retries:
            raise UsageError(f"the node or process at this run was lost, {times} times ({said})") from error
        if not name and times >= UNEXPLAINED:
            raise UsageError(f"Nodes of the cluster are lost before they do anything ({said}).") from error


class RemoteSlot:
    """A slot as this machine sees it.

    Args:
        cluster: That it is on.
    """

    def __init__(self, cluster: Cluster) -> None:
        import ray

        self.cluster = cluster
        roots = (cluster.options.data_root,) if cluster.options.data_root else ()
        actor: Any = ray.remote(Slot)
        options = {"max_concurrency": 2, "max_restarts": 0, **cluster.needs}  # one answers while one works
        self.actor = actor.options(**options).remote(cluster.parcel, roots)

    def ready(self) -> bool:
        """Wait until a node has room for it; False if no run is left before.

        Raises:
            UsageError: The node has other versions of what can change a number.
        """
        from promptbench.provenance import library_versions

        began, said = time.monotonic(), False
        answer = self.actor.versions.remote()
        while not self.waited(answer):
            if not self.cluster.sweep.unfinished():
                return False
            if not said and time.monotonic() - began > PATIENCE:
                log.warning("no node has had room for another run for %.0f s; waiting", PATIENCE)
                said = True
        found, here = self.answer(answer), library_versions()
        other = [f"{name} {found.get(name) or 'missing'}" for name in here if found.get(name) != here[name]]
        if other:
            raise UsageError(f"A node of the cluster has {', '.join(other)}, and this machine not; install the same.")
        return True

    def do(self, bench: Bench, run: Run, work: Work) -> Result:
        """Do a run there and write its result here; how `run_all` does it."""
        with self.cluster.store.reserved(run, work) as given:
            work_there = self.actor.do.remote(run.spec.name, given)
            news = self.actor.news.remote()
            while not self.waited(work_there):
                news = self.told(news, run, work)
            return self.cluster.store.delivered(run, self.answer(work_there, run.spec.name))

    def told(self, news: Any, run: Run, work: Work) -> Any:
        """Take in what is new, if it is there; returns the next question."""
        import ray

        if not ray.wait([news], timeout=0)[0]:
            return news
        found = self.answer(news, run.spec.name)
        if found.total:
            work.step(found.done, found.total, float("nan"))
        self.cluster.store.note(run, found.partial)
        return self.actor.news.remote()

    def waited(self, answer: Any) -> bool:
        """Wait a moment for an answer; whether it is there."""
        import ray

        if self.cluster.stop.is_set():
            raise Stopped
        return bool(ray.wait([answer], timeout=POLL)[0])

    def answer(self, answer: Any, name: str = "") -> Any:
        """An answer that is there.

        Args:
            answer: Of the actor.
            name: The run that it is about.

        Raises:
            Lost: The node or process is gone, and the run may be tried again.
            UsageError: It may not.
        """
        import ray

        try:
            return ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from Elsewhere(error.traceback_str)
        except ray.exceptions.RayError as error:
            self.cluster.lost(name, error)
            log.warning("a node or process of the cluster is lost%s", f"; {name} is done again" if name else "")
            raise Lost from error

    def close(self) -> None:
        """End it."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(self.actor)
