"""What `run --dry-run` says of time and memory: sums over what the planned runs have still to do.

A training that runs share counts once, and so do the features of images that several read; what is on disk counts
nothing. How long each part takes is measured in `calibration`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from promptbench.bench import Bench
from promptbench.calibration import Calibration, Speed
from promptbench.config import UsageError
from promptbench.devices import hold_to_bits, peak_memory
from promptbench.evaluation import kept_of, reads_features
from promptbench.execution import kept_for_training, training_facts, training_path
from promptbench.features import Kept, key, path_of
from promptbench.loading import MEMORY
from promptbench.method import Method, instantiate
from promptbench.metrics.ood import SCORES
from promptbench.planning import Run
from promptbench.results import find
from promptbench.selection import SelectedImages, open_selection, shown_names
from promptbench.standing import duration
from promptbench.trainings import training_key
from promptbench.trial import Clock, Pace


@dataclass
class Estimate:
    """What a run takes.

    Attributes:
        images: Seconds to encode images whose features are kept.
        training: Seconds.
        evaluation: Seconds.
        memory: Most bytes.
        kept: Bytes of features that the cache gets.
    """

    images: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0
    memory: float = 0.0
    kept: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.images + self.training + self.evaluation


@dataclass
class Forecast:
    """Estimates of the runs of one call, one after the other."""

    bench: Bench
    clock: Clock = time.perf_counter
    again: Collection[str] = ()  # runs that are done anew
    stopped: bool = False  # the backbone cannot be loaded
    _known: dict[Any, Any] = field(default_factory=dict)  # what was measured
    _counted: set[str] = field(default_factory=set)  # trainings and features

    def of(self, run: Run) -> Estimate:
        """What a run takes after those that were asked about before.

        Raises:
            UsageError: Its data or its backbone are not there.
        """
        spec = run.spec
        found = Estimate()
        if spec.name not in self.again and find(self.bench.output, spec) is not None:
            return found
        torch.set_num_threads(spec.threads)
        hold_to_bits(spec.deterministic)  # which features are kept by
        train = open_selection(self.bench.dataset, run.plan.train, spec.data_seed)
        self.stopped = True
        calibration = Calibration(self.bench.backbone, self.bench.device, self.clock)
        self.stopped = False
        method = instantiate(run.method, run.settings.config, self.bench.backbone, train.class_names, spec.train_seed)
        if run.method.prepare is not Method.prepare:
            if method.frozen_image_tower:
                self._encode(train, train.pool, kept_of(method, method.reads_dense), calibration, found)
            size = (len(train.class_names), len(train.items))
            found.training += self._once((*_method(run), *size), partial(calibration.preparing, run, train))
        more = 0.0
        if method.trains:
            more = self._train(run, method, train, calibration, found)
        self._evaluate(run, method, calibration, found)
        found.memory = peak_memory(self.bench.device) + more
        return found

    def _train(
        self, run: Run, method: Method, train: SelectedImages, calibration: Calibration, found: Estimate
    ) -> float:
        """Add a training, unless there is an equal one; returns bytes that it takes beyond what was measured."""
        recipe, spec = run.settings.recipe, run.spec
        assert recipe is not None
        name = training_key(spec, training_facts(self.bench, run, train))
        if name in self._counted or training_path(self.bench, name).exists():
            return 0.0
        self._counted.add(name)
        reads = kept_for_training(recipe, method, train)
        waiting = 0.0
        if reads:
            views = min(recipe.train_views, recipe.epochs) if recipe.augment else 0
            kept = kept_of(method, method.reads_dense, views, spec.train_seed)
            items = train.items if recipe.augment else train.pool
            self._encode(train, items, kept, calibration, found)
            waiting += kept.size(self.bench.backbone, len(items))
        else:
            image = train.dataset.open(train.items[0])
            waiting += min(MEMORY, 3 * image.width * image.height * len(train.items))
        what = (*_method(run), recipe.batch, recipe.augment, len(train.class_names), reads, spec.precision)
        pace: Pace = self._once(
            (what, min(len(train.items), recipe.batch)), partial(calibration.training, run, train, reads)
        )
        found.training += pace.training(recipe.epochs, max(1, len(train.items) // recipe.batch))
        return waiting + pace.kept

    def _evaluate(self, run: Run, method: Method, calibration: Calibration, found: Estimate) -> None:
        """Add the evaluations of a run."""
        own = type(method).forward is Method.forward  # the classes make no difference to its images
        seen: set[tuple[str, str, str]] = set()
        wide = any(SCORES[name].needs == "local" for name in run.protocol.scores)
        for evaluation in run.plan.evaluations:
            selection = evaluation.selection
            chosen = open_selection(self.bench.dataset, selection, run.spec.data_seed)
            names, _ = shown_names(self.bench.dataset, evaluation, chosen)
            if not method.transfers and tuple(names) != tuple(method.class_names):
                continue
            dense = wide or method.reads_dense
            reads = reads_features(method, len(chosen.pool), dense)
            if reads:
                self._encode(chosen, chosen.pool, kept_of(method, dense), calibration, found)
            what = (*_method(run), selection.dataset if not reads else "", reads, dense)
            speed: Speed = self._once(("scoring", *what), partial(calibration.scoring, run, chosen, reads, dense))
            places = {(selection.dataset, selection.split, item.image) for item in chosen.items}
            new = len(places - seen) if own and not reads and not dense else len(places)
            seen |= places
            growth = 1.0 if own else len(names) / speed.classes
            found.evaluation += speed.text * len(names) + speed.image * growth * new

    def _encode(
        self, chosen: SelectedImages, items: Sequence[Any], kept: Kept, calibration: Calibration, found: Estimate
    ) -> None:
        """Add the encoding of images, unless their features are kept."""
        name = key(self.bench.backbone, chosen.dataset, items, kept=kept)
        if name in self._counted or path_of(name).exists():
            return
        self._counted.add(name)
        place = ("encoding", chosen.dataset.name, kept.dense)
        seconds: float = self._once(place, partial(calibration.encoding, chosen, kept.dense))
        found.images += seconds * len(items) * max(1, kept.views)
        found.kept += kept.size(self.bench.backbone, len(items))

    def _once(self, what: Any, measure: Callable[[], Any]) -> Any:
        if what not in self._known:
            self._known[what] = measure()
        return self._known[what]


def _method(run: Run) -> tuple[str, str]:
    return run.spec.label, repr(run.spec.config)


def forecast(bench: Bench, runs: Iterable[Run], again: Collection[str] = ()) -> tuple[list[Estimate | None], str]:
    """An estimate of each run, and a sentence that sums them up; None of runs that cannot be estimated.

    Args:
        again: Names of runs that are done anew, whatever is there.
    """
    began = time.perf_counter()
    ahead = Forecast(bench, again=again)
    found: list[Estimate | None] = []
    reasons: dict[tuple[str, str], str] = {}
    for run in runs:
        what = run.spec.dataset, run.spec.label
        estimate = None
        if what not in reasons and not ahead.stopped:
            try:
                estimate = ahead.of(run)
            except Exception as error:  # whatever a plugin does, the runs are listed
                reasons[what] = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        found.append(estimate)
    return found, summary(found, time.perf_counter() - began, list(reasons.values()))


def summary(found: Sequence[Estimate | None], spent: float, reasons: Sequence[str]) -> str:
    """What all of it takes, and why some cannot be told."""
    known = [estimate for estimate in found if estimate is not None]
    missing = len(found) - len(known)
    lines = []
    if known:
        parts = {
            "training": sum(estimate.training for estimate in known),
            "evaluation": sum(estimate.evaluation for estimate in known),
            "encoding images": sum(estimate.images for estimate in known),
        }
        of = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        peak = max(estimate.memory for estimate in known) / 2**30
        kept = sum(estimate.kept for estimate in known) / 10**9
        cache = f", {kept:.1g} GB of the cache" if kept >= 0.05 else ""
        total = duration(sum(parts.values()))
        lines.append(
            f"about {total}, one after the other ({of}); up to {peak:.1f} GiB of memory{cache}; "
            f"told from {duration(spent)} of calibration on this machine"
        )
    if missing:
        lines.append(f"no estimate of {missing} runs: {reasons[0]}")
    return "\n".join(lines)
