"""One run: train or load what was trained, evaluate, write the result."""

from __future__ import annotations

import logging
import time
from typing import Any

from promptbench import registry
from promptbench.data.corruptions import CORRUPTIONS
from promptbench.data.selection import SelectedImages, few_validation_of, open_selection, sample_facts
from promptbench.data.transforms import EVALUATION_TRANSFORM
from promptbench.method import Method
from promptbench.recipe import settings_by_dataset
from promptbench.results.knowledge import Choice, set_by_hand
from promptbench.results.predictions import save_predictions
from promptbench.results.result import Result, write_result
from promptbench.runs.evaluate import Evaluated, evaluate
from promptbench.runs.listener import Work
from promptbench.runs.plan import Run
from promptbench.runs.session import Session, as_it_was, identified
from promptbench.runs.train import (
    NO_TRAINING,
    as_it_was_trained,
    choose,
    learn,
    prepared,
    training_transform_id,
    validation_images,
)
from promptbench.storage.versions import git_commit, library_versions, utc_now
from promptbench.training.files import training_key
from promptbench.training.numerics import peak_memory, peak_memory_restarts

log = logging.getLogger(__name__)


def execute(session: Session, run: Run, work: Work) -> Result:
    """Train, evaluate, write and return the result of one run; what it changes in the process is put back."""
    with as_it_was():
        return carried_out(session, run, work)


def carried_out(session: Session, run: Run, work: Work) -> Result:
    """Train, evaluate, write and return the result of one run."""
    run = identified(session, run)
    key = training_key(run.spec, run.method)
    if session.place.learned is not None:
        run, key = as_it_was_trained(session.place.learned, run, key)
    spec = run.spec
    log.info("%s begins, in %s", spec.name, session.output)
    train, method = prepared(session, run)
    outcome = NO_TRAINING
    if method.is_stored():
        outcome = learn(session, run, method, train, key, work)
    else:
        choose(session, run, method)
    began = time.perf_counter()
    found = evaluate(session, run, method)
    seconds = time.perf_counter() - began
    metrics, notes = run.protocol.measure(found.outcomes, run.plan)
    if found.temperature is not None:
        metrics = {**metrics, "temperature": found.temperature}
    work.check()
    if session.save_predictions:
        save_predictions(session.output, spec, found.outcomes, found.images, found.names)
    result = Result(
        spec=spec,
        conditions={
            "title": registry.titles("methods", [spec.method])[spec.method],
            "reconstructed": run.method.reconstructed,
            "dense_scores": run.method.dense_scores,
            "texts_told": method.texts_told,
            "split_source": train.dataset.split_source,
            "sample_size": len(train.items),
            **sample_facts(run.plan.train, train),
            "transform": {"evaluation": EVALUATION_TRANSFORM, "training": training_transform_id(run)},
            **({"corruptions": CORRUPTIONS} if spec.corruption else {}),
            "training_key": key if method.is_stored() else "",
            "provenance": run.settings.provenance,
            **choice_conditions(session, run, method),
            **evaluation_conditions(found, train),
            **session.conditions(),
        },
        metrics=metrics,
        notes={**found.notes, **notes},
        diagnostics=found.diagnostics,
        cost={
            "learned_parameters": sum(p.numel() for p in method.parameters()),
            "train_seconds": round(outcome.seconds, 3),
            "train_images_per_second": round(outcome.images_per_second, 1),
            "eval_seconds": round(seconds, 3),
            "eval_ms_per_image": round(milliseconds(seconds, found), 4),
            **memory_of(session),
        },
        versions=library_versions(),
        commit=git_commit(),
        created=utc_now(),
        losses=outcome.losses,
    )
    log.info("%s is done: %s", spec.name, write_result(session.output, result))
    return result


def choice_conditions(session: Session, run: Run, method: Method) -> dict[str, Any]:
    """How settings were chosen before the run, and on which validation images by the method itself, if any were; on how
    many a temperature was fitted, which no accuracy depends on."""
    said: dict[str, Any] = {"selection": chosen_before(run, method)._asdict()}
    if method.validates:
        images = len(validation_images(session, run, method).items)
        said |= {"chosen_on": method.validates, "chosen_on_images": images, "chosen_among": method.tries}
    if run.spec.temperature:
        fitted_on = open_selection(session.dataset, few_validation_of(run.plan.train), run.spec.data_seed)
        said["temperature_images"] = len(fitted_on.items)
    return said


def chosen_before(run: Run, method: Method) -> Choice:
    """How the settings of a run were chosen before it, as its recipe says."""
    recipe, provenance = run.settings.recipe, run.settings.provenance
    differing = settings_by_dataset(run.method, run.protocol.recipes_of or run.spec.protocol)
    followed = any(provenance.get(name, "").startswith("recipe") for name in differing)
    by_dataset = followed or method.settings_by_dataset
    if set_by_hand(run.spec, provenance):
        return Choice("unknown", 0, by_dataset)
    if recipe is None:
        return Choice("unknown" if run.method.sees_images() else "none", 0, by_dataset)
    return Choice(recipe.selection, recipe.trials, by_dataset)


def milliseconds(seconds: float, found: Evaluated) -> float:
    """Of an evaluation for each image scored, one that several evaluations score counted in each."""
    images = sum(len(outcome.labels) for outcome in found.outcomes.values())
    return 1000 * seconds / images if images else 0.0


def memory_of(session: Session) -> dict[str, float]:
    """The most memory that a run took since it was `prepared`; nothing where only the process' most is known, which
    may be an earlier run's."""
    if not peak_memory_restarts(session.device):
        return {}
    return {"peak_memory_mb": round(peak_memory(session.device) / 2**20, 1)}


def evaluation_conditions(found: Evaluated, train: SelectedImages) -> dict[str, Any]:
    """Numbers of images by evaluation, and images that were left out as unreadable."""
    skipped = {name: chosen.skipped for name, chosen in {"train": train, **found.images}.items() if chosen.skipped}
    return {
        "images": {name: len(chosen.items) for name, chosen in found.images.items()},
        **({"skipped": skipped} if skipped else {}),
    }
