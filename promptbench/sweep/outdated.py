"""Finished runs that would be made otherwise today, from other weights, images, names or code, though called the same.

They are done again. Nothing of them is lost: their files move from `results` and `predictions` to

    <folder>/outdated/<protocol>/<dataset>/<method[@preset]>-<hash>.<n>.json, .safetensors

where no table looks.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.config import UsageError
from promptbench.results.result import Result, predictions_path, read_result, result_path
from promptbench.results.spec import Spec, fields_of
from promptbench.runs.identity import recognised
from promptbench.storage.claims import CLAIMS, Claims
from promptbench.storage.versions import other_code

if TYPE_CHECKING:
    from promptbench.runs.plan import Run
    from promptbench.runs.session import Session

log = logging.getLogger(__name__)

OUTDATED = "outdated"  # folder in the output folder


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


def cause_of(before: Spec, now: Spec) -> str:
    """Why a run with the first spec is done again where it has the second one today, in words; "" where it is not."""
    for field in fields_of(now):
        renews = field.metadata["renews"]
        old, new = getattr(before, field.name, None), getattr(now, field.name)
        if not renews or not old or not new:
            continue
        differs = other_code(old, new) if field.name.endswith("_code") else old != new
        if differs:
            return str(renews).format(**now.values())
    return ""


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
    _say(causes, f"they run again, and their old results are kept in {session.output / OUTDATED}")
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
        for path in (predictions_path(output, spec), result_path(output, spec)):
            if path.exists():
                os.rename(path, folder / f"{stem}.{number}{path.suffix}")
    except OSError as error:
        raise UsageError(
            f"The outdated result {result_path(output, spec)} cannot be moved to {folder} ({error.strerror}); name "
            "another folder with --output, or keep what is there with --keep-outdated."
        ) from error
