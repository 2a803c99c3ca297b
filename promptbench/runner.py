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
from typing import Any, Protocol

import torch

from promptbench.bench import Bench
from promptbench.classnames import ClassNames
from promptbench.config import UsageError
from promptbench.evaluation import EVALUATION_BATCH, Evaluated, chosen_features, evaluate, reads_features, still_batches
from promptbench.loading import Batches, EpochOrder, FeatureBatches, training_batches
from promptbench.method import Method, instantiate, show_training_images
from promptbench.planning import Run
from promptbench.predictions import save_predictions
from promptbench.provenance import git_commit, library_versions, utc_now
from promptbench.results import Result, write_failure, write_result
from promptbench.selection import SelectedImages, open_selection
from promptbench.trackers import Tracker, tracked
from promptbench.training import TrainingDiverged, TrainingOutcome, fit
from promptbench.trainings import load_training, save_training, training_key
from promptbench.transforms import EVALUATION_TRANSFORM, TRAINING_TRANSFORM


class Listener(Protocol):
    """Told how the runs go; the command line draws it."""

    def started(self, run: Run) -> None: ...

    def step(self, done: int, total: int, loss: float) -> None: ...

    def finished(self, run: Run, result: Result) -> None: ...

    def failed(self, run: Run, reason: str) -> None: ...


def run_all(bench: Bench, runs: Iterable[Run], listener: Listener) -> int:
    """Do every run that is not finished; returns how many failed. Ctrl-C passes through, and loses nothing finished."""
    failures = 0
    for run in runs:
        if bench.is_finished(run.spec):
            continue
        listener.started(run)
        try:
            with tracked(bench.loggers, bench.output, run.spec) as tracker:
                result = execute(bench, run, listener, tracker)
                tracker.finished(result.metrics)
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


def execute(bench: Bench, run: Run, listener: Listener, tracker: Tracker) -> Result:
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
    outcome = TrainingOutcome([], 0.0, 0.0)
    if method.trains:
        outcome = learn(bench, run, method, train, key, listener, tracker)
    began = time.perf_counter()
    found = evaluate(bench, run, method, train.class_names)
    seconds = time.perf_counter() - began
    metrics, notes = run.protocol.measure(found.outcomes, run.plan)
    if bench.save_predictions:
        save_predictions(bench.output, spec, found)
    result = Result(
        spec=spec,
        conditions={
            "title": run.method.title,
            "reconstructed": run.method.reconstructed,
            "dense_scores": run.method.dense_scores,
            "weights_hash": facts["weights"],
            "split_digest": facts["split"],
            "split_source": train.dataset.split_source,
            "sample_digest": facts["sample"],
            "sample_size": len(train.items),
            "transform": {"evaluation": EVALUATION_TRANSFORM, "training": training_transform_id(run)},
            "training_key": key if method.trains else "",
            "provenance": run.settings.provenance,
            **evaluation_conditions(found, train),
        },
        metrics=metrics,
        notes={**found.notes, **notes},
        diagnostics=found.diagnostics,
        cost={
            "learned_parameters": sum(p.numel() for p in method.parameters()),
            "train_seconds": round(outcome.seconds, 3),
            "train_images_per_second": round(outcome.images_per_second, 1),
            "eval_seconds": round(seconds, 3),
            "peak_memory_mb": peak_memory_mb(bench.device),
        },
        versions=library_versions(),
        commit=git_commit(),
        created=utc_now(),
        losses=outcome.losses,
    )
    write_result(bench.output, result)
    return result


def evaluation_conditions(found: Evaluated, train: SelectedImages) -> dict[str, Any]:
    """Class names, templates and numbers of images by evaluation, and images that were left out as unreadable."""
    skipped = {name: chosen.skipped for name, chosen in {"train": train, **found.images}.items() if chosen.skipped}
    return {
        "class_names": {name: names_digest(shown) for name, shown in found.names.items()},
        "templates": {name: shown.template for name, shown in found.names.items()},
        "images": {name: len(chosen.items) for name, chosen in found.images.items()},
        **({"skipped": skipped} if skipped else {}),
    }


def learn(
    bench: Bench, run: Run, method: Method, train: SelectedImages, key: str, listener: Listener, tracker: Tracker
) -> TrainingOutcome:
    """Load the learned tensors of an equal training, or train and store them."""
    recipe, spec = run.settings.recipe, run.spec
    assert recipe is not None  # a method that trains has a recipe
    path = bench.output / "trainings" / f"{key[:32]}.safetensors"
    stored = load_training(path, method)
    if stored is not None:
        return stored
    if not bench.may_train:
        raise UsageError(
            f"The training of {spec.label} on '{spec.dataset}' is not in {path.parent}, or weights, images or "
            "libraries have changed since; train it again with `promptbench run`."
        )
    batches: Batches
    if not recipe.augment and reads_features(method, len(train.pool), method.reads_dense):
        order = EpochOrder(len(train.items), spec.train_seed)
        features = chosen_features(method, train, method.reads_dense)
        batches = FeatureBatches(features, train.labels, recipe.batch, order)
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
        logger=tracker.step if bench.loggers else None,
    )
    save_training(path, method, outcome, spec)
    return outcome


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
