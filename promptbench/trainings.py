"""Learned tensors on disk, one safetensors file per training, shared by every run whose training key is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from promptbench.method import Method
from promptbench.registry import method_code
from promptbench.results.spec import Spec, expect
from promptbench.resuming import forms
from promptbench.storage.atomic import write_atomically
from promptbench.storage.versions import library_versions

if TYPE_CHECKING:
    from promptbench.training import TrainingOutcome

FORMAT = "promptbench/1"
_CHECKSUM = "metadata_sha256"
_SAID = {"format", "sha256", "outcome", "spec", "classes", "weights_hash", _CHECKSUM}  # all that a file says of itself


def training_key(spec: Spec, facts: Mapping[str, Any]) -> str:
    """Hash of everything that changes the learned tensors.

    Args:
        spec: Of the run.
        facts: What the data and the weights add: digests of the sample, of the class names, of the weights, and the
            classes that are trained on.
    """
    decisive = {
        "method": spec.method,
        "plugin": spec.plugin,
        "code": method_code(spec.method),
        "config": spec.config,
        "recipe": {key: value for key, value in spec.recipe.items() if key != "origin"},
        "dataset": [spec.dataset_plugin or spec.dataset, spec.dataset_options],
        "seeds": spec.seeds,
        "sampler": [spec.sampler, spec.shots],
        "numerics": [spec.precision, spec.threads, spec.device],
        **({"deterministic": True} if spec.deterministic else {}),
        "versions": library_versions(),
        "facts": dict(facts),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def save_training(path: Path, method: Method, outcome: TrainingOutcome, spec: Spec) -> None:
    """Write the learned tensors, how the training went, and what it takes to use them without the data.

    The file appears whole or not at all. A checksum covers the tensors, another one all that is said of them, the
    first checksum included.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    names = method.class_names
    about = {
        "outcome": asdict(outcome),
        "spec": asdict(spec),
        "classes": {"names": list(names), "template": names.template},
        "weights_hash": method.backbone.weights_hash,
    }
    said = {"format": FORMAT, "sha256": digest(tensors), **{key: json.dumps(value) for key, value in about.items()}}
    data = save(tensors, metadata={**said, _CHECKSUM: _metadata_digest(said)})
    write_atomically(path, lambda file: file.write(data))


def load_training(path: Path, method: Method) -> TrainingOutcome | None:
    """Load learned tensors into a method made for the same spec; None, and the method untouched, if there are none, or
    the file is damaged or of another format."""
    if not path.exists():
        return None
    try:
        tensors, about = read_training(path)
        outcome = _read_outcome(about["outcome"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return None
    if forms(tensors) != forms(method.state_dict()):
        return None
    method.load_state_dict(tensors)
    return outcome


def _read_outcome(text: str) -> TrainingOutcome:
    """How a training went, from JSON; raises TypeError or ValueError where it says no such thing."""
    from promptbench.training import TrainingOutcome  # seconds, which who only wants the tensors need not wait

    outcome = TrainingOutcome(**json.loads(text))
    expect(outcome.losses, list, "losses")
    for epoch in outcome.losses:
        expect(epoch, dict, "the losses of an epoch")
    for name in ("seconds", "images_per_second"):
        expect(getattr(outcome, name), (int, float), name)
    return outcome


def read_training(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The learned tensors of a file, and what it says of them.

    Raises:
        SafetensorError, OSError, ValueError: It cannot be read, is of another format, or its bytes have changed since
            they were written, as far as it says what they were.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if about.get("format", FORMAT) != FORMAT:
            raise ValueError(f"it is of the format {about['format']}, and this version reads {FORMAT}")
        check_metadata(about)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if about.get("sha256", digest(tensors)) != digest(tensors):
        raise ValueError("its tensors are not those that were written")
    return tensors, about


def check_metadata(about: Mapping[str, str]) -> None:
    """Raises ValueError where what a file says of its tensors is not what was written.

    Files of earlier versions have no checksum of that. They have no other keys either, so that a checksum whose own
    name was damaged is noticed.
    """
    if not about.keys() <= _SAID or about.get(_CHECKSUM, _metadata_digest(about)) != _metadata_digest(about):
        raise ValueError("what it says of its tensors is not what was written")


def _metadata_digest(about: Mapping[str, str]) -> str:
    """SHA-256 of all that is said, in the order of its names, except for this digest itself."""
    said = sorted((name, text) for name, text in about.items() if name != _CHECKSUM)
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def stored_for(folder: Path, spec: Spec) -> list[Path]:
    """The stored trainings in an output folder that may be that of a run: those that its method, config, data and seeds
    have in common."""
    paths = sorted((folder / "trainings").glob("*.safetensors"))
    return [path for path in paths if _subject_in(path) == _subject(asdict(spec))]


@cache
def _subject_in(path: Path) -> str:
    """Of the run that a training was made for, as the file says; "" where it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            return _subject(json.loads(file.metadata()["spec"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return ""


def _subject(spec: Mapping[str, Any]) -> str:
    """What the specs of runs with the same training have in common, and those of few others."""
    names = ("method", "config", "shots", "data_seed", "train_seed", "backbone", "device")
    data = spec.get("dataset_plugin") or spec.get("dataset")
    return json.dumps([data, *map(spec.get, names)], sort_keys=True)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
