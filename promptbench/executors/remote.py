"""A slot on a node of a Ray cluster, as the call sees it: asked for runs, told what is new of them, ended."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from promptbench.bench import Bench
from promptbench.config import UsageError
from promptbench.executors.returned import Elsewhere
from promptbench.executors.slot import Slot
from promptbench.planning import Run
from promptbench.results import Result
from promptbench.sweep import POLL
from promptbench.work import Work

if TYPE_CHECKING:
    from promptbench.executors.ray import Cluster

log = logging.getLogger(__name__)

FAREWELL = 5.0  # seconds that a slot has to remove its files
PATIENCE = 60.0  # seconds without a node that has room, after which it is said


class Stopped(BaseException):
    """The call ends."""


class Lost(BaseException):
    """The node or process at a run is lost; the run goes back to the others."""


class RemoteSlot:
    """A slot as this machine sees it.

    Args:
        cluster: That it is on.

    Attributes:
        alive: Whether it can do runs: from `ready` on, until it is lost or ended.
    """

    def __init__(self, cluster: Cluster) -> None:
        import ray

        self.cluster, self.alive = cluster, False
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
        self.alive = True
        return True

    def do(self, bench: Bench, run: Run, work: Work) -> Result:
        """Do a run there and write its result here; how `run_all` does it.

        Raises:
            Lost: The slot has ended at the run before.
            Busy: Another process is at the training, or has taken over the run.
            UsageError: The run failed, or lost its node too often.
        """
        if not self.alive:
            raise Lost
        with self.cluster.store.reserved(run, work) as given:
            work_there = self.actor.do.remote(run.spec.name, given)
            news = self.actor.news.remote()
            try:
                while not self.waited(work_there):
                    news = self.told(news, run, work)
            except BaseException:  # it is still at the run, in the folder that the next one would use
                self.close()
                raise
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
            self.alive = False
            self.cluster.lost(name, error)
            log.warning("a node or process of the cluster is lost%s", f"; {name} is done again" if name else "")
            raise Lost from error

    def close(self) -> None:
        """End it, and leave nothing on its node."""
        import ray

        with contextlib.suppress(Exception):
            if self.alive:
                ray.get(self.actor.remove.remote(), timeout=FAREWELL)
        self.alive = False
        with contextlib.suppress(Exception):
            ray.kill(self.actor)
