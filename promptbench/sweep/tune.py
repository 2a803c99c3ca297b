"""Choosing settings without looking at a test image or a new class.

The classes that a protocol trains on are halved once more: the method trains on the first half and is judged, by the
harmonic mean of both, on held-out images of the first half (pseudo-base) and of the second (pseudo-new). Test images
cannot be read while tuning, and under base2new the real new classes are never seen. A method that scores its training
classes alone is judged by pseudo-base accuracy.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, cast

from promptbench.config import UsageError, overrides, parse_assignment, unknown
from promptbench.data.dataset import Dataset, Item
from promptbench.metrics.classification import harmonic_mean
from promptbench.protocol import Evaluation, Plan
from promptbench.results.result import SPLITS_READ, find, read_result, stored_results
from promptbench.results.spec import Spec
from promptbench.runs.listener import Listener, listening
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.request import ChosenMethod, Request
from promptbench.runs.session import Place, Session, as_it_was
from promptbench.storage.atomic import check_room, write_atomically
from promptbench.suite import Suite
from promptbench.sweep.executors.contract import LOCAL, choose
from promptbench.sweep.loop import (
    Job,
    Sweep,
    announced,
    carry_out,
    failures_on_record,
    look_for_deaths,
    neighbours,
    run_all,
    several,
)
from promptbench.sweep.preflight import preflight, renew

SEEN = ("train", "val")  # splits that tuning may read
SELECTION = "pseudo-new classes"  # how a recipe says that it was chosen so
TUNING = ".tune"  # what the suite of a trial is called more than its own
DEFAULT_LR = (1 / 3, 1.0, 3.0)  # times the recipe's
DEFAULT_LENGTH = (0.5, 1.0, 2.0)

Grid = Mapping[str, Sequence[Any]]  # field of a Config or a Recipe to its values


@dataclass(frozen=True)
class Halves:
    """Accuracy on both halves of the training classes, in percent.

    Attributes:
        base: On those that were trained.
        new: On the others; None of a method that scores the trained ones alone.
    """

    base: float
    new: float | None

    @property
    def score(self) -> float:
        """What settings are judged by: the harmonic mean, or the one accuracy that there is."""
        return self.base if self.new is None else harmonic_mean(self.base, self.new)

    def figures(self) -> dict[str, float]:
        """Both, and their harmonic mean, by name, as far as they are there."""
        found = {"pseudo_base": self.base}
        return found if self.new is None else {**found, "pseudo_new": self.new, "h": self.score}


@dataclass(frozen=True)
class Trial(Halves):
    """One point of the grid: both accuracies, averaged over seeds and then over datasets.

    Attributes:
        settings: What was set.
        datasets: The accuracies on each dataset, averaged over seeds.
    """

    settings: Mapping[str, Any]
    datasets: Mapping[str, Halves]


@dataclass(frozen=True)
class Search:
    """What was tried of a method.

    Attributes:
        label: The method, as it was asked for.
        conditions: What all trials share: the other settings, the data and the machine.
        trials: The best first.
    """

    label: str
    conditions: Mapping[str, Any]
    trials: tuple[Trial, ...]

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        trials = []
        for trial in self.trials:
            of_datasets = {name: halves.figures() for name, halves in trial.datasets.items()}
            trials.append({"settings": dict(trial.settings), **trial.figures(), "datasets": of_datasets})
        return {"label": self.label, **self.conditions, "trials": trials}


@dataclass(frozen=True)
class Point:
    """One point of a grid, and its runs."""

    label: str
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]


class WithoutTest:
    """A dataset whose test images cannot be reached.

    Args:
        dataset: Any.
        read: Where the splits are noted whose images were asked for; None for nowhere.
    """

    def __init__(self, dataset: Dataset, read: set[str] | None = None) -> None:
        self._dataset = dataset
        self._read = set() if read is None else read

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
        self._read.add(split)
        if split not in SEEN:
            raise PermissionError(f"tuning may not read the {split} images of '{self._dataset.name}'")


class TuningSession(Session):
    """A session whose datasets have no test images; results say which splits were asked for, so that others can see."""

    def __init__(self, place: Place, suite: Suite) -> None:
        super().__init__(place, suite)
        self.read: dict[str, set[str]] = {}

    def dataset(self, name: str) -> Dataset:
        """Training and validation images of a dataset."""
        return cast(Dataset, WithoutTest(super().dataset(name), self.read.setdefault(name, set())))

    def conditions(self) -> dict[str, Any]:
        """The splits of each dataset that were asked for until now."""
        return {SPLITS_READ: {name: sorted(splits) for name, splits in self.read.items()}}


@dataclass(frozen=True)
class TuningJob(Job):
    """What a worker that tunes is told; it cannot reach test images either.

    Attributes:
        grid: As `tune` is given it.
    """

    session: ClassVar[type[Session]] = TuningSession

    grid: Grid = field(default_factory=dict)

    def plan(self, request: Request) -> list[Run]:
        """The runs of all points."""
        return runs_of(points_of(request, self.grid))


def tune(
    session: TuningSession,
    request: Request,
    grid: Grid,
    listener: Listener,
    jobs: int | None = None,
    plugins: Iterable[Path] = (),
    keep_outdated: bool = False,
) -> list[Search]:
    """Every point of the grid for each method, which are tuned on their own.

    Args:
        session: Its output folder keeps the runs, so that an interrupted search goes on.
        request: For one protocol.
        grid: Field of a method's Config or Recipe, of all methods or, as `method.field`, of one -> values; where there
            is none for a method, multiples of its recipe's lr and length.
        listener: Told of every run.
        jobs: Runs at once, in processes of their own if several; None for as many as have room.
        plugins: Files with methods, datasets or protocols, which other processes need.
        keep_outdated: Whether finished runs stand whose weights or whose method's code changed since.

    Raises:
        UsageError: If the request is for several protocols, or a run fails.
    """
    if len(request.protocols) != 1:
        raise UsageError("Tuning takes one protocol at a time.")
    points = points_of(request, grid)
    runs = runs_of(points)
    with as_it_was():
        finished = stored_results(session.output, [run.spec for run in runs])
        finished = renew(session, runs, finished, keep=keep_outdated)
    todo = [run for run in runs if run.spec.name not in finished]
    if todo:
        names = [run.spec.name for run in todo]
        job = TuningJob(request.asked, session.place, names=(), known={}, plugins=tuple(plugins), grid=grid)
        with announced(session.output, names), listening(listener, todo, len(runs), session.output):
            do(todo, session, listener, job, jobs)
    return [search_of(label, list(found), session) for label, found in itertools.groupby(points, lambda p: p.label)]


def points_of(request: Request, grid: Grid) -> list[Point]:
    """The points of the grid for each method, with their runs planned; those of a method one after another."""
    points = []
    check_owners(request, grid)
    for chosen in request.methods:
        own = grid_of(chosen, grid) or default_grid(plan_runs(of_method(request, chosen, {}))[0])
        for values in itertools.product(*own.values()):
            settings = dict(zip(own, values, strict=True))
            runs = tuple(map(pseudo, plan_runs(of_method(request, chosen, settings))))
            points.append(Point(chosen.label, settings, runs))
    return points


def check_owners(request: Request, grid: Grid) -> None:
    """Raise a UsageError where the grid names a method that is not tuned."""
    known = {chosen.label for chosen in request.methods} | {chosen.name for chosen in request.methods}
    for path in grid:
        owner = path.rpartition(".")[0]
        if owner and owner not in known:
            raise UsageError(f"--grid {path}: {unknown('method of this call', owner, known)}")


def grid_of(chosen: ChosenMethod, grid: Grid) -> dict[str, Sequence[Any]]:
    """Field to values of one method: what the grid has for all, and what it has for this one."""
    found = {}
    for path, values in grid.items():
        owner, _, name = path.rpartition(".")
        if owner in ("", chosen.name, chosen.label):
            found[name] = values
    return found


def of_method(request: Request, chosen: ChosenMethod, settings: Mapping[str, Any]) -> Request:
    """The request for one of its methods, with these settings besides what it sets."""
    variants = tuple({**own, **settings} for own in chosen.variants)
    return replace(request, methods=(replace(chosen, variants=variants),))


def runs_of(points: Iterable[Point]) -> list[Run]:
    """The runs of points, each once."""
    runs = itertools.chain.from_iterable(point.runs for point in points)
    return list({run.spec.name: run for run in runs}.values())


def do(todo: Sequence[Run], session: TuningSession, listener: Listener, job: TuningJob, jobs: int | None) -> None:
    """Do runs, in this process or so many at once in others.

    Args:
        job: What other processes are told, but for which runs.
        jobs: None for as many as have room.
    """
    engine = choose(LOCAL) if several(todo, session.device, jobs) else None
    if engine is not None:
        engine.prepare(session.device)  # first, for it gets ready meanwhile
    preflight(session, todo)
    look_for_deaths(session.output, todo, again=False)
    if engine is None:
        run_all(session, todo, listener)
        return
    session.close()  # the workers open their own
    names = tuple(run.spec.name for run in neighbours(todo))
    job = replace(job, names=names, known=failures_on_record(session.output, todo))
    carry_out(Sweep(job, todo, jobs), engine, listener)


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`["lr=0.1,0.2", "maple.depth=1,3"]` as values by field, of all methods or of one.

    Raises:
        UsageError: On a text that is no `FIELD=V,V` or `METHOD.FIELD=V,V`.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        field = name.rpartition(".")[2]
        if not equals or name.startswith(".") or not field.isidentifier() or not all(values.split(",")):
            raise UsageError(
                f"--grid {text}: write field=value,value for all methods, for instance lr=0.05,0.1, or "
                "method.field=value,value for one."
            )
        grid[name] = [parse_assignment(f"{field}={value}")[1] for value in values.split(",")]
    return grid


def default_grid(run: Run) -> dict[str, list[Any]]:
    """Learning rate, and epochs or steps, around the recipe's."""
    recipe = run.settings.recipe
    if recipe is None:
        raise UsageError(f"'{run.spec.label}' trains nothing; name what to vary with --grid.")
    length = "steps" if recipe.steps else "epochs"
    return {
        "lr": [float(f"{recipe.lr * factor:.2g}") for factor in DEFAULT_LR],
        length: [max(1, round(getattr(recipe, length) * factor)) for factor in DEFAULT_LENGTH],
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
    spec = replace(run.spec, suite=f"{run.spec.suite}{TUNING}")  # never taken for a run of the protocol itself
    return replace(
        run, spec=spec, plan=Plan(dataset=run.plan.dataset, train=replace(train, classes=base), evaluations=evaluations)
    )


def search_of(label: str, points: Sequence[Point], session: Session) -> Search:
    """What the points of a method came to.

    Raises:
        UsageError: A run has no result, or none by which a method can be tuned.
    """
    trials = [judge(point, session) for point in points]
    specs = [run.spec for run in runs_of(points)]
    conditions = {**conditions_of(specs), **splits_read(specs, session)}
    return Search(label, conditions, tuple(sorted(trials, key=lambda trial: -trial.score)))


def splits_read(specs: Iterable[Spec], session: Session) -> dict[str, Any]:
    """The splits of each dataset that trials asked for; nothing where one of them does not say."""
    read: dict[str, set[str]] = {}
    for result in stored_results(session.output, specs).values():
        said = result.conditions.get(SPLITS_READ)
        if said is None:
            return {}
        for name, splits in said.items():
            read.setdefault(name, set()).update(splits)
    return {SPLITS_READ: {name: sorted(splits) for name, splits in sorted(read.items())}}


def judge(point: Point, session: Session) -> Trial:
    """The trial's averages: over seeds within a dataset, then over datasets."""
    by_dataset: dict[str, list[Mapping[str, float]]] = {}
    for run in point.runs:
        path = find(session.output, run.spec)
        if path is None:
            said = overrides(point.settings) or "the settings as they are"
            raise UsageError(f"A run of {point.label} with {said} failed; its record is in {session.place.named}.")
        by_dataset.setdefault(run.spec.dataset, []).append(read_result(path).metrics)
    for metrics in itertools.chain.from_iterable(by_dataset.values()):
        if "base/accuracy" not in metrics:
            raise UsageError(f"{point.label} has no base/accuracy here, so it cannot be tuned.")
    datasets = {name: halves_of(found) for name, found in by_dataset.items()}
    base = fmean(halves.base for halves in datasets.values())
    new = [halves.new for halves in datasets.values() if halves.new is not None]
    return Trial(base, fmean(new) if new else None, resolved(point), datasets)


def halves_of(found: Sequence[Mapping[str, float]]) -> Halves:
    """The averages of several seeds."""
    base = fmean(metrics["base/accuracy"] for metrics in found)
    new = [metrics["new/accuracy"] for metrics in found if "new/accuracy" in metrics]
    return Halves(base, fmean(new) if new else None)


def resolved(point: Point) -> dict[str, Any]:
    """The settings of a point as their fields hold them: `2e-3`, which YAML reads as text, is a number there."""
    spec = point.runs[0].spec
    return {name: {**spec.recipe, **spec.config}.get(name, value) for name, value in point.settings.items()}


def conditions_of(specs: Sequence[Spec]) -> dict[str, Any]:
    """What the runs of a search share, by name; of the settings those that are the same in all of them."""
    first = specs[0]
    return {
        "suite": first.suite.removesuffix(TUNING),
        "protocol": first.protocol,
        "datasets": {spec.dataset: dict(spec.dataset_options) for spec in specs},
        "seeds": [list(seeds) for seeds in dict.fromkeys(spec.seeds for spec in specs)],
        "config": shared(spec.config for spec in specs),
        "recipe": shared(spec.recipe for spec in specs),
        **({} if first.split == Spec.split else {"split": first.split}),
        **{name: getattr(first, name) for name in ("shots", "sampler", "backbone", "precision", "device", "threads")},
    }


def shared(settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that all of the mappings have."""
    first, *others = settings
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def check_report(path: Path) -> None:
    """Raise a UsageError where a report cannot be written, which nobody wants to learn after hours."""
    with said_plainly(path):
        check_room(path)


def write_report(path: Path, searches: Iterable[Search]) -> None:
    """Write the searches as JSON, in the place of what is there.

    Raises:
        UsageError: That is impossible.
    """
    write_json(path, [search.record() for search in searches])


def write_json(path: Path, report: object) -> None:
    """Write a report, whole or not at all.

    Raises:
        UsageError: That is impossible.
    """
    text = json.dumps(report, indent=1, sort_keys=True) + "\n"
    with said_plainly(path):
        write_atomically(path, lambda file: file.write(text.encode()))


@contextmanager
def said_plainly(path: Path) -> Iterator[None]:
    """Within it, what the system says of a report is said in a sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"The report {path} cannot be written ({error.strerror}); name another file.") from error
