"""What would fail in the middle of a sweep, found before anything is trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from promptbench.config import UsageError
from promptbench.data.selection import open_selection
from promptbench.method import instantiate
from promptbench.results.result import Result, result_path
from promptbench.runs.evaluate import shown_names
from promptbench.storage.cache import limit
from promptbench.training.files import partial_seconds

if TYPE_CHECKING:
    from promptbench.data.selection import Selection
    from promptbench.runs.plan import Run
    from promptbench.runs.session import Session

log = logging.getLogger(__name__)


def preflight(session: Session, runs: Sequence[Run]) -> None:
    """Look at the environment, at all data and at all prompts of the runs.

    Raises:
        UsageError: On the first thing that would fail: an environment variable that is no number, missing images,
            prompts that are too long, values that the backbone cannot carry. Classes with fewer images than shots and
            words never seen are warned about.
    """
    limit()
    partial_seconds()
    check_images(session, runs)
    check_prompts(session, runs)


def check_images(session: Session, runs: Iterable[Run]) -> None:
    """Raise a UsageError where an image that a run looks at is not there."""
    seen: set[tuple[Selection, int | None]] = set()
    warned: set[Selection] = set()
    for run in runs:
        trained = (run.plan.train,) if run.method.sees_images() else ()
        for selection in (*trained, *(evaluation.selection for evaluation in run.plan.evaluations)):
            key = (selection, run.spec.data_seed if selection.shots is not None else None)
            if key in seen:
                continue
            seen.add(key)
            chosen = open_selection(session.dataset, selection, run.spec.data_seed)
            chosen.dataset.check(chosen.items)
            if selection in trained and selection not in warned:
                warned.add(selection)
                warn_of_few_images(chosen.class_names, chosen.labels, selection)


def warn_of_few_images(names: Sequence[str], labels: Iterable[int], selection: Selection) -> None:
    """Say which classes have fewer images than shots: they are taken whole."""
    counts = Counter(labels)
    few = [f"'{name}' {counts[label]}" for label, name in enumerate(names) if counts[label] < (selection.shots or 0)]
    if few:
        log.warning(
            "%d of %d classes of '%s' have fewer than %d training images and are taken whole: %s",
            len(few),
            len(names),
            selection.dataset,
            selection.shots,
            ", ".join(few[:3]) + (", ..." if len(few) > 3 else ""),
        )


def check_prompts(session: Session, runs: Iterable[Run]) -> None:
    """Raise a UsageError where the prompts of a run do not fit the backbone, those of its evaluations included."""
    seen: set[tuple[object, ...]] = set()
    for run in runs:
        spec = run.spec
        key = (spec.label, spec.protocol, run.plan.train.dataset, repr(spec.config))
        if key in seen:
            continue
        seen.add(key)
        train = open_selection(session.dataset, run.plan.train, spec.data_seed)
        method = instantiate(run.method, run.settings.config, session.backbone, train.class_names, spec.train_seed)
        for evaluation in run.plan.evaluations:
            chosen = open_selection(session.dataset, evaluation.selection, spec.data_seed)
            names, _ = shown_names(session.dataset, evaluation, chosen)
            if method.transfers or tuple(names) == tuple(train.class_names):
                method.set_classes(names)


def check_finished(session: Session, results: Mapping[str, Result]) -> None:
    """Raise a UsageError where a finished run had left unreadable images out, and this call would not.

    Args:
        results: Of those runs that are finished, by name.
    """
    for result in results.values():
        if result.conditions.get("skipped") and not session.skip_unreadable:
            path = result_path(session.output, result.spec)
            raise UsageError(
                f"{path} was made without some images that could not be read; repair them and move that file away, "
                "or say --on-bad-image skip again."
            )
