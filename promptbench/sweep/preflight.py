"""What is looked at before runs begin: what would fail in the middle of a sweep, and which finished runs still stand.

A finished run that would be made otherwise today, from other weights, images, names or code, is done again though it is
called the same. Nothing of it is lost: its files move from `results` and `predictions` to

    <folder>/outdated/<protocol>/<dataset>/<method[@preset]>-<hash>.<n>.json, .safetensors

where no table looks.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.clip.load import EMBEDDED, said_of_embedded
from promptbench.config import UsageError
from promptbench.data.decode import NO_ALPHA, has_alpha
from promptbench.data.selection import SelectedImages, few_validation_of, open_selection, shown_names, spoils
from promptbench.data.splits import SPLITS
from promptbench.method import instantiate
from promptbench.results.result import OUTDATED, Result, find_predictions, read_result, result_path
from promptbench.results.spec import Spec, cause_of
from promptbench.runs.session import as_it_was, asked_by_signal, recognised
from promptbench.storage.cache import limit
from promptbench.storage.claims import CLAIMS, Claims
from promptbench.training.files import partial_seconds

if TYPE_CHECKING:
    from promptbench.clip.backbone import Backbone
    from promptbench.data.dataset import Dataset
    from promptbench.data.selection import Selection
    from promptbench.runs.plan import Run
    from promptbench.runs.session import Session

log = logging.getLogger(__name__)

MOST_ASKED = 1000  # images of a split whether they are transparent; 0.3 ms each
TOO_LARGE = re.compile("allocate|overflow|memory")  # in what torch says of a tensor's size


def preflight(session: Session, runs: Sequence[Run]) -> None:
    """Look at the environment, at all data and at all prompts of the runs.

    Raises:
        UsageError: On the first thing that would fail: an environment variable that is no number, missing images,
            prompts that are too long, values that the backbone cannot carry. Classes with fewer images than shots and
            words never seen are warned about.
    """
    limit()
    partial_seconds()
    with as_it_was(deterministic=any(run.spec.deterministic for run in runs)):
        check_images(session, runs)
        say_of_pictures(session, runs)
        check_prompts(session, runs)


def check_images(session: Session, runs: Iterable[Run]) -> None:
    """Raise a UsageError where an image that a run looks at is not there."""
    seen: set[tuple[Selection, int | None]] = set()
    warned: set[Selection] = set()
    for run in runs:
        trained = (run.plan.train,) if run.method.sees_images() else ()
        fitted = (few_validation_of(run.plan.train),) if run.spec.temperature else ()
        for selection in (*trained, *fitted, *(evaluation.selection for evaluation in run.plan.evaluations)):
            key = (selection, run.spec.data_seed if selection.shots is not None else None)
            if key in seen:
                continue
            seen.add(key)
            with left_to_the_run():
                chosen = open_selection(session.dataset, selection, run.spec.data_seed, nearest=session.nearest)
                chosen.dataset.check(chosen.items)
                if selection in trained and len(chosen.class_names) < 2:
                    raise UsageError(too_few_classes(run, chosen))
                if selection in trained and selection not in warned and not spoils(selection.sampler):
                    warned.add(selection)
                    warn_of_few_images(chosen.class_names, chosen.labels, selection)


def say_of_pictures(session: Session, runs: Iterable[Run]) -> None:
    """Say of each dataset how promptbench split it, that a backbone of rendered shapes meets pictures, and what becomes
    of transparency."""
    looked_at: dict[str, set[str]] = {}
    for run in runs:
        for selection in (run.plan.train, *(evaluation.selection for evaluation in run.plan.evaluations)):
            looked_at.setdefault(selection.dataset, set()).add(selection.split)
    pictures: list[str] = []
    for name, splits in looked_at.items():
        with left_to_the_run():
            dataset = session.dataset(name)
            if dataset.split_made:
                log.warning("'%s' was split into %s", name, dataset.split_made)
            if dataset.by_files:
                pictures.append(name)
                say_of_transparency(dataset, splits & set(SPLITS))
    if pictures and session.suite.backbone == EMBEDDED:
        log.warning("%s", said_of_embedded())


def say_of_transparency(dataset: Dataset, splits: Iterable[str]) -> None:
    """Say that images have an alpha channel, and what becomes of it; of large splits some are asked, at equal
    distances."""
    for split in sorted(splits):
        items = dataset.items(split)
        some = items[:: len(items) // MOST_ASKED + 1]
        if any(has_alpha(dataset.image_root / item.image) for item in some):
            log.warning("images of '%s' %s", dataset.name, NO_ALPHA)
            return


def too_few_classes(run: Run, chosen: SelectedImages) -> str:
    """Why a training on one class is refused: it recognises every image, whatever it learns."""
    return (
        f"'{run.spec.dataset}' has {len(chosen.dataset.class_names)} classes, of which {run.spec.protocol} trains on "
        f"'{chosen.class_names[0]}' alone; take a --protocol that trains on all classes, or a dataset with more."
    )


@contextmanager
def left_to_the_run() -> Iterator[None]:
    """Within it, what a plugin's code raises is left to its run, which records it while the others go on."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, (UsageError, KeyboardInterrupt)) or asked_by_signal(error):
            raise


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
        backbone = session.backbone
        with left_to_the_run():
            make_prompts(session, run, backbone)


def make_prompts(session: Session, run: Run, backbone: Backbone) -> None:
    """Make the method of a run, and its prompts for all class names that it is shown.

    Raises:
        UsageError: They do not fit the backbone, or what it learns does not fit into memory.
    """
    spec = run.spec
    train = open_selection(session.dataset, run.plan.train, spec.data_seed, nearest=session.nearest)
    try:
        method = instantiate(run.method, run.settings.config, backbone, train.class_names, spec.train_seed)
    except (RuntimeError, MemoryError, OverflowError) as error:
        if not TOO_LARGE.search(str(error)):
            raise
        raise UsageError(f"{spec.label}: what it learns does not fit into memory; see its settings.") from error
    for evaluation in run.plan.evaluations:
        chosen = open_selection(session.dataset, evaluation.selection, spec.data_seed)
        names, _ = shown_names(session.dataset, evaluation.names, chosen)
        if not method.refusal(names):
            method.set_classes(names)


def check_finished(session: Session, results: Mapping[str, Result]) -> None:
    """Raise a UsageError where a finished run had left unreadable images out, and this call would not.

    Args:
        results: Of those runs that are finished, by name.
    """
    for result in results.values():
        if result.conditions.get("skipped") and not session.skip_unreadable:
            path = result_path(session.place.named, result.spec)
            raise UsageError(
                f"{path} was made without some images that could not be read; repair them and move that file away, "
                "or say --on-bad-image skip again."
            )


def outdated(
    session: Session, runs: Iterable[Run], results: Mapping[str, Result], may_load: bool = True
) -> dict[str, str]:
    """Those of the results that were made otherwise than a run of today would be: name to what differs, in words.

    What a result does not say, such as one of an earlier version, counts as the same, and so does what cannot be told
    now, such as of images that are gone: what was measured on them stands.

    Args:
        runs: Whose results they are, among others.
        results: By name.
        may_load: Whether the backbone may be loaded to compare its weights.
    """
    found: dict[str, str] = {}
    for run in runs:
        if run.spec.name in results:
            cause = cause_of(results[run.spec.name].spec, recognised(session, run, may_load).spec)
            if cause:
                found[run.spec.name] = cause
    return found


def renew(session: Session, runs: Sequence[Run], results: dict[str, Result], keep: bool = False) -> dict[str, Result]:
    """The results that stand, after those that are outdated were moved away and that was said, a line for each cause.

    Args:
        keep: Only say it.
    """
    causes = outdated(session, runs, results)
    if not causes:
        return results
    if keep:
        _say(causes, "they are kept, as asked for")
        return results
    _say(causes, f"they run again, and their old results are kept in {session.place.named / OUTDATED}")
    set_aside(session, runs, causes)
    return {name: result for name, result in results.items() if name not in causes}


def _say(causes: Mapping[str, str], consequence: str) -> None:
    """One line for each cause, with the number of runs."""
    for cause in dict.fromkeys(causes.values()):
        log.warning("finished runs %s: %d; %s", cause, list(causes.values()).count(cause), consequence)


def set_aside(session: Session, runs: Sequence[Run], causes: Mapping[str, str]) -> None:
    """Move the files of outdated runs away, so that they are done again.

    Of several processes one moves them; what another has just done again stays.
    """
    with Claims(session.output / CLAIMS) as claims:
        for run in runs:
            if run.spec.name not in causes:
                continue
            claim = claims.take(run.spec.digest, {"kind": "outdated", "run": run.spec.name})
            if claim is None:  # another process does it again already
                continue
            with claim:
                path = result_path(session.output, run.spec)
                if path.exists() and outdated(session, [run], {run.spec.name: read_result(path)}):
                    _move(session.output, run.spec)


def _move(output: Path, spec: Spec) -> None:
    """The result, and the predictions if there are any, to the first free number; the result last."""
    folder, stem = (output / OUTDATED / spec.name).parent, Path(spec.name).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = next(n for n in itertools.count(1) if not list(folder.glob(f"{stem}.{n}.*")))
        for path in (find_predictions(output, spec), result_path(output, spec)):
            if path is not None and path.exists():
                kind = path.name.removeprefix(stem)  # `.json`, `.safetensors`, or that and how it was packed
                os.rename(path, folder / f"{stem}.{number}{kind}")
    except OSError as error:
        raise UsageError(
            f"The outdated result {result_path(output, spec)} cannot be moved to {folder} ({error.strerror}); name "
            "another folder with --output, or keep what is there with --keep-outdated."
        ) from error
