"""Finished runs whose weights or method are not those of today, though they are called the same.

They are done again. Nothing of them is lost: their files move from `results` and `predictions` to

    <folder>/outdated/<protocol>/<dataset>/<method[@preset]>-<hash>.<n>.json, .safetensors

where no table looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench import __version__
from promptbench.clip.load import EMBEDDED, RANDOM, split_name
from promptbench.config import UsageError
from promptbench.registry import method_code
from promptbench.results.result import Result, predictions_path, read_result, result_path
from promptbench.storage.atomic import write_atomically
from promptbench.storage.cache import cache_dir
from promptbench.storage.claims import CLAIMS, Claims

if TYPE_CHECKING:
    from promptbench.results.spec import Spec
    from promptbench.runs.plan import Run
    from promptbench.runs.session import Session

log = logging.getLogger(__name__)

OUTDATED = "outdated"  # folder in the output folder


def outdated(session: Session, results: Mapping[str, Result], may_load: bool = True) -> dict[str, str]:
    """Those of the results that were made otherwise than a run of today would be: name to what differs, in words.

    What a result does not say, such as an older one of its method's code, counts as the same.

    Args:
        results: By name, of runs with this backbone.
        may_load: Whether the backbone may be loaded to compare its weights.
    """
    found: dict[str, str] = {}
    weights = weights_hash(session, may_load) if results else ""
    codes = {method: method_code(method) for method in {result.spec.method for result in results.values()}}
    for name, result in results.items():
        before, method = result.conditions, result.spec.method
        if weights and before.get("weights_hash", weights) != weights:
            found[name] = f"made with other weights of '{session.suite.backbone}' than today's"
        elif _other_code(before.get("method_code"), codes[method]):
            found[name] = f"made before the code of '{method}' was changed"
    return found


def renew(session: Session, runs: Sequence[Run], results: dict[str, Result], keep: bool = False) -> dict[str, Result]:
    """The results that stand, after those that are outdated were moved away and that was said, a line for each cause.

    Args:
        keep: Only say it.
    """
    causes = outdated(session, results)
    if not causes:
        return results
    if keep:
        _say(causes, "they are kept, as asked for")
        return results
    _say(causes, f"they run again, and their old results are kept in {session.output / OUTDATED}")
    set_aside(session, runs, causes)
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
                if path.exists() and outdated(session, {run.spec.name: read_result(path)}):
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


def weights_hash(session: Session, may_load: bool = True) -> str:
    """The hash of the backbone's weights as they are now; "" where it is not known.

    It is remembered for the files behind the name, by their places, sizes and times of change, so that the backbone is
    only loaded once for each state of them; a memo that was damaged counts as none. The weights behind a tag of
    open_clip never change.

    Args:
        may_load: Whether the backbone is loaded where nothing is remembered.
    """
    memo = _memo(session.suite.backbone)
    if memo is None:
        return ""
    remembered = _remembered(memo)
    if remembered or not may_load:
        return remembered
    return remember(session)


def remember(session: Session) -> str:
    """Load the backbone, if it is not yet, and remember the hash of its weights; "" where that cannot be."""
    memo = _memo(session.suite.backbone)
    if memo is None:
        return ""
    try:
        found = session.backbone.weights_hash
    except UsageError:  # whoever needs the weights says so
        return ""
    with contextlib.suppress(OSError):
        write_atomically(memo, lambda file: file.write(f"{found} {_checksum(memo, found)}\n".encode()))
    return found


def _remembered(memo: Path) -> str:
    """The hash in a memo; "" where there is none, or it is not what was written for these files."""
    try:
        found, _, checksum = memo.read_text(encoding="ascii").removesuffix("\n").partition(" ")
    except (OSError, UnicodeDecodeError):
        return ""
    return found if checksum == _checksum(memo, found) else ""


def _checksum(memo: Path, found: str) -> str:
    return hashlib.sha256(f"{memo.name} {found}".encode()).hexdigest()


def _memo(backbone: str) -> Path | None:
    """The file that remembers the hash of a backbone's weights; None where no files are behind its name."""
    try:
        states = [_state(path) for path in _files(backbone)]
    except (OSError, UsageError):
        return None
    facts = repr((backbone, states, __version__)).encode()
    return cache_dir() / "weights" / hashlib.sha256(facts).hexdigest()[:32] if states else None


def _files(backbone: str) -> list[Path]:
    """The files behind the name of a backbone, its architecture's where that is one of the user's."""
    if backbone == EMBEDDED:
        folder = Path(str(files("promptbench.mini")))
        return sorted([*folder.glob("*.safetensors"), *folder.glob("mini-clip*.json")])
    architecture, weights = (Path(part).expanduser() for part in split_name(backbone))
    own = [architecture] if architecture.suffix == ".json" else []
    named = weights.is_file() or (own and weights.name != RANDOM)  # a tag goes with an architecture of open_clip alone
    return [*own, weights] if named else own


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns
