"""One run: train or load what was trained, evaluate, write the result."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch

from promptbench.bench import Bench
from promptbench.config import UsageError
from promptbench.data.batches import Batches, EpochOrder, training_batches
from promptbench.data.class_names import ClassNames
from promptbench.data.selection import SelectedImages, open_selection
from promptbench.data.transforms import EVALUATION_TRANSFORM, TRAINING_TRANSFORM
from promptbench.evaluation import (
    EVALUATION_BATCH,
    Evaluated,
    evaluate,
    feature_batches,
    kept_of,
    reads_features,
    still_batches,
)
from promptbench.method import Method, instantiate, show_training_images
from promptbench.planning import Run
from promptbench.recipe import Recipe
from promptbench.registry import method_code
from promptbench.results.predictions import save_predictions
from promptbench.results.result import Result, write_result
from promptbench.storage.versions import git_commit, library_versions, utc_now
from promptbench.training.files import PartialFile, TrainingOutcome, load_training, save_training, training_key
from promptbench.training.fit import fit
from promptbench.training.numerics import hold_to_bits, peak_memory, peak_memory_restarts, restart_peak_memory
from promptbench.work import Busy, Work


def execute(bench: Bench, run: Run, work: Work) -> Result:
    """Train, evaluate, write and return the result of one run."""
    spec = run.spec
    train, method = prepared(bench, run)
    facts = training_facts(bench, run, train)
    key = training_key(spec, facts)
    outcome = TrainingOutcome([], 0.0, 0.0)
    if method.trains:
        outcome = learn(bench, run, method, train, key, work)
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
            "method_code": method_code(spec.method),
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
            **memory_of(bench),
        },
        versions=library_versions(),
        commit=git_commit(),
        created=utc_now(),
        losses=outcome.losses,
    )
    write_result(bench.output, result)
    return result


def memory_of(bench: Bench) -> dict[str, float]:
    """The most memory that a run took since it was `prepared`; nothing where only the process' most is known, which
    may be an earlier run's."""
    if not peak_memory_restarts(bench.device):
        return {}
    return {"peak_memory_mb": round(peak_memory(bench.device) / 2**20, 1)}


def prepared(bench: Bench, run: Run) -> tuple[SelectedImages, Method]:
    """The training images of a run and its method, before any training; its memory is measured from here on."""
    spec = run.spec
    torch.set_num_threads(spec.threads)
    hold_to_bits(spec.deterministic)
    train = open_selection(bench.dataset, run.plan.train, spec.data_seed)
    backbone = bench.backbone
    restart_peak_memory(bench.device)  # what the first run takes to load the backbone is not the run's
    method = instantiate(run.method, run.settings.config, backbone, train.class_names, spec.train_seed)
    show_training_images(method, still_batches(method, train, EVALUATION_BATCH), spec.train_seed)
    return train, method


def training_facts(bench: Bench, run: Run, train: SelectedImages) -> dict[str, str]:
    """What data and weights add to the key of a training."""
    return {
        "classes": run.plan.train.classes,
        "sample": train.sample_digest(),
        "split": train.dataset.split_digest(),
        "names": names_digest(train.class_names),
        "weights": bench.backbone.weights_hash,
        "architecture": bench.backbone.architecture,
    }


def training_path(bench: Bench, key: str) -> Path:
    """Where the learned tensors of a training are kept."""
    return bench.output / "trainings" / f"{key[:32]}.safetensors"


def evaluation_conditions(found: Evaluated, train: SelectedImages) -> dict[str, Any]:
    """Class names, templates and numbers of images by evaluation, and images that were left out as unreadable."""
    skipped = {name: chosen.skipped for name, chosen in {"train": train, **found.images}.items() if chosen.skipped}
    return {
        "class_names": {name: names_digest(shown) for name, shown in found.names.items()},
        "templates": {name: shown.template for name, shown in found.names.items()},
        "images": {name: len(chosen.items) for name, chosen in found.images.items()},
        **({"skipped": skipped} if skipped else {}),
    }


def learn(bench: Bench, run: Run, method: Method, train: SelectedImages, key: str, work: Work) -> TrainingOutcome:
    """Load the learned tensors of an equal training, or train and store them.

    Raises:
        Busy: Another process is at this training.
    """
    spec = run.spec
    path = training_path(bench, key)
    partial = PartialFile(path.with_suffix(".partial"), key)
    stored = load_training(path, method)
    if stored is not None:
        partial.remove()  # killed between the two
        return stored
    if not bench.may_train:
        raise UsageError(
            f"The training of {spec.label} on '{spec.dataset}' is not in {path.parent}, or weights, images or "
            "libraries have changed since; train it again with `promptbench run`."
        )
    claim = work.claims.take(key[:32], {"kind": "training", "run": spec.name})
    if claim is None:
        raise Busy(key[:32])
    with claim:
        stored = load_training(path, method)
        if stored is not None:  # since the first look
            return stored
        outcome = train_method(bench, run, method, train, partial, work)
        save_training(path, method, outcome, spec)
        partial.remove()
    return outcome


def train_method(
    bench: Bench,
    run: Run,
    method: Method,
    train: SelectedImages,
    partial: PartialFile,
    work: Work,
) -> TrainingOutcome:
    """Train a method on the images of a run."""
    recipe, spec = run.settings.recipe, run.spec
    assert recipe is not None  # a method that trains has a recipe
    batches = batches_of(recipe, method, train, spec.train_seed)
    return fit(
        method,
        recipe,
        batches,
        len(batches),
        seed=spec.train_seed,
        precision=spec.precision,
        device=bench.device,
        progress=work.step,
        logger=work.tracker.step if bench.loggers else None,
        partial=partial,
    )


def batches_of(recipe: Recipe, method: Method, train: SelectedImages, seed: int) -> Batches:
    """The training images of a recipe: kept features where the tower is frozen and they are known, else pixels."""
    if kept_for_training(recipe, method, train):
        views = min(recipe.train_views, recipe.epochs) if recipe.augment else 0
        kept = kept_of(method, method.reads_dense, views, seed if views else 0)
        return feature_batches(method, train, kept, recipe.batch, EpochOrder(len(train.items), seed))
    return training_batches(
        method.backbone,
        train.dataset,
        train.items,
        batch=recipe.batch,
        seed=seed,
        augment=recipe.augment,
        views=recipe.train_views,
    )


def kept_for_training(recipe: Recipe, method: Method, train: SelectedImages) -> bool:
    """Whether a method trains on kept features: every epoch sees the same view, or one of a known number."""
    images = len(train.items) * recipe.train_views if recipe.augment else len(train.pool)
    return images > 0 and reads_features(method, images, method.reads_dense)


def names_digest(names: ClassNames) -> str:
    """SHA-256 over class names, in order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def training_transform_id(run: Run) -> str:
    """Which transform the training images got; '' where nothing is trained."""
    if run.settings.recipe is None:
        return ""
    return TRAINING_TRANSFORM if run.settings.recipe.augment else EVALUATION_TRANSFORM
