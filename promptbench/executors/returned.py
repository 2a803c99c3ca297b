"""What comes back from a node, into the output folder: through the writers that a run on this machine uses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from promptbench.cache import write_atomically
from promptbench.config import UsageError
from promptbench.executors.parcel import inside
from promptbench.executors.slot import PARTS
from promptbench.planning import Run
from promptbench.results import Result, failure_path, find, read_result, result_path, write_result
from promptbench.sweep import group_of
from promptbench.work import Busy, Work


class Elsewhere(Exception):
    """The traceback of a run on another machine."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Store:
    """The output folder, as runs on other machines use it.

    Args:
        output: The folder.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.lock = output, threading.Lock()
        self.files: dict[str, set[str]] = {}  # of the training of a group of runs, that came back
        self.before: dict[str, set[str]] = {}  # that were there, by what they say of their run
        for path in (output / "trainings").glob("*.safetensors"):
            self.before.setdefault(_said_in(path), set()).add(f"trainings/{path.name}")
        # notes do not say whose they are; a node takes the one whose name it works out
        self.notes = {f"trainings/{path.name}" for path in (output / "trainings").glob("*.partial")}

    @contextlib.contextmanager
    def reserved(self, run: Run, work: Work) -> Iterator[dict[str, bytes]]:
        """The files of the training of a run; within it, nobody else makes one that is not there.

        Raises:
            Busy: Another run is at the same training.
        """
        group = digest_of(run)
        if run.settings.recipe is None or any(name.endswith(".safetensors") for name in self.files.get(group, ())):
            yield self.given(run)
            return
        claim = work.claims.take(f"training-{group}", {"kind": "training", "run": run.spec.name})
        if claim is None:
            raise Busy(f"training-{group}")
        with claim:
            yield self.given(run)

    def given(self, run: Run) -> dict[str, bytes]:
        """The files that there are of the training of a run, or may be."""
        with self.lock:
            names = self.files.get(digest_of(run), set()) | self.before.get(_decisive(asdict(run.spec)), set())
        if run.settings.recipe is not None:
            names |= self.notes
        found = {}
        for name in names:
            with contextlib.suppress(OSError):
                found[name] = (self.output / name).read_bytes()
        return found

    def note(self, run: Run, files: Mapping[str, bytes]) -> None:
        """Write files of a training, new ones and those that change as it goes."""
        for name, content in files.items():
            path = inside(self.output, name, PARTS)
            if path.suffix == ".partial" or not path.exists():
                _write(path, content)
            with self.lock:
                self.files.setdefault(digest_of(run), set()).add(name)

    def delivered(self, run: Run, files: Mapping[str, bytes]) -> Result:
        """Write what a run has left; its result comes last.

        Raises:
            UsageError: The run failed, or a file is not what it should be.
        """
        for name in files:
            inside(self.output, name, PARTS)
        trainings = {name: content for name, content in files.items() if name.startswith("trainings/")}
        self.note(run, trainings)
        for name in trainings:
            if name.endswith(".safetensors"):
                (self.output / name).with_suffix(".partial").unlink(missing_ok=True)
        for name, content in files.items():
            if not name.startswith(("trainings/", "results/")):
                _write(self.output / name, content)
        result = _read(run, files)
        write_result(self.output, result)
        return result


def digest_of(run: Run) -> str:
    """Equal for runs that may share a training."""
    return hashlib.sha256(group_of(run).encode()).hexdigest()[:32]


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _decisive(spec: Mapping[str, Any]) -> str:
    """Equal for the specs of runs whose trainings may be equal."""
    names = ("dataset", "method", "preset", "config", "shots", "data_seed", "train_seed", "backbone", "device")
    return json.dumps([spec.get(name) for name in names], sort_keys=True)


def _said_in(path: Path) -> str:
    """What a stored training says of its run; "" where that cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return _decisive(json.loads(file.metadata()["spec"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _read(run: Run, files: Mapping[str, bytes]) -> Result:
    """The result among files."""
    failed = files.get(failure_path("", run.spec).as_posix())
    with tempfile.TemporaryDirectory() as folder:
        path = result_path(folder, run.spec)
        content = files.get(result_path("", run.spec).as_posix())
        if content is None:
            raise _failure(json.loads(failed)) if failed else UsageError(f"No result of {run.spec.name} came back.")
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        find(folder, run.spec)
        return read_result(path)


def _failure(record: Mapping[str, Any]) -> UsageError:
    """The error that a run failed with, as its record says."""
    error = UsageError(str(record["reason"]))
    error.where = dict(record["where"])  # type: ignore[attr-defined]
    error.__cause__ = Elsewhere(record["traceback"])
    return error
