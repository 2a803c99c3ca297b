"""The training of a run: its images, its method, and what it learned, loaded or learned now."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial as calling
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from promptbench.clip.image_tower import Images
from promptbench.config import UsageError
from promptbench.data.batches import Batches, EpochOrder, count_batches, training_batches
from promptbench.data.features import (
    EVALUATION_BATCH,
    Kept,
    feature_batches,
    frozen_features,
    kept_of,
    reads_features,
    shown_views,
    still_batches,
)
from promptbench.data.selection import SelectedImages, open_selection, validation_of
from promptbench.data.transforms import EVALUATION_TRANSFORM, training_transform
from promptbench.method import Method, instantiate, show_training_images, show_validation_images
from promptbench.recipe import Recipe
from promptbench.results.spec import SOURCE, fields_of
from promptbench.runs.listener import Busy, Work
from promptbench.training.files import PartialFile, TrainingOutcome, load_training, save_training, spec_of
from promptbench.training.numerics import float32_in_full, hold_to_bits, restart_peak_memory

NO_TRAINING = TrainingOutcome([], 0.0, 0.0)

if TYPE_CHECKING:
    from promptbench.runs.plan import Run
    from promptbench.runs.session import Session

log = logging.getLogger(__name__)


def prepared(session: Session, run: Run) -> tuple[SelectedImages, Method]:
    """The training images of a run and its method, before any training; its memory is measured from here on."""
    spec = run.spec
    torch.set_num_threads(spec.threads)
    hold_to_bits(spec.deterministic)
    float32_in_full()
    train = open_selection(session.dataset, run.plan.train, spec.data_seed, nearest=session.nearest)
    backbone = session.backbone
    restart_peak_memory(session.device)  # what the first run takes to load the backbone is not the run's
    method = instantiate(
        run.method, run.settings.config, backbone, train.class_names, spec.train_seed, condition=spec.condition
    )
    show_training_images(method, shown_batches(method, train, spec.train_seed), spec.train_seed)
    return train, method


def shown_batches(method: Method, train: SelectedImages, seed: int) -> Iterator[tuple[Images, Tensor]]:
    """The training images as `Method.prepare` asks for them."""
    if method.shown_views:
        return shown_views(method, train, method.shown_views, seed, method.shown_scale)
    return still_batches(method, train, EVALUATION_BATCH)


def choose(session: Session, run: Run, method: Method) -> None:
    """Show a method the validation images that it chooses by, if it asks for any."""
    if method.validates:
        chosen = validation_images(session, run, method)
        show_validation_images(method, still_batches(method, chosen, EVALUATION_BATCH))


def validation_images(session: Session, run: Run, method: Method) -> SelectedImages:
    """The validation images that a method asks for."""
    selection = validation_of(run.plan.train, all_images=method.validates == "all")
    return open_selection(session.dataset, selection, run.spec.data_seed)


def training_path(session: Session, key: str) -> Path:
    """Where the learned tensors of a training are kept."""
    return session.output / "trainings" / f"{key[:32]}.safetensors"


def as_it_was_trained(learned: tuple[str, Path], run: Run, key: str) -> tuple[Run, str]:
    """A run as far as it is said what its training was made of, and the key of that.

    Other versions of libraries and other code may have done the training: the run then says which. Other weights,
    images or names are none that it can be evaluated on.

    Args:
        learned: Key and file of the training.
        run: Of today.
        key: Of a training that is done today.

    Raises:
        UsageError: It is of another backbone, or of other images or names.
    """
    stored_key, path = learned
    if stored_key == key:
        return run, key
    before, now = spec_of(path), run.spec
    other_code = [
        item.name for item in fields_of(now, SOURCE) if item.name.endswith("_code") and item.metadata["trains"]
    ]
    for item in fields_of(now):
        old, new = getattr(before, item.name), getattr(now, item.name)
        if item.metadata["trains"] and item.metadata["renews"] and item.name not in other_code and old and old != new:
            raise UsageError(f"{path} was {str(item.metadata['renews']).format(**now.values())}; train it again.")
    log.warning("what %s learned was trained by other versions or code than these, which its results say", now.label)
    said = {name: getattr(before, name) for name in other_code}
    return replace(run, spec=replace(now, **said)), stored_key


def learn(session: Session, run: Run, method: Method, train: SelectedImages, key: str, work: Work) -> TrainingOutcome:
    """Load the learned and kept tensors of an equal training, or train and store them.

    Where nothing may be trained, a method without training chooses anew what it chooses, and nothing is stored.

    Raises:
        Busy: Another process is at this training.
    """
    spec = run.spec
    path = training_path(session, key) if session.place.learned is None else session.place.learned[1]
    partial = PartialFile(path.with_suffix(".partial"), key)
    stored = load_training(path, method)
    if stored is not None:
        log.info("what %s learned is read from %s", spec.label, path)
        partial.remove()  # killed between the two
        return stored
    if not session.may_train and not method.trains:
        choose(session, run, method)
        return NO_TRAINING
    if not session.may_train:
        raise UsageError(
            f"The training of {spec.label} on '{spec.dataset}' is not in {path.parent}, or weights, images or "
            "libraries have changed since; train it again with `promptbench run`."
        )
    claim = work.claims.take(key[:32], {"kind": "training", "run": spec.name})
    if claim is None:
        raise Busy(key[:32])
    with claim:
        outcome = load_training(path, method)  # since the first look
        if outcome is None:
            check = calling(work.check, claim)
            noted = replace(partial, check=check, written=work.got_on)
            outcome = train_method(session, run, method, train, noted, work) if method.trains else NO_TRAINING
            choose(session, run, method)
            check()
            save_training(path, method, outcome, spec, untrained_names(train))
            log.info("what %s learned is written to %s", spec.label, path)
            work.got_on()
        partial.remove()
    return outcome


def untrained_names(train: SelectedImages) -> list[str]:
    """The class names of the dataset that a training does not see, such as those of the new half."""
    trained = set(train.class_names)
    return [name for name in train.dataset.names_shown if name not in trained]


def train_method(
    session: Session,
    run: Run,
    method: Method,
    train: SelectedImages,
    partial: PartialFile,
    work: Work,
) -> TrainingOutcome:
    """Train a method on the images of a run."""
    from promptbench.training.fit import fit  # with Lightning, which runs that train nothing do without

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
        device=session.place.device,
        progress=work.step,
        logger=work.tracker.step if session.place.loggers else None,
        partial=partial,
    )


def batches_of(recipe: Recipe, method: Method, train: SelectedImages, seed: int) -> Batches:
    """The training images of a recipe: kept features where the tower is frozen and they are known, else pixels.

    With the pixels come the kept features of the frozen tower where a method reads those too.
    """
    if kept_for_training(recipe, method, train):
        kept = kept_in_training(recipe, method, train, seed)
        order = EpochOrder(len(train.items), seed)
        return feature_batches(method, train, kept, recipe.batch, order, recipe.drop_last)
    known = None
    if method.reads_frozen and has_fixed_views(recipe):
        known = frozen_features(method.backbone, train, kept_in_training(recipe, method, train, seed))
    return training_batches(
        method.backbone,
        train.dataset,
        train.items,
        batch=recipe.batch,
        seed=seed,
        augment=recipe.augment,
        views=recipe.train_views,
        scale=recipe.crop_scale,
        drop_last=recipe.drop_last,
        known=known,
    )


def has_fixed_views(recipe: Recipe) -> bool:
    """Whether every epoch sees the same view of an image, or one of a known number."""
    return not recipe.augment or recipe.train_views > 0


def kept_in_training(recipe: Recipe, method: Method, train: SelectedImages, seed: int) -> Kept:
    """Which features a training on kept ones reads: of as many views as it comes to see."""
    if not recipe.augment:
        return kept_of(method, method.reads_dense)
    steps = count_batches(len(train.items), recipe.batch, recipe.drop_last)
    views = min(recipe.train_views, recipe.passes(steps))
    return kept_of(method, method.reads_dense, views, seed, recipe.crop_scale)


def kept_for_training(recipe: Recipe, method: Method, train: SelectedImages) -> bool:
    """Whether a method trains on kept features."""
    images = len(train.items) * recipe.train_views if recipe.augment else len(train.pool)
    return has_fixed_views(recipe) and reads_features(method, images, method.reads_dense)


def training_transform_id(run: Run) -> str:
    """Which transform the training images got; '' where nothing is trained."""
    if run.settings.recipe is None:
        return ""
    recipe = run.settings.recipe
    return training_transform(recipe.crop_scale) if recipe.augment else EVALUATION_TRANSFORM
