"""A place on a node where one run after another is done: what a Ray actor holds. Nothing here imports Ray.

A run is done in a folder of the node's own, by the same `run_all` as everywhere, and its files go back as bytes: it
does not matter whether the node sees the output folder.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from promptbench.executors.parcel import Parcel, inside

if TYPE_CHECKING:
    from promptbench.planning import Run
    from promptbench.sweep import Job

PARTS = ("trainings", "predictions", "logs", "results")  # of an output folder; a result comes last


class News(NamedTuple):
    """What is new of a run under way.

    Attributes:
        done: Training steps; 0 where nobody has counted yet.
        total: Of them.
        partial: Where the training stands, file by file, as far as it was not told yet.
    """

    done: int
    total: int
    partial: Mapping[str, bytes]


class Slot:
    """One run after another on a node.

    Args:
        parcel: The job that the runs are of.
        roots: Data roots of the nodes, before those of the job.
    """

    def __init__(self, parcel: Parcel, roots: tuple[str, ...] = ()) -> None:
        self.parcel, self.roots = parcel, roots
        self.output = Path(tempfile.gettempdir(), f"promptbench-slot-{secrets.token_hex(8)}")  # made when it is used
        self.told: dict[Path, int] = {}
        self.job: Job | None = None
        self.runs: dict[str, Run] = {}

    def versions(self) -> dict[str, str]:
        """Of everything that can change a number."""
        from promptbench.provenance import library_versions

        return library_versions()

    def open(self) -> Job:
        """The job, opened once."""
        if self.job is None:
            self.output.mkdir(mode=0o700, exist_ok=True)
            job = self.parcel.open(self.output)
            roots = (*map(Path, self.roots), *job.bench.roots)
            self.runs = {run.spec.name: run for run in job.runs()}
            self.job = replace(job, bench=replace(job.bench, output=self.output, roots=roots))
        return self.job

    def do(self, name: str, given: Mapping[str, bytes]) -> dict[str, bytes]:
        """Do a run; returns the files that it leaves, without those that were given.

        Args:
            name: Of the run.
            given: Files that the output folder has of its training.
        """
        from promptbench.runner import run_all
        from promptbench.sweep import Silent

        job = self.open()
        for part in PARTS:
            shutil.rmtree(self.output / part, ignore_errors=True)
        for path, content in given.items():
            file = inside(self.output, path, PARTS)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            self.told[file] = file.stat().st_mtime_ns  # is no news
        run_all(job.bench, [self.runs[name]], Silent())
        found = {path: content for part in PARTS for path, content in self.files(part)}
        return {path: content for path, content in found.items() if given.get(path) != content}

    def files(self, part: str) -> list[tuple[str, bytes]]:
        """The finished files in a part of the folder, with their content."""
        paths = sorted(path for path in (self.output / part).rglob("*") if path.is_file())
        kept = [path for path in paths if path.suffix != ".tmp"]
        return [(path.relative_to(self.output).as_posix(), path.read_bytes()) for path in kept]

    def news(self) -> News:
        """What is new of the run under way; answers while `do` is at it."""
        from promptbench.claims import holders
        from promptbench.standing import CLAIMS

        partial = {}
        for path in (self.output / "trainings").glob("*.partial"):
            try:
                changed = path.stat().st_mtime_ns
                if self.told.get(path) != changed:
                    partial[path.relative_to(self.output).as_posix()] = path.read_bytes()
                    self.told[path] = changed
            except OSError:  # the training has just ended
                continue
        steps = [holder.progress for holder in holders(self.output / CLAIMS) if holder.about.get("kind") == "run"]
        progress = steps[0] if steps else {}
        return News(int(progress.get("done") or 0), int(progress.get("total") or 0), partial)

    def remove(self) -> None:
        """Remove the folder; nothing can be done here after."""
        shutil.rmtree(self.output, ignore_errors=True)
