"""A Ray cluster: `--executor ray` or `--executor ray:ADDRESS`.

Every slot is an actor with the CPUs and the share of a GPU that a run takes. A thread here goes through the runs with
`run_all` for each slot, so that claims are held, results written and failures recorded where the call is, and only the
work is done elsewhere; files travel as bytes. A run whose node is lost goes back to the others, with the last note of
where its training stood.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from promptbench.config import UsageError, build
from promptbench.executors.contract import installed, reach
from promptbench.executors.parcel import Parcel, packed
from promptbench.executors.remote import Lost, RemoteSlot, Stopped
from promptbench.executors.returned import Store
from promptbench.runner import run_all
from promptbench.standing import Standing
from promptbench.sweep import POLL, UNEXPLAINED, Silent, Sweep

LEAVE = 10.0  # seconds that threads have to end


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


class Ray:
    """A cluster; see `contract.Executor`."""

    def __init__(self, address: str, options: Options) -> None:
        self.address, self.options = address, options
        self.ours = False  # whether this call has connected

    def prepare(self, device: str = "") -> None:
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
        self.parcel: Parcel = packed(sweep.job, options.cache, secrets=True)  # it stays in memory
        self.store = Store(sweep.output)
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.errors: list[BaseException] = []
        gpu = sweep.job.bench.device.startswith("cuda")
        threads = max(run.spec.threads for run in sweep.runs.values())
        self.needs = {
            "num_cpus": float(1 if gpu else threads) if options.num_cpus is None else options.num_cpus,
            "num_gpus": 1 / sweep.per_gpu if gpu else 0.0,
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
        bench = replace(sweep.job.bench, loggers=())  # the nodes write logs
        try:
            while True:
                slot = RemoteSlot(self)
                try:
                    if not slot.ready():
                        return
                    run_all(bench, runs, Silent(), sweep.job.known, slot.do)
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
