"""What a method said of every image, kept so that other figures can be computed without running it again.

    <folder>/predictions/<protocol>/<dataset>/<method[@preset]>-<hash>.safetensors

By evaluation: logits as they were measured, in float32, so that every metric can be computed again to the last bit,
labels, scores. The images' paths, the class names and the run are in the file's metadata. The file is sealed.

Files of earlier versions hold how far logits are below their row's largest in half precision (0 for the largest, so
that accuracy is exact, which calibration is not) and the largest in float32. The oldest are not sealed and name no run.

Letters: N images, K classes.
"""

from __future__ import annotations

import io
import json
import lzma
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from promptbench.config import UsageError
from promptbench.data.selection import SelectedImages
from promptbench.protocol import Outcome
from promptbench.results.result import PACKED, find_predictions, predictions_path
from promptbench.results.spec import Spec
from promptbench.storage.atomic import read_sealed, sealed, write_atomically, write_sealed

# Most of it are numbers of two bytes, whose place in a pair lp and pb tell apart.
PACKING = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lp": 1, "lc": 2, "pb": 1}
_SCORE = "score."


@dataclass(frozen=True)
class Predictions:
    """What a method said of the images of one evaluation.

    Attributes:
        images: Their paths within the dataset, N of them.
        class_names: K of them.
        logits: (N, K), float32.
        labels: (N,), int64; -1 for an image of none of the classes.
        scores: (N,) each, by name.
        exact: Whether the logits are those that were measured, not rounded to half precision.
    """

    images: tuple[str, ...]
    class_names: tuple[str, ...]
    logits: Tensor
    labels: Tensor
    scores: Mapping[str, Tensor]
    exact: bool = True


def save_predictions(
    folder: Path | str,
    spec: Spec,
    outcomes: Mapping[str, Outcome],
    images: Mapping[str, SelectedImages],
    names: Mapping[str, Sequence[str]],
) -> Path:
    """Write the predictions of a run; the file appears whole or not at all.

    Args:
        outcomes: By evaluation.
        images: That were scored, by evaluation.
        names: Of the classes that were shown, by evaluation.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, str] = {}
    for name, outcome in outcomes.items():
        tensors[f"{name}/logits"] = outcome.logits.float()
        tensors[f"{name}/labels"] = outcome.labels.int()
        tensors |= {f"{name}/{_SCORE}{score}": values for score, values in outcome.scores.items()}
        paths = [item.image for item in images[name].items]
        facts = {"place": len(about), "run": spec.name, "images": paths, "class_names": list(names[name])}
        about[name] = json.dumps(facts)
    path = predictions_path(folder, spec)
    parts = sealed(tensors, about)
    write_atomically(path, lambda file: write_sealed(file, parts))
    return path


def load_predictions(path: Path | str) -> dict[str, Predictions]:
    """The predictions of a run, by evaluation, in the order of the plan.

    Raises:
        UsageError: If there is no such file, or it holds something else, such as the predictions of another run than
            its place says, or is damaged.
    """
    try:
        with _unpacked(Path(path)) as plain:
            tensors, said = read_sealed(plain, unsealed=True)
        about = {name: json.loads(text) for name, text in said.items()}
        _check(Path(str(path).removesuffix(PACKED)), tensors, about)
        ordered = sorted(about, key=lambda name: about[name].get("place", 0))  # metadata come in no order
        return {name: _of_evaluation(name, about[name], tensors) for name in ordered}
    except FileNotFoundError as error:
        raise UsageError(
            f"The predictions {path} are not there; `promptbench run --save-predictions`, with what the run was made "
            "with, adds them."
        ) from error
    except OSError as error:
        raise UsageError(f"The predictions {path} cannot be read ({error.strerror or error}).") from error
    except (
        lzma.LZMAError,
        EOFError,
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise UsageError(
            f"{path} holds no predictions of this run, or is damaged ({error}); remove it and run again with "
            "--save-predictions."
        ) from error


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A file as it was written; of a compressed one a copy that is gone afterwards."""
    if path.suffix != PACKED:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, path.stem)
        with lzma.open(path) as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file)
        yield plain


def pack_predictions(path: Path, half: bool = False) -> Path:
    """Put a compressed file, `NAME.safetensors.xz`, in the place of one with predictions; they read the same.

    Args:
        path: As it was written.
        half: Whether logits are rounded to half precision below their row's largest, as in files of earlier versions:
            they take a third of the room, accuracy stays exact, and other metrics are off by what rounding does.

    Raises:
        UsageError: As `load_predictions`, or the folder cannot be written.
    """
    load_predictions(path)  # a damaged file would look sound afterwards
    tensors, about = read_sealed(path, unsealed=True)
    if half:
        tensors = _rounded(tensors)
    packed = path.with_name(f"{path.name}{PACKED}")
    plain = io.BytesIO()
    write_sealed(plain, sealed(tensors, about))
    data = lzma.compress(plain.getvalue(), filters=[PACKING])
    try:
        write_atomically(packed, lambda file: file.write(data))
        path.unlink()
    except OSError as error:
        raise UsageError(f"The predictions {path} cannot be packed ({error.strerror}).") from error
    return packed


def _rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file with logits in half precision below their row's largest."""
    found: dict[str, Tensor] = {}
    for name, values in tensors.items():
        evaluation, _, what = name.rpartition("/")
        if what != "logits":
            found[name] = values
            continue
        largest = values.amax(dim=1)
        below = (values - largest.unsqueeze(1)).clamp(min=torch.finfo(torch.float16).min)
        found |= {f"{evaluation}/largest": largest, f"{evaluation}/below": below.half()}
    return found


def stored_predictions(folders: Iterable[Path], spec: Spec) -> dict[str, Predictions] | None:
    """The predictions of a run, by evaluation, from the first of the folders that has them; None where none has.

    Raises:
        UsageError: As `load_predictions`.
    """
    paths = (find_predictions(folder, spec) for folder in folders)
    return next((load_predictions(path) for path in paths if path), None)


def _check(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError where a file holds what belongs to none of its evaluations, or is of another run."""
    for tensor in tensors:
        if not tensor.startswith(tuple(f"{name}/" for name in about)):  # such as a seal whose name was damaged
            raise ValueError(f"{tensor} belongs to no evaluation")
    folder, *place = path.absolute().with_suffix("").parts[-4:]
    for facts in about.values():
        if folder == "predictions" and facts.get("run", "/".join(place)) != "/".join(place):
            raise ValueError(f"they are of the run {facts['run']}")


def _of_evaluation(name: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Predictions:
    start = f"{name}/{_SCORE}"
    exact = f"{name}/logits" in tensors
    logits = tensors[f"{name}/logits"] if exact else _of_half(name, tensors)
    return Predictions(
        images=tuple(facts["images"]),
        class_names=tuple(facts["class_names"]),
        logits=logits,
        labels=tensors[f"{name}/labels"].long(),
        scores={key.removeprefix(start): values for key, values in tensors.items() if key.startswith(start)},
        exact=exact,
    )


def _of_half(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The logits (N, K) of a file of an earlier version."""
    return tensors[f"{name}/below"].float() + tensors[f"{name}/largest"].unsqueeze(1)
