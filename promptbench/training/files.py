"""Learned tensors on disk, one safetensors file per training, shared by every run whose training key is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from promptbench.config import UsageError, number
from promptbench.method import Method
from promptbench.results.spec import Spec, expect, to_plain
from promptbench.storage.atomic import read_sealed, sealed, write_atomically, write_sealed
from promptbench.storage.versions import library_versions

FORMAT = "promptbench/1"
_CHECKSUM = "metadata_sha256"
_SAID = {"format", "sha256", "outcome", "spec", "classes", "weights_hash", _CHECKSUM}  # all that a file says of itself

PARTIAL_FORMAT = "promptbench partial/3"
SECONDS = 20.0  # at least, between two notes of where a training stands


def training_key(spec: Spec, method: type[Method] = Method) -> str:
    """Hash of everything that changes the learned tensors, of a spec that knows what its run is made of.

    Fields of the method's Config that say of themselves that they change nothing learned are left out. So is the
    version of promptbench, which a new test changes as well, where the spec has a digest of the code that trains.
    """
    versions = library_versions()
    if spec.training_code:
        versions.pop("promptbench", None)
    decisive = {**spec.training(method.Config.untrained()), "versions": versions}
    return hashlib.sha256(json.dumps(to_plain(decisive), sort_keys=True).encode()).hexdigest()


def save_training(
    path: Path, method: Method, outcome: TrainingOutcome, spec: Spec, untrained: Sequence[str] = ()
) -> None:
    """Write the learned and kept tensors, how the training went, and what it takes to use them without the data.

    The file appears whole or not at all. A checksum covers the tensors, another one all that is said of them, the
    first checksum included.

    Args:
        path: Of the file.
        method: After its training, with the classes of it.
        outcome: How that went.
        spec: Of the run.
        untrained: Names of the dataset's other classes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    names = method.class_names
    about = {
        "outcome": asdict(outcome),
        "spec": asdict(spec),
        "classes": {**names.record(), **({"untrained": list(untrained)} if untrained else {})},
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
    # seconds, which who only wants the tensors need not wait

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


def spec_of(path: Path) -> Spec:
    """The spec of the run that a training was done for.

    Raises:
        UsageError: The file cannot be read, or says no such thing.
    """
    try:
        return Spec.stored(json.loads(read_training(path)[1]["spec"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The training {path} cannot be read ({error}).") from error


def copy_training(source: Path, target: Path) -> int:
    """Copy what was learned, after a look at its checksums; the number of its bytes.

    Raises:
        UsageError: The file is damaged, or cannot be copied.
    """
    try:
        read_training(source)
        data = source.read_bytes()
        write_atomically(target, lambda file: file.write(data))
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"The training {source} cannot be copied to {target} ({error}).") from error
    return len(data)


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
    """The stored trainings in an output folder that may be that of a run, as far as its plan tells."""
    paths = sorted((folder / "trainings").glob("*.safetensors"))
    return [path for path in paths if _subject_in(path) == spec.subject()]


@cache
def _subject_in(path: Path) -> str:
    """Of the run that a training was made for, as the file says; "" where it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            return Spec.stored(json.loads(file.metadata()["spec"])).subject()
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return ""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@dataclass(frozen=True)
class Partial:
    """Where a training stands after an epoch.

    Attributes:
        tensors: By dotted name; their dtypes and bits come back as they were.
        facts: What JSON can say.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name.`, without that."""
        return {key[len(name) + 1 :]: tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}


@dataclass(frozen=True)
class PartialFile:
    """The file of a training under way; whoever reads it continues there.

    Attributes:
        path: Of the file.
        key: Of the training, which names versions of libraries too.
        check: Called before anything is written; raises where another process has taken the training over.
        written: Called after something was written.
    """

    path: Path
    key: str
    check: Callable[[], object] = lambda: None
    written: Callable[[], object] = lambda: None

    def write(self, partial: Partial) -> None:
        """Replace what is there, whole or not at all."""
        about = {"format": PARTIAL_FORMAT, "key": self.key, "facts": json.dumps(dict(partial.facts))}
        parts = sealed(partial.tensors, about)
        self.check()
        write_atomically(self.path, lambda file: write_sealed(file, parts))
        self.written()

    def read(self) -> Partial | None:
        """What is there; None where nothing is, or it is damaged, of another training or of another format."""
        try:
            tensors, about = read_sealed(self.path)
            if (about["format"], about["key"]) != (PARTIAL_FORMAT, self.key):
                return None
            facts = json.loads(about["facts"])
            if not isinstance(facts, dict) or not all(isinstance(epoch, dict) for epoch in facts.get("losses", ())):
                return None
            return Partial({name: tensor.clone() for name, tensor in tensors.items()}, facts)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
            return None

    def remove(self) -> None:
        """The training is stored, or begins anew."""
        self.path.unlink(missing_ok=True)


def partial_seconds() -> float:
    """Seconds between two notes of where a training stands, `PROMPTBENCH_PARTIAL_SECONDS` or else `SECONDS`.

    Raises:
        UsageError: It is no number from 0 on.
    """
    return number("PROMPTBENCH_PARTIAL_SECONDS", SECONDS, "seconds")


def state_of(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that the next epoch of a training depends on: learned, those of the optimiser, the method's own,
    generators."""
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    for index, parameter in enumerate(parameters_of(optimizer)):
        kept = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{index}.{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
    tensors |= {f"kept.{name}": tensor for name, tensor in method.training_state().items()}
    tensors["generator.cpu"] = torch.get_rng_state()
    if method.backbone.device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(method.backbone.device)
    return tensors


def restore(method: Method, optimizer: torch.optim.Optimizer, found: Partial, device: torch.device) -> None:
    """Put back what `state_of` gave."""
    method.load_state_dict(found.part("method"))
    method.load_training_state({name: tensor.to(device, copy=True) for name, tensor in found.part("kept").items()})
    for index, parameter in enumerate(parameters_of(optimizer)):
        for name, tensor in found.part(f"optimizer.{index}").items():
            place = parameter.device if tensor.dim() else "cpu"  # where torch counts steps
            optimizer.state[parameter][name] = tensor.to(place, copy=True)
    generators = found.part("generator")
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"], device)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimiser moves, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def resumable(partial: PartialFile | None, method: Method) -> Partial | None:
    """Where the training of this method stands; None where it begins."""
    found = partial.read() if partial is not None else None
    return found if found is not None and _fits(found, method) else None


def _fits(found: Partial, method: Method) -> bool:
    """Whether a note has the parts, shapes and facts that a training of this method leaves."""
    learned = [parameter for group in method.parameter_groups() for parameter in group["params"]]
    optimizer = found.part("optimizer").items()
    losses, images, seconds = (found.facts.get(name) for name in ("losses", "images", "seconds"))
    return (
        forms(found.part("method")) == forms(method.state_dict())
        and all(_is_of_optimizer(name, tensor, learned) for name, tensor in optimizer)
        and forms(found.part("generator")).get("cpu") == _form(torch.get_rng_state())
        and isinstance(losses, list)
        and all(isinstance(value, (int, float)) for epoch in losses for value in epoch.values())
        and isinstance(images, int)
        and isinstance(seconds, (int, float))
    )


def _is_of_optimizer(name: str, tensor: Tensor, learned: list[Tensor]) -> bool:
    """Whether this may be a moment, or the count of steps, of the learned tensor whose index the name begins with."""
    index, _, kind = name.partition(".")
    if not index.isdecimal() or int(index) >= len(learned) or not kind:
        return False
    return tensor.dim() == 0 or _form(tensor) == _form(learned[int(index)])


def forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    """Type and shape of each tensor, by its name."""
    return {name: _form(tensor) for name, tensor in tensors.items()}


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape


@dataclass(frozen=True)
class TrainingOutcome:
    """What a training leaves behind besides the learned tensors.

    Attributes:
        losses: Mean of each loss term, one mapping an epoch.
        seconds: Wall clock of the training alone.
        images_per_second: Training images seen per second.
    """

    losses: list[dict[str, float]]
    seconds: float
    images_per_second: float
