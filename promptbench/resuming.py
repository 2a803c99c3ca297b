"""Where a training under way stands, on disk, so that one that was killed goes on from there.

    <folder>/trainings/<key>.partial    beside what finished trainings learned; gone once its own is stored

It holds everything that the next epoch depends on and neither the spec nor the data give again: learned tensors,
momentum, what the method keeps between epochs, the state of the generators, losses so far. Order and views of the
images follow from seed and epoch, the learning rate from the epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from promptbench.config import number
from promptbench.method import Method
from promptbench.storage.atomic import write_atomically

FORMAT = "promptbench partial/2"
SECONDS = 20.0  # at least, between two notes of where a training stands
CHECKSUM = "sha256"  # the last tensor, of what stands before it


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
    """

    path: Path
    key: str

    def write(self, partial: Partial) -> None:
        """Replace what is there, whole or not at all."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in partial.tensors.items()}
        tensors[CHECKSUM] = torch.zeros(hashlib.sha256().digest_size, dtype=torch.uint8)
        about = {"format": FORMAT, "key": self.key, "facts": json.dumps(dict(partial.facts))}
        data = save(tensors, metadata=about)[: -len(tensors[CHECKSUM])]
        write_atomically(self.path, lambda file: file.write(data + hashlib.sha256(data).digest()))

    def read(self) -> Partial | None:
        """What is there; None where nothing is, or it is damaged, of another training or of another format."""
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata()
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            checksum = tensors.pop(CHECKSUM).numpy().tobytes()
            if hashlib.sha256(self.path.read_bytes()[: -len(checksum)]).digest() != checksum:
                return None
            if (about["format"], about["key"]) != (FORMAT, self.key):
                return None
            facts = json.loads(about["facts"])
            if not isinstance(facts, dict) or not all(isinstance(epoch, dict) for epoch in facts.get("losses", ())):
                return None
            return Partial(tensors, facts)
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
    """All tensors that the next epoch of a training depends on: learned, momentum, the method's own, generators."""
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    for index, parameter in enumerate(parameters_of(optimizer)):
        momentum = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
        if momentum is not None:
            tensors[f"momentum.{index}"] = momentum
    tensors |= {f"kept.{name}": tensor for name, tensor in method.training_state().items()}
    tensors["generator.cpu"] = torch.get_rng_state()
    if method.backbone.device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(method.backbone.device)
    return tensors


def restore(method: Method, optimizer: torch.optim.Optimizer, found: Partial, device: torch.device) -> None:
    """Put back what `state_of` gave."""
    method.load_state_dict(found.part("method"))
    method.load_training_state({name: tensor.to(device, copy=True) for name, tensor in found.part("kept").items()})
    momentum = found.part("momentum")
    for index, parameter in enumerate(parameters_of(optimizer)):
        if str(index) in momentum:
            optimizer.state[parameter]["momentum_buffer"] = momentum[str(index)].to(parameter.device, copy=True)
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
    momentum = {str(index): _form(parameter) for index, parameter in enumerate(learned)}
    losses, images, seconds = (found.facts.get(name) for name in ("losses", "images", "seconds"))
    return (
        forms(found.part("method")) == forms(method.state_dict())
        and forms(found.part("momentum")).items() <= momentum.items()
        and forms(found.part("generator")).get("cpu") == _form(torch.get_rng_state())
        and isinstance(losses, list)
        and all(isinstance(value, (int, float)) for epoch in losses for value in epoch.values())
        and isinstance(images, int)
        and isinstance(seconds, (int, float))
    )


def forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    """Type and shape of each tensor, by its name."""
    return {name: _form(tensor) for name, tensor in tensors.items()}


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape
