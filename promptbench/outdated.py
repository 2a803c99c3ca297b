"""Finished runs whose weights or method are not those of today, though they are called the same.

They are done again. Nothing of them is lost: their files move from `results` and `predictions` to

    <folder>/outdated/<protocol>/<dataset>/<method[@preset]>-<hash>.<n>.json, .safetensors

where no table looks.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.config import UsageError
from promptbench.fingerprints import weights_hash
from promptbench.registry import method_code
from promptbench.results.result import Result, predictions_path, read_result, result_path
from promptbench.storage.claims import CLAIMS, Claims

if TYPE_CHECKING:
    from promptbench.results.spec import Spec
    from promptbench.runs.plan import Run
    from promptbench.runs.session import Bench

log = logging.getLogger(__name__)

OUTDATED = "outdated"  # folder in the output folder


def outdated(bench: Bench, results: Mapping[str, Result], may_load: bool = True) -> dict[str, str]:
    """Those of the results that were made otherwise than a run of today would be: name to what differs, in words.

    What a result does not say, such as an older one of its method's code, counts as the same.

    Args:
        results: By name, of runs with this backbone.
        may_load: Whether the backbone may be loaded to compare its weights.
    """
    found: dict[str, str] = {}
    weights = weights_hash(bench, may_load) if results else ""
    codes = {method: method_code(method) for method in {result.spec.method for result in results.values()}}
    for name, result in results.items():
        before, method = result.conditions, result.spec.method
        if weights and before.get("weights_hash", weights) != weights:
            found[name] = f"made with other weights of '{bench.suite.backbone}' than today's"
        elif _other_code(before.get("method_code"), codes[method]):
            found[name] = f"made before the code of '{method}' was changed"
    return found


def renew(bench: Bench, runs: Sequence[Run], results: dict[str, Result], keep: bool = False) -> dict[str, Result]:
    """The results that stand, after those that are outdated were moved away and that was said, a line for each cause.

    Args:
        keep: Only say it.
    """
    causes = outdated(bench, results)
    if not causes:
        return results
    if keep:
        _say(causes, "they are kept, as asked for")
        return results
    _say(causes, f"they run again, and their old results are kept in {bench.output / OUTDATED}")
    set_aside(bench, runs, causes)
    return {name: result for name, result in results.items() if name not in causes}


def _other_code(before: object, now: str) -> bool:
    """Whether a digest says that the code changed; one by another version of Python says nothing."""
    if not isinstance(before, str) or not before or not now:
        return False
    return before.partition(":")[0] == now.partition(":")[0] and before != now


def _say(causes: Mapping[str, str], consequence: str) -> None:
    """One line for each cause, with the number of runs."""
    for cause in dict.fromkeys(causes.values()):
        log.warning("finished runs %s: %d; %s", cause, list(causes.values()).count(cause), consequence)


def set_aside(bench: Bench, runs: Sequence[Run], causes: Mapping[str, str]) -> None:
    """Move the files of outdated runs away, so that they are done again.

    Of several processes one moves them; what another has just done again stays.
    """
    with Claims(bench.output / CLAIMS) as claims:
        for run in runs:
            if run.spec.name not in causes:
                continue
            claim = claims.take(run.spec.digest, {"kind": "outdated", "run": run.spec.name})
            if claim is None:  # another process does it again already
                continue
            with claim:
                path = result_path(bench.output, run.spec)
                if path.exists() and outdated(bench, {run.spec.name: read_result(path)}):
                    _move(bench.output, run.spec)


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
