"""A stored result by a short name: `latest`, or the beginning of its file's name, such as `coop-22b7`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from promptbench.config import UsageError, nearest, path_of, real_path_of
from promptbench.results.result import PACKED, result_files

LATEST = "latest"
HUB = "hf://"
SHOWN = 8  # candidates in an error

Needs = Literal["training", "predictions"]
"""What the latest result has to have beside it: what was learned, so that it can classify images, or predictions."""


def find_run(word: str, places: Sequence[Path | str], needs: Needs = "training") -> str:
    """The file of the result that a short name means; whatever is no short name is given back.

    Args:
        word: What the user wrote: `latest`, the beginning of a file's name, or a path.
        places: Folders that `run` wrote to.
        needs: What the latest one has to have.

    Raises:
        UsageError: No result is called so, or several are.
    """
    if not is_short(word):
        return word
    paths = sorted(files_in(places))
    if word == LATEST:
        return str(newest(paths, places, needs))
    found = [path for path in paths if path.stem.startswith(word)]
    exact = [path for path in found if path.stem == word]
    if len(exact or found) == 1:
        return str((exact or found)[0])
    where = ", ".join(map(str, places))
    if found:
        raise UsageError(f"--run {word}: {len(found)} results in {where} begin so: {listed(found)}; write more of one.")
    stems = [path.stem for path in paths]
    there = f"{nearest(word, stems)} There are {listed(paths)}." if paths else ""
    raise UsageError(f"--run {word}: there is no such file, and no result in {where} begins so.{there}")


def is_short(word: str) -> bool:
    """Whether a word may be a short name: it is no path, names no file that is there, and nothing on the hub."""
    path = path_of(word)
    return not (
        word.startswith(HUB) or len(path.parts) != 1 or path.suffix in (".json", ".safetensors") or path.exists()
    )


def files_in(places: Iterable[Path | str]) -> Iterator[Path]:
    """The result files in folders.

    Raises:
        UsageError: One of them is not there.
    """
    for place in places:
        yield from map(Path, result_files(real_path_of(place)))


def newest(paths: Iterable[Path], places: Sequence[Path | str], needs: Needs) -> Path:
    """The result that was made last, among those that have what is needed.

    Raises:
        UsageError: There is none.
    """
    has = NEEDS[needs]
    dated = []
    for path in paths:
        document = read(path)
        if document and has(path, document):
            dated.append(
                (str(document.get("created", "")), path.stat().st_mtime_ns, path)
            )  # `created` is to the second
    if not dated:
        where = ", ".join(map(str, places))
        way_out = "with a method that trains" if needs == "training" else "with --save-predictions"
        raise UsageError(
            f"--run {LATEST}: no result in {where} has its {needs}; make one {way_out}: `promptbench run`."
        )
    return max(dated)[2]


def read(path: Path) -> Mapping[str, Any]:
    """What a result file says; nothing where it cannot be read, which `latest` passes over."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("conditions"), dict) else {}


def has_training(path: Path, document: Mapping[str, Any]) -> bool:
    """Whether what a run learned lies in its output folder."""
    key = str(document["conditions"].get("training_key") or "")
    return bool(key) and (output_of(path) / "trainings" / f"{key[:32]}.safetensors").is_file()


def has_predictions(path: Path, document: Mapping[str, Any]) -> bool:
    """Whether the scores of a run's images lie in its output folder."""
    place = output_of(path) / "predictions" / Path(*path.parts[-3:-1])
    return any((place / f"{path.stem}.safetensors{packed}").is_file() for packed in ("", PACKED))


def output_of(path: Path) -> Path:
    """The folder that `run` wrote to, where a result file lies in its place in it."""
    return path.parents[min(3, len(path.parents) - 1)]


NEEDS: Mapping[Needs, Callable[[Path, Mapping[str, Any]], bool]] = {
    "training": has_training,
    "predictions": has_predictions,
}


def listed(paths: Sequence[Path]) -> str:
    """Results by the ends of their paths, the first of many."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"{', '.join('/'.join(path.with_suffix('').parts[-3:]) for path in paths[:SHOWN])}{more}"
