"""Slurm, through submitit: `--executor slurm --executor-option partition=gpu time=60 array=8`.

Every task of an array goes through the runs as a lone process would, on the output folder that all nodes see; claims
keep them apart. A task that is preempted, or whose time is over, is queued again and goes on from the last note of
where its training stood. Nodes need no network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptbench.config import UsageError, build
from promptbench.runs.listener import Attempt, Standing
from promptbench.runs.plan import Run
from promptbench.runs.session import Session
from promptbench.storage.claims import CLAIMS, SUFFIX, alone, read
from promptbench.sweep.executors.contract import Parcel, installed, no_address, packed
from promptbench.sweep.loop import Noting, Sweep, run_all

log = logging.getLogger(__name__)

FLAG = "sbatch."  # an option that begins so is a flag of sbatch
FOLDER = "slurm"  # in the output folder: what tasks are told and say
POLL = 2.0  # seconds between looks
LATE = 60.0  # seconds after which a network file system shows what the last task wrote
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
OURS = ("array", "cluster", "cache", "stage", "requeues")  # options that sbatch is not told


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of Slurm; those of sbatch have its names."""

    partition: str = ""
    account: str = ""
    time: int = field(default=60, metadata={"source": "minutes of a task, after which it is queued again"})
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    nodelist: str = ""
    gres: str = ""
    comment: str = ""
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem: str = ""
    job_name: str = "promptbench"
    array: int | None = field(default=None, metadata={"source": "tasks; default: --jobs"})
    requeues: int = field(default=1000, metadata={"source": "of a task whose time was over"})
    cache: str = field(default="", metadata={"source": "PROMPTBENCH_CACHE on the nodes"})
    stage: str = field(default="", metadata={"source": "a folder on each node's own disk for copies of the datasets"})
    cluster: str = field(default="slurm", metadata={"source": "submitit's executor: slurm, or local to try it out"})

    def __post_init__(self) -> None:
        for name in ("array", "time", "requeues"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name!r} must be at least 1, not {value}.")


def create(address: str, options: Mapping[str, Any]) -> Slurm:
    """The cluster whose login node this is."""
    no_address("slurm", address)
    installed("submitit", "slurm")
    flags = {key.removeprefix(FLAG): value for key, value in options.items() if key.startswith(FLAG)}
    known = {key: value for key, value in options.items() if not key.startswith(FLAG)}
    try:
        return Slurm(build(Options, known, "--executor-option"), flags)
    except UsageError as error:
        if known.keys() <= vars(Options()).keys():
            raise
        said = str(error).rstrip(".")
        raise UsageError(f"{said}; any other flag of sbatch is {FLAG}NAME=VALUE.") from error


class Slurm:
    """A Slurm cluster; see `loop.Executor`."""

    def __init__(self, options: Options, flags: Mapping[str, Any]) -> None:
        self.options, self.flags = options, flags

    def prepare(self, device: str = "") -> None:
        """Raise a UsageError where there is no sbatch, as on any machine but a login node."""
        if self.options.cluster == "slurm" and (shutil.which("sbatch") is None or shutil.which("srun") is None):
            raise UsageError("--executor slurm: there is no sbatch and srun here; run this on a cluster's login node.")

    def execute(self, sweep: Sweep) -> Iterator[Standing]:
        """Do the runs of a sweep in the tasks of a Slurm array, and say how they stand meanwhile."""
        self.prepare()
        if sweep.per_gpu > 1:
            raise UsageError("--runs-per-gpu: with --executor slurm, share a GPU through gres and more tasks.")
        tasks = Tasks(sweep, self)
        try:
            tasks.submit(min(self.options.array or sweep.at_once(1), len(sweep.runs)))
            while tasks.open:
                time.sleep(POLL)
                yield sweep.standing()
                tasks.look()
            deadline = time.monotonic() + LATE
            while sweep.unfinished() and time.monotonic() < deadline:
                time.sleep(POLL)
        finally:
            for job in tasks.open:
                job.cancel(check=False)

    def parameters(self, gpus: int, threads: int, jobs: int | None) -> dict[str, Any]:
        """The options of sbatch for a task, as submitit names them."""
        given = {key: value for key, value in vars(self.options).items() if value not in (None, "")}
        told = {key: value for key, value in given.items() if key not in OURS}
        asked = {"gres", "gpus_per_node"} & set(told) or any(name.startswith("gpus") for name in self.flags)
        if gpus and not asked:
            told["gpus_per_node"] = gpus
        told.setdefault("cpus_per_task", threads)
        told["additional_parameters"] = {"requeue": True, **self.flags}
        if jobs:
            told["array_parallelism"] = jobs
        return told


class Tasks:
    """The tasks that Slurm was given for a sweep.

    Args:
        sweep: What they do.
        slurm: Where.
    """

    def __init__(self, sweep: Sweep, slurm: Slurm) -> None:
        import submitit

        self.sweep = sweep
        options = slurm.options
        self.folder = sweep.output.absolute() / FOLDER
        self.worker = Worker(packed(sweep.job, options.cache), self.folder, options.stage)
        self.open: list[Any] = []
        self.executor: Any
        gpus = int(sweep.job.place.device.startswith("cuda"))
        threads = max(run.spec.threads for run in sweep.runs.values())
        try:
            if options.cluster == "slurm":
                self.executor = submitit.SlurmExecutor(self.folder, max_num_timeout=options.requeues)
                self.executor.update_parameters(**slurm.parameters(gpus, threads, sweep.jobs))
            else:
                self.executor = submitit.AutoExecutor(self.folder, cluster=options.cluster)
                self.executor.update_parameters(timeout_min=options.time)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise UsageError(f"--executor slurm: {' '.join(str(error).split())}.") from error

    def submit(self, number: int) -> None:
        """Submit so many more tasks to Slurm, as one array.

        Raises:
            UsageError: sbatch refuses.
        """
        import submitit

        try:
            if number == 1:
                self.open.append(self.executor.submit(self.worker))
            else:
                with self.executor.batch():
                    jobs = [self.executor.submit(self.worker) for _ in range(number)]
                self.open += jobs
        except submitit.core.utils.FailedJobError as error:
            said = " ".join(str(error).split())[-500:]
            raise UsageError(f"--executor slurm: sbatch refuses: {said}") from error

    def look(self) -> None:
        """Take note of tasks that ended; another one takes the place of one that died while there is work.

        Raises:
            UsageError: A task cannot go on, such as for a full disk.
        """
        ended = [job for job in self.open if job.done()]
        self.open = [job for job in self.open if job not in ended]
        for job in ended:
            error = job.exception()
            said = job.result() if error is None else ""
            if said:
                raise UsageError(said)
            if error is not None and self.sweep.unfinished():
                self.died(job, error)
                if self.sweep.unfinished():
                    self.submit(1)

    def died(self, job: Any, error: Exception) -> None:
        """Take note of a task that died; nobody need wait for the claim it held."""
        name = ""
        note = self.folder / f"{job.job_id}.at"
        if note.exists():
            at = json.loads(note.read_text(encoding="utf-8"))
            name = at["run"]
            path = self.sweep.output / CLAIMS / f"{self.sweep.runs[name].spec.digest}{SUFFIX}"
            holder = read(path)
            if holder is not None and (holder.host, holder.pid) == (at["host"], at["pid"]):
                path.unlink(missing_ok=True)
        words = (job.stderr() or str(error)).strip()[-4000:]
        log.warning("task %s died%s; see %s", job.job_id, f" at {name}" if name else "", self.folder)
        self.sweep.died(name, f"state {job.state}", words)


@dataclass(frozen=True)
class Worker:
    """What a task does: submitit calls it, and again when the task was queued again.

    Attributes:
        parcel: The job.
        folder: Where tasks say what they are at.
        stage: Where to copy datasets to on the node; "" for nowhere.
    """

    parcel: Parcel
    folder: Path
    stage: str

    def __call__(self) -> str:
        """Do the runs of the job on this node; returns "", or why that cannot go on."""
        import submitit

        os.environ.update({name: value for name, value in OFFLINE.items() if name not in os.environ})
        logging.basicConfig(level=logging.WARNING, format="promptbench: %(message)s")
        note = self.folder / f"{submitit.JobEnvironment().job_id}.at"
        before = ""
        with suppress(OSError, ValueError, KeyError):  # of a task that was queued again
            before = json.loads(note.read_text(encoding="utf-8"))["run"]
        note.unlink(missing_ok=True)
        try:
            self.work(note, before)
        except UsageError as error:
            return str(error)
        note.unlink(missing_ok=True)
        return ""

    def work(self, note: Path, before: str = "") -> None:
        """Do the runs of the job that no other task is at, with copies of the datasets where those are asked for.

        Args:
            note: The file that says at which run this is.
            before: The run at which this task was when it was preempted, which is no fault of the run.
        """
        job = self.parcel.open()
        session, runs = job.open()
        for run in runs:
            if run.spec.name == before:
                Attempt(session.output, run.spec).forget()
        if self.stage:
            session = staged(session, runs, Path(os.path.expandvars(self.stage)))
        run_all(session, runs, Noting(note), job.known)

    def checkpoint(self) -> Any:
        """What to do when the task was queued again: the same; the runs go on from their notes."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def staged(session: Session, runs: Iterable[Run], stage: Path) -> Session:
    """The session, with the folders of the runs' datasets that lie below a data root copied below another folder.

    A dataset that cannot be copied is read from where it is.

    Args:
        stage: The folder on the node's own disk.
    """
    names: set[str] = set()
    for run in runs:
        names.add(run.plan.train.dataset)
        names |= {evaluation.selection.dataset for evaluation in run.plan.evaluations}
    roots: list[Path] = []
    for name in sorted(names):
        try:
            folder = session.dataset(name).folder
            root = next((root for root in session.roots if folder.is_relative_to(root) and folder != root), None)
            if root is not None:
                place = stage / contents(folder)
                copy(folder, place / folder.relative_to(root))
                roots.append(place)
        except UsageError:  # it is not there, which the run says, or has no folder
            continue
        except (OSError, AttributeError) as error:
            log.warning("the dataset '%s' cannot be copied to %s (%s); it is read from where it is", name, stage, error)
    return session.at(roots=(*roots, *session.roots))


def contents(folder: Path) -> str:
    """A digest of the names, sizes and dates of the files in a folder: another one where the images were replaced."""
    digest = hashlib.sha256()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = Path(place, name)
            facts = path.stat()
            digest.update(os.fsencode(f"{path.relative_to(folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\0"))
    return digest.hexdigest()[:16]


def copy(folder: Path, place: Path) -> None:
    """Copy a folder with the dates of its files, whole or not at all, unless it is there; others wait."""
    with alone(place.parent / ".claims", place.name):
        if place.exists():
            return
        draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            shutil.copytree(folder, draft)
            os.rename(draft, place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
