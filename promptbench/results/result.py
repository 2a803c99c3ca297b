"""What a run leaves behind: one JSON file per run, named by the hash of what decides it, written once.

    <folder>/results/<protocol>/<dataset>/<method[@preset]>-<hash>.json
    <folder>/results/<protocol>/<dataset>/<method[@preset]>-<hash>.failed.json
    <folder>/predictions/<protocol>/<dataset>/<method[@preset]>-<hash>.safetensors    (if asked for)
    <folder>/learned/<protocol>/<dataset>/<method[@preset]>-<hash>.safetensors        (of `results learned`)
    <folder>/trainings/<key of the training>.safetensors                              (which several runs may share)

Tables, plots and reports read these files and nothing else, so a table can be rebuilt years later from the JSON alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from promptbench.config import UsageError, real_path_of
from promptbench.results.spec import Spec, expect, to_plain
from promptbench.storage.atomic import check_room, write_atomically
from promptbench.storage.versions import git_commit, library_versions, utc_now

SCHEMA = 2
IN_SPEC = ("weights_hash", "split_digest", "class_names", "templates")  # since schema 2; conditions before


def _what_a_run_is_made_of(document: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 had in its conditions what a run was made of; what it digested otherwise than today stays there."""
    expect(document["spec"], dict, "spec")
    conditions = dict(document.get("conditions", {}))
    moved = {name: conditions.pop(name) for name in IN_SPEC if name in conditions}
    return {**document, "spec": {**document["spec"], **moved}, "conditions": conditions}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _what_a_run_is_made_of}
"""Schema number to what turns a document of it into one of the next; one entry for each schema there has been."""

PACKED = ".xz"  # what the name of a file with predictions ends in that was compressed, as `xz` does
OUTDATED = "outdated"  # folder in the output folder, of runs that were done again
TUNING = "tuning"  # folder in the output folder, of what `tune` tried, laid out like that one
SPLITS_READ = "splits_read"  # condition of a trial of `tune`: the splits of each dataset that were asked for
DATA_MET = (
    "split_source",
    "sample_size",
    "effective_ratio",
    "labels_changed",
    "images",
    "skipped",
)
"""The conditions of a result that are about its images and their names."""

_CONDITIONS: dict[str, type] = {
    **dict.fromkeys(("images", "skipped", "transform", "provenance"), Mapping),
    **dict.fromkeys(("split_source", "training_key", "title"), str),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run.

    Attributes:
        conditions: What the run met and the spec does not say: `title`, `reconstructed` and `dense_scores` of the
            method; what it was told of texts, `texts_told`; how its settings were chosen, `selection`, and by the
            method itself, `chosen_on`, `chosen_on_images` and `chosen_among`, see `knowledge`; on how many images a
            temperature was fitted, `temperature_images`; `split_source`, `sample_size`, `transform`, `training_key`; of
            long tails `effective_ratio`, the images of the largest class over those of the smallest, and of wrong
            labels `labels_changed`, how many images were trained on with one; by evaluation `images` (numbers) and
            `skipped` (unreadable ones); and `provenance`, which says for `config.<field>` and `recipe.<field>` where
            the value came from, as `show-config` prints it.
        metrics: `<evaluation>/<metric>` and what a protocol derives from them, finite, in percent but for `nll` (nats)
            and `brier` (0 to 2); of a run that fits a `temperature`, that and what is measured after it, such as
            `base/ece_scaled`.
        notes: Why a metric is not there, by its name or the first parts of it, such as `new/`.
        diagnostics: A method's own figures, `<evaluation>/<name>`.
        cost: `learned_parameters`, `train_seconds`, `eval_seconds`, `eval_ms_per_image` (milliseconds of evaluation for
            each image scored), `train_images_per_second`, and `peak_memory_mb` (MiB): the most during this run, the
            backbone included, that the process had in memory on a CPU, or that torch had given out on a GPU. It is not
            there where the system only knows the most since the process began, which is what results have that were
            made before memory was measured run by run.
        versions: As `library_versions` gives them.
        commit: As `git_commit` gives it.
        created: ISO 8601, UTC.
        losses: Mean of each loss term, epoch by epoch.
        path: The file that it was read from or written to; neither stored nor compared.
    """

    schema: int = SCHEMA
    spec: Spec
    conditions: Mapping[str, Any]
    metrics: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float | None] = field(default_factory=dict)
    versions: Mapping[str, str]
    commit: str
    created: str
    losses: Sequence[Mapping[str, float]] = ()
    path: ClassVar[Path | None] = None  # no field: set by those who read and write results

    def __post_init__(self) -> None:
        for name in ("conditions", "metrics", "notes", "diagnostics", "cost", "versions"):
            expect(getattr(self, name), Mapping, name)
        for name, kind in _CONDITIONS.items():
            if self.conditions.get(name) is not None:
                expect(self.conditions[name], kind, f"conditions[{name!r}]")
        expect(self.losses, (list, tuple), "losses")
        expect(self.commit, str, "commit")
        expect(self.created, str, "created")
        for key, value in self.metrics.items():
            expect(value, (int, float), f"metrics[{key!r}]")
            if not math.isfinite(value):
                raise ValueError(f"metrics[{key!r}] must be a finite number, not {value}.")
        for key, reason in self.notes.items():
            expect(reason, str, f"notes[{key!r}]")

    @property
    def name(self) -> str:
        """Where it is filed, as its spec says."""
        return self.spec.name


def write_result(folder: Path | str, result: Result) -> Path:
    """The file that holds this run: a new one, or the finished result that is already there, untouched.

    The file appears under its name complete or not at all. An earlier failure of the same run is removed.

    Raises:
        UsageError: If the folder cannot be written, or the name is taken by a file that is not this run's result.
        TypeError, ValueError: If the result holds what JSON cannot, such as a path or an infinite loss.
    """
    path = result_path(folder, result.spec)
    if find(folder, result.spec) is None:
        _write_json(path, to_plain(result))
    with contextlib.suppress(OSError):
        failure_path(folder, result.spec).unlink(missing_ok=True)
    object.__setattr__(result, "path", path)
    return path


def write_failure(
    folder: Path | str,
    spec: Spec,
    *,
    reason: str,
    traceback: str = "",
    where: Mapping[str, Any] | None = None,
    deaths: int = 0,
) -> Path | None:
    """The `.failed.json` that records why a run stopped; None, and nothing written, if its result already exists.

    It replaces the record of an earlier failure of the same run.

    Args:
        reason: One sentence.
        traceback: As Python prints it, if there is one.
        where: Epoch, step, learning rate: whatever places the failure. Numbers that are not finite become text.
        deaths: Of processes at this run, where that is why; see `has_died`.

    Raises:
        UsageError: If the folder cannot be written.
    """
    if result_path(folder, spec).exists():
        return None
    path = failure_path(folder, spec)
    record = {
        "schema": SCHEMA,
        "spec": to_plain(spec),
        "reason": reason,
        "where": {key: _as_text_if_odd(value) for key, value in (where or {}).items()},
        "traceback": traceback,
        "versions": library_versions(),
        "commit": git_commit(),
        "created": utc_now(),
        **({"deaths": deaths} if deaths else {}),
    }
    _write_json(path, record)
    return path


def has_died(folder: Path | str, spec: Spec) -> bool:
    """Whether a failure of this spec is on record that ended the process itself, and might do so again."""
    try:
        record = json.loads(failure_path(folder, spec).read_bytes())
        return bool(record["deaths"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_result(path: Path | str, spec: Spec | None = None) -> Result:
    """The result stored in a file, that of a certain run where its spec is given.

    Raises:
        UsageError: If the file is missing, is no result, or of another run, or was written by a newer promptbench.
    """
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"The result file {path} is a device or a pipe; name a file.")
            data = json.loads(file.read(), parse_constant=_refuse_constant)
    except OSError as error:
        raise UsageError(f"The result file {path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a promptbench result: it is not valid JSON ({error}).") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UsageError(
            f"{path} was written by a newer promptbench (result schema {schema}, this version reads up to {SCHEMA}); "
            "update promptbench to read it."
        )
    if type(schema) is not int or schema < 1:
        raise UsageError(f"{path} is not a promptbench result: it has no valid 'schema' number.")
    try:
        for older in range(schema, SCHEMA):
            data = {**UPGRADES[older](data), "schema": older + 1}
        result = Result(**{**data, "spec": Spec.stored(data["spec"])})
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise UsageError(f"{path} is not a valid promptbench result: {error}") from error
    if spec is not None and spec.digest != result.spec.digest:
        raise UsageError(f"{path} holds another run than its name says; move it away and run again.")
    object.__setattr__(result, "path", Path(path))
    return result


def read_results(*places: Path | str) -> list[Result]:
    """The results in files and folders, sorted by name; failures are passed over.

    Of a folder that `run` wrote to, its `results` folder is read; of any other folder, all its JSON files.

    Raises:
        UsageError: If a place does not exist or a file is not a result.
    """
    paths = set(chain.from_iterable(result_files(real_path_of(place)) for place in places))
    return sorted(map(read_result, sorted(paths)), key=lambda result: (result.name, result.created))


def find(folder: Path | str, spec: Spec) -> Path | None:
    """The file with the finished result of this spec, or None.

    Raises:
        UsageError: If the file of that name is not a result of this spec.
    """
    path = result_path(folder, spec)
    if not path.exists():
        return None
    read_result(path, spec)
    return path


def stored_results(folder: Path | str, specs: Iterable[Spec]) -> dict[str, Result]:
    """The finished results of these specs, by name; each file is read once.

    Raises:
        UsageError: A file is no result, or not of its spec.
    """
    found = {}
    for spec in specs:
        path = result_path(folder, spec)
        if path.exists():
            found[spec.name] = read_result(path, spec)
    return found


def result_path(folder: Path | str, spec: Spec) -> Path:
    """Where the result of this spec is or would be."""
    return Path(folder) / "results" / f"{spec.name}.json"


def failure_path(folder: Path | str, spec: Spec) -> Path:
    """Where the failure of this spec is or would be."""
    return Path(folder) / "results" / f"{spec.name}.failed.json"


def predictions_path(folder: Path | str, spec: Spec) -> Path:
    """Where the predictions of this spec are or would be."""
    return Path(folder) / "predictions" / f"{spec.name}.safetensors"


def find_predictions(folder: Path | str, spec: Spec) -> Path | None:
    """The file with the predictions of this spec, as it was written or compressed; None where there is none."""
    plain = predictions_path(folder, spec)
    places = (plain, plain.with_name(f"{plain.name}{PACKED}"))
    return next((path for path in places if path.is_file()), None)


def learned_path(folder: Path | str, spec: Spec) -> Path:
    """Where `results learned` keeps what this spec's run learned."""
    return Path(folder) / "learned" / f"{spec.name}.safetensors"


def find_training(folder: Path | str, result: Result) -> Path | None:
    """The file with what a run learned, as `run` or as `results learned` wrote it; None where there is none.

    Raises:
        UsageError: What the result calls the key of its training is none.
    """
    key = str(result.conditions.get("training_key") or "")
    if not key:
        return None
    if not key.isalnum():  # a digest, or else no name of a file there
        raise UsageError(f"{result.path} is not a valid promptbench result: its training_key is {key[:40]!r}.")
    places = (Path(folder) / "trainings" / f"{key[:32]}.safetensors", learned_path(folder, result.spec))
    return next((path for path in places if path.is_file()), None)


def check_writable(folder: Path | str) -> None:
    """Tries a file in the output folder, or where it would be made, so that a run fails before training, not after.

    Raises:
        UsageError: If that is impossible.
    """
    with _said_plainly(Path(folder)):
        check_room(Path(folder) / "results" / "any.json")


def result_files(place: Path) -> Iterator[str]:
    """The paths of the result files in a folder, or that of one file.

    Raises:
        UsageError: There is no such place.
    """
    if place.is_file():
        yield str(place)
    elif place.is_dir():
        top = place / "results" if (place / "results").is_dir() else place
        for folder, _, names in os.walk(top):
            yield from (
                os.path.join(folder, name)
                for name in names
                if name.endswith(".json") and not name.startswith(".") and not name.endswith(".failed.json")
            )
    else:
        raise UsageError(f"There are no results at {place}; name a folder that `promptbench run` wrote to, or a file.")


def _write_json(path: Path, data: object) -> None:
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with _said_plainly(path.parent):
        write_atomically(path, lambda file: file.write(text.encode()))


@contextlib.contextmanager
def _said_plainly(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"The output folder {folder} cannot be written ({error.strerror}); name another one with --output."
        ) from error


def _as_text_if_odd(value: object) -> object:
    try:
        return to_plain(value)
    except (TypeError, ValueError):
        return str(value)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that a result may hold")


def folder_of(result: Path | str) -> Path:
    """The folder that `run` wrote to, of a result file in it.

    Raises:
        UsageError: The file lies elsewhere.
    """
    path = Path(result).absolute()
    if len(path.parents) < 4 or path.parents[2].name != "results":
        raise UsageError(f"{result} does not lie where `run` put it; name its folder with --output.")
    return path.parents[3]
