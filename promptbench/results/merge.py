"""Several folders that `run` wrote to become one.

A run is copied where all folders that have it agree on its numbers, the metrics and losses. Where they disagree,
nothing of it is copied unless the caller says which one to prefer. What is there already is never replaced. Names of
files follow from the specs inside of them, so no file is written outside of the folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize, safe_open

from promptbench.config import UsageError, path_of
from promptbench.results.result import (
    SCHEMA,
    Result,
    check_writable,
    failure_path,
    find_predictions,
    predictions_path,
    read_result,
    result_path,
    write_result,
)
from promptbench.results.spec import Spec
from promptbench.storage.atomic import write_atomically

_FAILED = ".failed.json"
_TRAINING = re.compile(r"[0-9a-f]{32}\.safetensors")


@dataclass
class Merged:
    """What a merge did.

    Attributes:
        written: Files written, by kind: `results`, `predictions`, `trainings`, `failures`.
        known: Runs that were there already.
        settled: A sentence for each disagreement that the caller's preference settled.
        left_out: A sentence for everything that was not copied: damaged files, disagreements.
    """

    written: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("results", "predictions", "trainings", "failures"), 0)
    )
    known: int = 0
    settled: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """A result and where it was found."""

    folder: Path
    path: Path
    result: Result

    @property
    def numbers(self) -> tuple[Mapping[str, float], list[Any]]:
        return self.result.metrics, list(self.result.losses)


def merge(folders: Sequence[Path | str], output: Path | str, prefer: str = "") -> Merged:
    """Copies the runs of several folders into one, which may be one of them.

    Args:
        folders: That `run` wrote to, or others that hold result files.
        output: Written to; what is in it stays.
        prefer: `first` of the folders or `newest` result where numbers disagree; "" copies neither.

    Raises:
        UsageError: A folder is missing, or the output cannot be written.
    """
    output = path_of(output)
    sources = list(dict.fromkeys(_root(path_of(folder)) for folder in folders))
    check_writable(output)
    merged = Merged()
    target = output.resolve()
    own = list(_results(target, merged if target in sources else Merged())) if (target / "results").is_dir() else []
    there = {found.result.name: found for found in own if found.path == result_path(target, found.result.spec)}
    by_name: dict[str, list[_Found]] = defaultdict(list)
    for source in sources:
        for found in own if source == target else _results(source, merged):
            by_name[found.result.name].append(found)
    others = [source for source in sources if source != target]
    try:
        for name in sorted(by_name):
            _merge_run(by_name[name], there.get(name), output, prefer, merged)
        _merge_failures(others, output, set(by_name) | set(there), merged)
        keys = {_training_name(found.result) for found in chain.from_iterable(by_name.values())}
        _merge_other_trainings(others, output, keys, merged)
    except OSError as error:
        raise UsageError(
            f"The output folder {output} cannot be written ({error.strerror}); name another one."
        ) from error
    return merged


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}; name folders that `promptbench run` wrote to.")
    folder = folder.resolve()
    return folder.parent if folder.name == "results" else folder


def _files(root: Path) -> Iterator[Path]:
    top = root / "results" if (root / "results").is_dir() else root
    yield from (path for path in sorted(top.rglob("*.json")) if not path.name.startswith(".") and path.is_file())


def _results(root: Path, merged: Merged) -> Iterator[_Found]:
    """The results in a folder; files that hold none are noted."""
    for path in _files(root):
        if not path.name.endswith(_FAILED):
            try:
                yield _Found(root, path, read_result(path))
            except UsageError as error:
                merged.left_out.append(str(error))


def _merge_run(versions: list[_Found], there: _Found | None, output: Path, prefer: str, merged: Merged) -> None:
    """Copies one run, of several versions the one chosen, with its training and predictions."""
    chosen = _chosen(versions if there in versions or there is None else [there, *versions], prefer, merged)
    if chosen is None:
        return
    if there is not None and there.numbers != chosen.numbers:
        merged.left_out.append(
            f"{chosen.path} is preferred, but {there.path} is there already and stays; merge into another folder."
        )
        return
    agreeing = [
        found for found in versions if found.result.spec == chosen.result.spec and found.numbers == chosen.numbers
    ]
    agreeing.sort(key=lambda found: found is not (there or chosen))
    if not _merge_training(agreeing, output, merged):
        return
    _merge_predictions(agreeing, output, merged)
    if there is not None:
        merged.known += 1
        return
    try:
        write_result(output, chosen.result)
    except (UsageError, TypeError, ValueError) as error:
        merged.left_out.append(f"{chosen.path} was not copied: {error}")
    else:
        merged.written["results"] += 1


def _chosen(versions: Sequence[_Found], prefer: str, merged: Merged) -> _Found | None:
    """The version to keep; None where numbers disagree and nobody said which."""
    first, *others = versions
    unlike = [found for found in others if found.numbers != first.numbers or found.result.spec != first.result.spec]
    if not unlike:
        return first
    chosen = first if prefer != "newest" else max(versions, key=lambda found: _time(found.result.created))
    for other in unlike:
        said = f"{first.path} and {other.path} are the same run with different numbers ({_gap(first, other)})"
        if prefer:
            merged.settled.append(f"{said}; preferred: {chosen.path}.")
        else:
            merged.left_out.append(f"{said}; nothing of it was copied, choose with --prefer first or newest.")
    return chosen if prefer else None


def _gap(one: _Found, other: _Found) -> str:
    """The largest difference between two results."""
    if one.result.spec != other.result.spec:
        return "their specs differ"
    metrics = one.result.metrics, other.result.metrics
    losses = _losses(one.result), _losses(other.result)
    for what, (a, b) in (("metric", metrics), ("loss", losses)):
        gaps = {name: abs(a[name] - b[name]) for name in a if name in b and a[name] != b[name]}
        if gaps:
            name = max(gaps, key=gaps.__getitem__)
            unit = " points" if what == "metric" else ""
            return f"largest difference: {what} {name}, by {gaps[name]:.6g}{unit}"
        if a.keys() != b.keys():
            return f"one of them lacks the {what} {min(a.keys() ^ b.keys())}"
    return "their losses differ"


def _losses(result: Result) -> Mapping[str, float]:
    """The terms of the loss that are numbers, epoch by epoch."""
    found: dict[str, float] = {}
    for number, epoch in enumerate(result.losses, start=1):
        terms = epoch if isinstance(epoch, Mapping) else {}
        numbers = {name: value for name, value in terms.items() if isinstance(value, (int, float))}
        found |= {f"{name} of epoch {number}": float(value) for name, value in numbers.items()}
    return found


def _time(created: str) -> datetime:
    """A stored time; one that cannot be read is the oldest."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _merge_training(agreeing: Sequence[_Found], output: Path, merged: Merged) -> bool:
    """Copies the learned tensors; false where others are there under the same name."""
    name = _training_name(agreeing[0].result)
    target = output / "trainings" / name
    for found in agreeing if name else ():
        source = found.folder / "trainings" / name
        if not source.is_file() or source.resolve() == target.resolve():
            continue
        if target.exists():
            if _tensors(source) == _tensors(target):
                return True
            merged.left_out.append(
                f"{found.path} was not copied: its learned tensors {source} differ from {target}, which stays."
            )
            return False
        _copy(source, target, "trainings", merged)
    return True


def _merge_predictions(agreeing: Sequence[_Found], output: Path, merged: Merged) -> None:
    """Copies the predictions of the first version that has some."""
    spec = agreeing[0].result.spec
    for found in agreeing:
        source = find_predictions(found.folder, found.result.spec)
        if source is not None and find_predictions(output, spec) is None:
            _copy(source, predictions_path(output, spec).parent / source.name, "predictions", merged)


def _merge_failures(sources: Iterable[Path], output: Path, runs: set[str], merged: Merged) -> None:
    """Copies the newest failure of each run that has no result anywhere."""
    newest: dict[Path, tuple[datetime, Path]] = {}
    for source in sources:
        for path in _files(source):
            if not path.name.endswith(_FAILED):
                continue
            try:
                spec, created = _failure(path)
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                merged.left_out.append(f"{path} is not a valid record of a failure: {error}.")
                continue
            target = failure_path(output, spec)
            if spec.name not in runs and not target.exists():
                newest[target] = max(newest.get(target, (created, path)), (created, path))
    for target, (_, path) in newest.items():
        _copy(path, target, "failures", merged)


def _failure(path: Path) -> tuple[Spec, datetime]:
    record = json.loads(path.read_bytes())
    if not isinstance(record, dict) or type(record.get("schema")) is not int or not 1 <= record["schema"] <= SCHEMA:
        raise ValueError("it has no 'schema' that this version reads")
    return Spec.stored(record["spec"]), _time(str(record.get("created", "")))


def _merge_other_trainings(sources: Iterable[Path], output: Path, known: set[str], merged: Merged) -> None:
    """Copies learned tensors that belong to no result, such as those of a run that failed afterwards."""
    for source in sources:
        for path in sorted((source / "trainings").glob("*.safetensors")):
            target = output / "trainings" / path.name
            if _TRAINING.fullmatch(path.name) and path.name not in known and not target.exists():
                _copy(path, target, "trainings", merged)


def _training_name(result: Result) -> str:
    """The file of a result's learned tensors; "" where it names none, or none that `run` would write."""
    name = f"{str(result.conditions.get('training_key', ''))[:32]}.safetensors"
    return name if _TRAINING.fullmatch(name) else ""


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file can be read: its header fits its length."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def _tensors(path: Path) -> list[tuple[str, dict[str, Any]]] | None:
    """Names, types, shapes and bytes of a safetensors file, without its metadata: how long the training took."""
    try:
        return sorted(deserialize(path.read_bytes()), key=lambda tensor: tensor[0])
    except (SafetensorError, OSError):
        return None


def _copy(source: Path, target: Path, kind: str, merged: Merged) -> None:
    if source.suffix == ".safetensors" and not _is_whole(source):
        merged.left_out.append(f"{source} is damaged and was not copied.")
        return
    with source.open("rb") as file:
        write_atomically(target, lambda copy: shutil.copyfileobj(file, copy))
    merged.written[kind] += 1
