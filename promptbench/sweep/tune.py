"""Choosing settings without looking at a test image or a new class.

The classes that a protocol trains on are halved once more: the method trains on the first half and is judged, by the
harmonic mean of both, on held-out images of the first half (pseudo-base) and of the second (pseudo-new). Test images
cannot be read while tuning, and under base2new the real new classes are never seen.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, cast

from promptbench.config import UsageError, parse_assignment
from promptbench.data.dataset import Dataset, Item
from promptbench.metrics.classification import harmonic_mean
from promptbench.protocol import Evaluation, Plan
from promptbench.results.result import find, read_result
from promptbench.runs.listener import Listener, listening
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.request import Request
from promptbench.runs.session import Session
from promptbench.sweep.loop import run_all
from promptbench.sweep.preflight import preflight

SEEN = ("train", "val")  # splits that tuning may read
DEFAULT_LR = (1 / 3, 1.0, 3.0)  # times the recipe's
DEFAULT_EPOCHS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Trial:
    """One point of the grid: what was set, and the pseudo-base and pseudo-new accuracy, averaged over datasets."""

    settings: Mapping[str, Any]
    base: float
    new: float

    @property
    def h(self) -> float:
        """Harmonic mean of the averages."""
        return harmonic_mean(self.base, self.new)


class WithoutTest:
    """A dataset whose test images cannot be reached."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def items(self, split: str) -> list[Item]:
        """Training or validation items."""
        self._refuse_test(split)
        return self._dataset.items(split)

    def read(self, split: str) -> Sequence[Item]:
        """Training or validation items from disk."""
        self._refuse_test(split)
        return self._dataset.read(split)

    def split_digest(self) -> str:
        """SHA-256, in hex, of the items that may be read."""
        rows = [list(item) for split in SEEN for item in self.items(split)]
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def _refuse_test(self, split: str) -> None:
        if split not in SEEN:
            raise PermissionError(f"tuning may not read the {split} images of '{self._dataset.name}'")


class TuningSession(Session):
    """A session whose datasets have no test images."""

    def dataset(self, name: str) -> Dataset:
        """Training and validation images of a dataset."""
        return cast(Dataset, WithoutTest(super().dataset(name)))


def tune(
    session: TuningSession, request: Request, grid: Mapping[str, Sequence[Any]], listener: Listener
) -> list[Trial]:
    """Every point of the grid, best harmonic mean first.

    Args:
        session: Its output folder keeps the runs, so that an interrupted search goes on.
        request: For one method and one protocol.
        grid: Field of the method's Config or Recipe -> values; empty for multiples of the recipe's lr and epochs.
        listener: Told of every run.

    Raises:
        UsageError: If the request is for several methods or protocols, or a run fails.
    """
    if len(request.methods) != 1 or len(request.protocols) != 1:
        raise UsageError("Tuning takes one method and one protocol at a time.")
    grid = grid or default_grid(plan_runs(request)[0])
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    trials = []
    with listening(listener, (), None, session.output):
        for point in points:
            runs = [pseudo(run) for run in plan_runs(with_settings(request, point))]
            todo = [run for run in runs if find(session.output, run.spec) is None]
            preflight(session, todo)
            if run_all(session, todo, listener):
                raise UsageError(f"A run with {point} failed; its record is in {session.place.named}.")
            trials.append(judge(point, session, runs))
    return sorted(trials, key=lambda trial: -trial.h)


def with_settings(request: Request, point: Mapping[str, Any]) -> Request:
    """The request with these settings of its one method."""
    label = request.labels[0]
    settings = {f"{label}.{name}": value for name, value in point.items()}
    return Request.of(**{**request.asked, "settings": {**(request.asked["settings"] or {}), **settings}})


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`["lr=0.1,0.2", "depth=1,3"]` as values by field.

    Raises:
        UsageError: On a text that is no `FIELD=V,V`.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.isidentifier() or not all(values.split(",")):
            raise UsageError(f"--grid {text}: write field=value,value, for instance lr=0.05,0.1.")
        grid[name] = [parse_assignment(f"{name}={value}")[1] for value in values.split(",")]
    return grid


def default_grid(run: Run) -> dict[str, list[Any]]:
    """Learning rate and epochs around the recipe's."""
    recipe = run.settings.recipe
    if recipe is None:
        raise UsageError(f"'{run.spec.label}' trains nothing; name what to vary with --grid.")
    return {
        "lr": [float(f"{recipe.lr * factor:.2g}") for factor in DEFAULT_LR],
        "epochs": [max(1, round(recipe.epochs * factor)) for factor in DEFAULT_EPOCHS],
    }


def pseudo(run: Run) -> Run:
    """The run on halves of its own training classes, judged on held-out images."""
    train = run.plan.train
    base, new = f"{train.classes}.base", f"{train.classes}.new"
    judged = replace(train, split="held_out")
    evaluations = (
        Evaluation(name="base", selection=replace(judged, classes=base)),
        Evaluation(name="new", selection=replace(judged, classes=new)),
    )
    spec = replace(run.spec, suite=f"{run.spec.suite}.tune")  # never taken for a run of the protocol itself
    return replace(
        run, spec=spec, plan=Plan(dataset=run.plan.dataset, train=replace(train, classes=base), evaluations=evaluations)
    )


def judge(point: Mapping[str, Any], session: Session, runs: Sequence[Run]) -> Trial:
    """The trial's averages: over seeds within a dataset, then over datasets."""
    by_dataset: dict[str, list[Mapping[str, float]]] = {}
    for run in runs:
        path = find(session.output, run.spec)
        assert path is not None  # every run has just succeeded
        by_dataset.setdefault(run.spec.dataset, []).append(read_result(path).metrics)

    def average(metric: str) -> float:
        if any(metric not in metrics for found in by_dataset.values() for metrics in found):
            raise UsageError(f"{runs[0].spec.label} has no {metric} here, so it cannot be tuned by H.")
        return fmean(fmean(metrics[metric] for metrics in found) for found in by_dataset.values())

    return Trial(dict(point), average("base/accuracy"), average("new/accuracy"))
