"""What `run --dry-run` says of time and memory: sums over what the planned runs have still to do.

A training that runs share counts once, and so do the features of images that several read; what is on disk counts
nothing. How long a part takes is told from a few steps of the real training loop and of the real evaluation, at full
size where such a step takes no longer than `LONGEST`. Otherwise it is told from the largest size within that limit,
times the ratio of classes x images: an upper bound, for what depends on one of the two, or on neither, grows less.

Memory is the peak of this process, with the steps that it measured, and the features or decoded images that a training
keeps besides. Where no step ran at full size, what the backbone allows text to take is added, and nothing for images.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.data.batches import (
    MEMORY,
    Batches,
    EpochOrder,
    FeatureBatches,
    count_batches,
    pixel_batches,
    training_batches,
)
from promptbench.data.class_names import ClassNames
from promptbench.data.dataset import Dataset, Item
from promptbench.data.features import EVALUATION_BATCH, FEATURE_BATCH, Kept, kept_of, key, path_of, reads_features
from promptbench.data.selection import SelectedImages, open_selection, shown_names
from promptbench.method import Method, instantiate, show_training_images
from promptbench.recipe import Recipe
from promptbench.results.result import find
from promptbench.runs.plan import Run, available_cores
from promptbench.runs.session import Session, as_it_was, identified
from promptbench.runs.train import kept_for_training, kept_in_training, training_path
from promptbench.sweep.loop import reason_of
from promptbench.sweep.status import duration
from promptbench.training.files import training_key
from promptbench.training.fit import fit
from promptbench.training.numerics import hold_to_bits, peak_memory

LONGEST = 0.5  # seconds that a measured step may take
CLASSES, IMAGES = 4, 2  # with which measuring begins
EPOCHS, STEPS = 2, 4  # of a measured training, and of each of its epochs
MANY = 20  # classes at which a method looks at drawn training images, so many of each


@dataclass
class Estimate:
    """What a run takes: seconds of its parts, most bytes of memory, and bytes of features that the cache gets."""

    images: float = 0.0  # to encode those whose features are kept
    training: float = 0.0
    evaluation: float = 0.0
    memory: float = 0.0
    kept: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.images + self.training + self.evaluation


class Size(NamedTuple):
    """Classes and images of a step."""

    classes: int
    images: int

    def times(self, other: Size) -> float:
        """How many times the other one it is."""
        return self.classes / other.classes * self.images / other.images

    def larger(self, seconds: float, full: Size) -> Size:
        """What is affordable after a step of this size that took so long: more images first, then more classes.

        It is this size again where that is not twice as much.
        """
        factor = LONGEST / max(seconds, 1e-9)
        images = min(full.images, max(self.images, int(self.images * factor)))
        factor *= self.images / images
        found = Size(min(full.classes, max(self.classes, int(self.classes * factor))), images)
        return found if found == full or found.times(self) >= 2 else self


def measured(full: Size, seconds: Callable[[Size], tuple[float, ...]]) -> tuple[Size, tuple[float, ...]]:
    """The largest affordable size up to the full one, and the seconds of the parts of its step."""
    size = Size(min(full.classes, CLASSES), min(full.images, IMAGES))
    while True:
        taken = seconds(size)
        larger = size.larger(sum(taken), full)
        if larger == size:
            return size, taken
        size = larger


@dataclass(frozen=True)
class Calibration:
    """Measures the parts of one run; each time with a method of its own, and nothing that it learns is kept."""

    session: Session
    run: Run

    def training(self, train: SelectedImages, recipe: Recipe, features: bool) -> tuple[float, int]:
        """Seconds of a training step, and bytes of memory that no measured one showed.

        Args:
            features: Whether it reads kept features instead of images.
        """
        full = Size(len(train.class_names), min(recipe.batch, len(train.items)))
        steps = min(STEPS, max(1, len(train.items) // recipe.batch))
        size, (step,) = measured(full, lambda size: (self.step(train, recipe, features, size, steps),))
        return step * full.times(size), 0 if size == full else self.session.backbone.memory_budget

    def step(self, train: SelectedImages, recipe: Recipe, features: bool, size: Size, steps: int) -> float:
        """Seconds of one of so many steps of an epoch, with its share of what an epoch takes besides."""
        seed, precision = self.run.spec.train_seed, self.run.spec.precision
        ends: list[float] = []

        def ended(*_: Any) -> None:
            ends.append(time.perf_counter())

        method = self._method(train.class_names.select(range(size.classes)))
        few = replace(recipe, epochs=EPOCHS, steps=0, batch=size.images, train_views=0)
        own = [item for item in train.items if item.label < size.classes]
        items = list(itertools.islice(itertools.cycle(own), steps * size.images))
        batches = few_batches(method, few, train.dataset, items, features, seed)
        fit(method, few, batches, steps, seed=seed, precision=precision, device=self.session.device, progress=ended)
        return (ends[-1] - ends[steps - 1]) / (len(ends) - steps)  # images are decoded in the first epoch

    def scoring(self, chosen: SelectedImages, features: bool, dense: bool) -> tuple[float, float]:
        """Seconds of one class's text and of one image; of an image and class where they are not encoded apart."""
        batch = FEATURE_BATCH if features else EVALUATION_BATCH
        full = Size(len(chosen.class_names), min(batch, len(chosen.items)))
        size, (text, images) = measured(full, lambda size: self._scored(chosen, features, dense, size))
        together = 1 if self.run.method.encodes_images_apart else size.classes
        return text / size.classes, images / size.images / together

    def _scored(self, chosen: SelectedImages, features: bool, dense: bool, size: Size) -> tuple[float, float]:
        """Seconds of the text of some classes, and of a batch of images."""
        method = self._method(chosen.class_names.select(range(size.classes)))
        apart = method.encodes_images_apart

        def text() -> None:
            method.set_classes(method.class_names)
            if apart:
                method.text_features()
            elif features:
                method(drawn_images(method, 1, dense))

        def images() -> None:
            if features:
                method(drawn_images(method, size.images, dense))
            else:
                self._read(chosen, size.images, method.encode_images if apart else method)

        return self._seconds(text), self._seconds(images)

    def encoding(self, chosen: SelectedImages, dense: bool) -> float:
        """Seconds that the frozen tower takes for one image, its decoding included."""
        encode = partial(self.session.backbone.encode_image, local=dense)
        full = Size(1, min(EVALUATION_BATCH, len(chosen.items)))
        size, (seconds,) = measured(full, lambda size: (self._seconds(self._read, chosen, size.images, encode),))
        return seconds / size.images

    def preparing(self, train: SelectedImages) -> float:
        """Seconds of a method's own look at its training images, told from drawn ones; not of encoding them."""
        full = Size(len(train.class_names), len(train.items))
        size = Size(min(full.classes, MANY), min(full.images, MANY * MANY))
        names = train.class_names.select(range(size.classes))
        return self._seconds(self._method, names, size.images) * full.times(size)

    def _method(self, names: ClassNames, images: int = 0) -> Method:
        """The method for some classes; where it looks at training images first, it has seen drawn ones."""
        run, seed = self.run, self.run.spec.train_seed
        method = instantiate(run.method, run.settings.config, self.session.backbone, names, seed)
        if run.method.prepares:
            images = images or 2 * len(names)
            drawn = drawn_images(method, images, method.reads_dense)
            labels = torch.arange(images) % len(names)
            show_training_images(method, [(drawn, labels)] * max(1, method.shown_views), seed)
        return method

    def _read(self, chosen: SelectedImages, count: int, look: Callable[[Images], Any]) -> None:
        """Decode the first images of an evaluation and look at them, all at once."""
        backbone = self.session.backbone
        for images, _ in pixel_batches(backbone, chosen.dataset, chosen.items[:count], count):
            look(images.to(backbone.device))

    @torch.no_grad()
    def _seconds(self, what: Callable[..., Any], *given: Any) -> float:
        """Seconds that something takes when it is done again, for the first time warms up."""
        for _ in range(2):
            began = time.perf_counter()
            what(*given)
            if self.session.device.startswith("cuda"):
                torch.cuda.synchronize(self.session.device)
        return time.perf_counter() - began


def few_batches(
    method: Method, recipe: Recipe, dataset: Dataset, items: Sequence[Item], features: bool, seed: int
) -> Batches:
    """Training batches of some images, or of as many drawn features."""
    if not features:
        augment = recipe.augment
        return training_batches(method.backbone, dataset, items, batch=recipe.batch, seed=seed, augment=augment)
    drawn = drawn_features(method, len(items), method.reads_dense)
    return FeatureBatches(drawn, [item.label for item in items], recipe.batch, EpochOrder(len(items), seed))


def drawn_images(method: Method, count: int, dense: bool) -> Images:
    """A batch that shows nothing: features for a frozen image tower, else pixels."""
    if method.frozen_image_tower:
        return Images(features=drawn_features(method, count, dense), dense=dense).to(method.backbone.device)
    side = method.backbone.resolution
    return Images(torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)))


def drawn_features(method: Method, count: int, dense: bool) -> ImageFeatures:
    """Features of no images, on the CPU."""
    backbone, draws = method.backbone, torch.Generator().manual_seed(0)
    P, D = backbone.patches, backbone.embed_dim
    cls = torch.randn(count, D, generator=draws)
    if not dense:
        return ImageFeatures(cls)
    local = torch.randn(count, P, D, generator=draws)
    return ImageFeatures(cls, local, None, torch.randn(count, P, backbone.local_width, generator=draws))


@dataclass
class Forecast:
    """Estimates of the runs of one call, one after the other."""

    session: Session
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
        if spec.name not in self.again and find(self.session.output, spec) is not None:
            return found
        torch.set_num_threads(spec.threads)
        hold_to_bits(spec.deterministic)  # which features are kept by
        train = open_selection(self.session.dataset, run.plan.train, spec.data_seed, nearest=self.session.nearest)
        self.stopped = True
        backbone = self.session.backbone
        self.stopped = False
        calibration = Calibration(self.session, run)
        method = instantiate(run.method, run.settings.config, backbone, train.class_names, spec.train_seed)
        if run.method.prepares:
            if method.frozen_image_tower:
                kept = kept_of(method, method.reads_dense, method.shown_views, spec.train_seed, method.shown_scale)
                self._encode(train, train.items if kept.views else train.pool, kept, calibration, found)
            size = (len(train.class_names), len(train.items))
            found.training += self._once((*_method(run), *size), partial(calibration.preparing, train))
        more = self._train(calibration, method, train, found) if method.trains else 0.0
        self._evaluate(calibration, method, found)
        found.memory = peak_memory(self.session.device) + more
        return found

    def _train(self, calibration: Calibration, method: Method, train: SelectedImages, found: Estimate) -> float:
        """Add a training, unless there is an equal one; returns bytes that it takes beyond what was measured."""
        run = calibration.run
        recipe, spec = run.settings.recipe, run.spec
        assert recipe is not None
        name = training_key(identified(self.session, run).spec, run.method)
        if name in self._counted or training_path(self.session, name).exists():
            return 0.0
        self._counted.add(name)
        reads = kept_for_training(recipe, method, train)
        if reads:
            kept = kept_in_training(recipe, method, train, spec.train_seed)
            items = train.items if recipe.augment else train.pool
            self._encode(train, items, kept, calibration, found)
            waiting = kept.size(self.session.backbone, len(items))
        else:
            image = train.dataset.open(train.items[0])
            waiting = min(MEMORY, 3 * image.width * image.height * len(train.items))
        size = len(train.class_names), min(len(train.items), recipe.batch)
        what = (*_method(run), *size, recipe.augment, reads, spec.precision)
        step, unseen = self._once(what, partial(calibration.training, train, recipe, reads))
        steps = count_batches(len(train.items), recipe.batch, recipe.drop_last)
        found.training += step * recipe.total_steps(steps)
        return float(waiting + unseen)

    def _evaluate(self, calibration: Calibration, method: Method, found: Estimate) -> None:
        """Add the evaluations of a run."""
        run = calibration.run
        own = method.encodes_images_apart  # the classes make no difference to its images
        seen: set[Any] = set()
        for evaluation in run.plan.evaluations:
            selection = evaluation.selection
            chosen = open_selection(self.session.dataset, selection, run.spec.data_seed)
            names, _ = shown_names(self.session.dataset, evaluation.names, chosen)
            if method.refusal(names):
                continue
            dense = run.reads_dense or method.reads_dense
            reads = reads_features(method, len(chosen.pool), dense)
            if reads:
                kept = replace(kept_of(method, dense), corruption=evaluation.corruption)
                self._encode(chosen, chosen.pool, kept, calibration, found)
            what = (*_method(run), selection.dataset if not reads else "", reads, dense)
            text, image = self._once(("scoring", *what), partial(calibration.scoring, chosen, reads, dense))
            of = (selection.dataset, selection.split, evaluation.corruption)
            places = {(*of, item.image) for item in chosen.items}
            new = len(places - seen) if own and not reads and not dense else len(places)
            seen |= places
            found.evaluation += text * len(names) + image * new * (1 if own else len(names))

    def _encode(
        self, chosen: SelectedImages, items: Sequence[Any], kept: Kept, calibration: Calibration, found: Estimate
    ) -> None:
        """Add the encoding of images, unless their features are kept."""
        name = key(self.session.backbone, chosen.dataset, items, kept=kept)
        if name in self._counted or path_of(name).exists():
            return
        self._counted.add(name)
        place = ("encoding", chosen.dataset.name, kept.dense)
        seconds: float = self._once(place, partial(calibration.encoding, chosen, kept.dense))
        found.images += seconds * len(items) * max(1, kept.views)
        found.kept += kept.size(self.session.backbone, len(items))

    def _once(self, what: Any, measure: Callable[[], Any]) -> Any:
        if what not in self._known:
            self._known[what] = measure()
        return self._known[what]


def _method(run: Run) -> tuple[str, str]:
    return run.spec.label, repr(run.spec.config)


def forecast(
    session: Session, runs: Sequence[Run], again: Collection[str] = (), jobs: int = 1
) -> tuple[list[Estimate | None], str]:
    """An estimate of each run, and a sentence that sums them up; None of runs that cannot be estimated.

    Args:
        again: Names of runs that are done anew, whatever is there.
        jobs: Runs at once.
    """
    began = time.perf_counter()
    ahead = Forecast(session, again=again)
    found: list[Estimate | None] = []
    reasons: dict[tuple[str, str], str] = {}
    for run in runs:
        what = run.spec.dataset, run.spec.label
        estimate = None
        if what not in reasons and not ahead.stopped:
            try:
                with as_it_was():
                    estimate = ahead.of(run)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever a plugin does, the runs are listed
                reasons[what] = reason_of(error)
        found.append(estimate)
    if session.device == "cpu":  # more of them than cores have room for take no less time
        jobs = min(jobs, max(1, available_cores() // max(run.spec.threads for run in runs)))
    return found, summary(found, time.perf_counter() - began, list(reasons.values()), jobs)


def at_once(seconds: Iterable[float], jobs: int) -> float:
    """How long runs take of which so many go at once, each begun by the first that is free."""
    ends = [0.0] * jobs
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def summary(found: Sequence[Estimate | None], spent: float, reasons: Sequence[str], jobs: int = 1) -> str:
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
        whole = duration(at_once([estimate.seconds for estimate in known], jobs))
        way = f"{jobs} at once" if jobs > 1 else "one after the other"
        each = " each" if jobs > 1 else ""
        lines.append(
            f"about {whole}, {way} ({of}); up to {peak:.1f} GiB of memory{each}{cache}; "
            f"told from {duration(spent)} of calibration on this machine"
        )
    if missing:
        lines.append(f"no estimate of {missing} runs: {reasons[0]}")
    return "\n".join(lines)
