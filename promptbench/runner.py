"""Running what was planned: train once, evaluate, write one result per run.

A finished run is never done twice; a failed one is recorded and the rest go on.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
import traceback
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from promptbench.bench import Bench
from promptbench.classnames import ClassNames
from promptbench.config import UsageError
from promptbench.features import image_features
from promptbench.loading import Batches, EpochOrder, FeatureBatches, pixel_batches, training_batches
from promptbench.method import Method, instantiate, show_training_images
from promptbench.metrics import accuracy
from promptbench.planning import Run
from promptbench.provenance import git_commit, library_versions, utc_now
from promptbench.results import Result, find, write_failure, write_result
from promptbench.selection import SelectedImages, open_selection, shown_names
from promptbench.training import TrainingDiverged, TrainingOutcome, fit
from promptbench.trainings import load_training, save_training, training_key
from promptbench.transforms import EVALUATION_TRANSFORM, TRAINING_TRANSFORM

EVALUATION_BATCH = 100  # the field's; accuracy does not depend on it
FEATURE_BATCH = 256  # a method may make text per image and class of it


class Listener(Protocol):
    """Told how the runs go; the command line draws it."""

    def started(self, run: Run) -> None: ...

    def step(self, done: int, total: int, loss: float) -> None: ...

    def finished(self, run: Run, result: Result) -> None: ...

    def failed(self, run: Run, reason: str) -> None: ...


def is_finished(bench: Bench, run: Run) -> bool:
    """Whether the run's result is there."""
    return find(bench.output, run.spec) is not None


def run_all(bench: Bench, runs: Iterable[Run], listener: Listener) -> int:
    """Do every run that is not finished; returns how many failed. Ctrl-C passes through, and loses nothing finished."""
    failures = 0
    for run in runs:
        if is_finished(bench, run):
            continue
        listener.started(run)
        try:
            result = execute(bench, run, listener)
        except Exception as error:  # one failed run must not end a sweep
            failures += 1
            known = isinstance(error, (UsageError, TrainingDiverged))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            write_failure(
                bench.output, run.spec, reason=reason, traceback=traceback.format_exc(), where=place_of(run, error)
            )
            listener.failed(run, reason)
        else:
            listener.finished(run, result)
    return failures


def place_of(run: Run, error: Exception) -> dict[str, Any]:
    """Method, dataset and seeds of a failure; epoch, step and learning rate where they are known."""
    spec = run.spec
    place = {
        "method": spec.label,
        "dataset": spec.dataset,
        "data_seed": spec.data_seed,
        "train_seed": spec.train_seed,
    }
    return {**place, **getattr(error, "where", {})}


def execute(bench: Bench, run: Run, listener: Listener) -> Result:
    """Train, evaluate, write and return the result of one run."""
    spec = run.spec
    torch.set_num_threads(spec.threads)
    train = open_selection(bench.dataset, run.plan.train, spec.data_seed)
    method = instantiate(run.method, run.settings.config, bench.backbone, train.class_names, spec.train_seed)
    facts = {
        "classes": run.plan.train.classes,
        "sample": train.sample_digest(),
        "split": train.dataset.split_digest(),
        "names": names_digest(train.class_names),
        "weights": bench.backbone.weights_hash,
    }
    key = training_key(spec, facts)
    show_training_images(method, still_batches(method, train, EVALUATION_BATCH), spec.train_seed)
    outcome = learn(bench, run, method, train, key, listener) if method.trains else TrainingOutcome([], 0.0, 0.0)
    began = time.perf_counter()
    metrics, notes, names = evaluate_all(bench, run, method, train)
    result = Result(
        spec=spec,
        conditions={
            "title": run.method.title,
            "reconstructed": run.method.reconstructed,
            "weights_hash": facts["weights"],
            "split_digest": facts["split"],
            "sample_digest": facts["sample"],
            "sample_size": len(train.items),
            "class_names": {name: names_digest(shown) for name, shown in names.items()},
            "templates": {name: shown.template for name, shown in names.items()},
            "transform": {"evaluation": EVALUATION_TRANSFORM, "training": training_transform_id(run)},
            "training_key": key if method.trains else "",
            "provenance": run.settings.provenance,
        },
        metrics=run.protocol.summarize(metrics),
        notes=notes,
        cost={
            "learned_parameters": sum(p.numel() for p in method.parameters()),
            "train_seconds": round(outcome.seconds, 3),
            "train_images_per_second": round(outcome.images_per_second, 1),
            "eval_seconds": round(time.perf_counter() - began, 3),
            "peak_memory_mb": peak_memory_mb(bench.device),
        },
        versions=library_versions(),
        commit=git_commit(),
        created=utc_now(),
        losses=outcome.losses,
    )
    write_result(bench.output, result)
    return result


def learn(
    bench: Bench, run: Run, method: Method, train: SelectedImages, key: str, listener: Listener
) -> TrainingOutcome:
    """Load the learned tensors of an equal training, or train and store them."""
    recipe, spec = run.settings.recipe, run.spec
    assert recipe is not None  # a method that trains has a recipe
    path = bench.output / "trainings" / f"{key[:32]}.safetensors"
    stored = load_training(path, method)
    if stored is not None:
        return stored
    batches: Batches
    if method.frozen_image_tower and not recipe.augment:
        order = EpochOrder(len(train.items), spec.train_seed)
        batches = FeatureBatches(chosen_features(method, train), train.labels, recipe.batch, order)
    else:
        batches = training_batches(
            bench.backbone,
            train.dataset,
            train.items,
            batch=recipe.batch,
            seed=spec.train_seed,
            augment=recipe.augment,
        )
    outcome = fit(
        method,
        recipe,
        batches,
        len(batches),
        seed=spec.train_seed,
        precision=spec.precision,
        device=spec.device,
        progress=listener.step,
    )
    save_training(path, method, outcome)
    return outcome


def evaluate_all(
    bench: Bench, run: Run, method: Method, train: SelectedImages
) -> tuple[dict[str, float], dict[str, str], dict[str, ClassNames]]:
    """Metrics, notes on those that cannot be, and the class names shown, by evaluation."""
    metrics, notes, names = {}, {}, {}
    for evaluation in run.plan.evaluations:
        chosen = open_selection(bench.dataset, evaluation.selection, run.spec.data_seed)
        shown = shown_names(bench.dataset, evaluation, chosen, run.spec.data_seed)
        names[evaluation.name] = shown
        metric = f"{evaluation.name}/accuracy"
        if not method.transfers and tuple(shown) != tuple(train.class_names):
            notes[metric] = method.transfers_reason or "this method scores the classes that it was trained on only"
            continue
        method.set_classes(shown)
        logits = predict(method, chosen)
        if not torch.isfinite(logits).all():
            raise FloatingPointError(f"scores of {evaluation.name} images are infinite or NaN")
        metrics[metric] = accuracy(logits, torch.tensor(chosen.labels))
    return metrics, notes, names


@torch.no_grad()
def predict(method: Method, chosen: SelectedImages) -> Tensor:
    """Logits (N, K) of the chosen images, in order, float32, on the CPU."""
    device = method.backbone.device
    batches = still_batches(method, chosen, EVALUATION_BATCH)
    return torch.cat([method(images.to(device)).logits.float().cpu() for images, _ in batches])


def still_batches(method: Method, chosen: SelectedImages, batch: int) -> Batches:
    """The chosen images in order under the evaluation transform: cached features for a frozen tower, else pixels."""
    if method.frozen_image_tower:
        return LazyFeatures(method, chosen)
    return pixel_batches(method.backbone, chosen.dataset, chosen.items, batch=batch)


class LazyFeatures:
    """Batches of cached features that are looked up when somebody asks for them."""

    def __init__(self, method: Method, chosen: SelectedImages) -> None:
        self.method, self.chosen = method, chosen

    @cached_property
    def batches(self) -> FeatureBatches:
        return FeatureBatches(chosen_features(self.method, self.chosen), self.chosen.labels, FEATURE_BATCH)

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def chosen_features(method: Method, chosen: SelectedImages) -> Tensor:
    """Features (N, D) of the chosen images; the whole pool is encoded and cached, so that halves share it."""
    return image_features(method.backbone, chosen.dataset, chosen.pool)[chosen.chosen]


def names_digest(names: ClassNames) -> str:
    """SHA-256 over class names, in order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def training_transform_id(run: Run) -> str:
    """Which transform the training images got; '' where nothing is trained."""
    if run.settings.recipe is None:
        return ""
    return TRAINING_TRANSFORM if run.settings.recipe.augment else EVALUATION_TRANSFORM


def peak_memory_mb(device: str) -> float:
    """Most memory so far, MiB: of this process on a CPU, of torch's allocator on a GPU."""
    if device.startswith("cuda"):
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20, 1)
