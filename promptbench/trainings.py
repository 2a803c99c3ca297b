"""Learned tensors on disk, one safetensors file per training, shared by every run whose training key is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from promptbench.cache import write_atomically
from promptbench.method import Method
from promptbench.provenance import library_versions
from promptbench.spec import Spec

if TYPE_CHECKING:
    from promptbench.training import TrainingOutcome

FORMAT = "promptbench/1"


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
        "config": spec.config,
        "recipe": {key: value for key, value in spec.recipe.items() if key != "origin"},
        "dataset": [spec.dataset_plugin or spec.dataset, spec.dataset_options],
        "seeds": spec.seeds,
        "sampler": [spec.sampler, spec.shots],
        "numerics": [spec.precision, spec.threads, spec.device],
        "versions": library_versions(),
        "facts": dict(facts),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def save_training(path: Path, method: Method, outcome: TrainingOutcome, spec: Spec) -> None:
    """Write the learned tensors, how the training went, and what it takes to use them without the data.

    The file appears whole or not at all.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    names = method.class_names
    about = {
        "outcome": asdict(outcome),
        "spec": asdict(spec),
        "classes": {"names": list(names), "template": names.template},
        "weights_hash": method.backbone.weights_hash,
    }
    data = save(tensors, metadata={"format": FORMAT, **{key: json.dumps(value) for key, value in about.items()}})
    write_atomically(path, lambda file: file.write(data))


def load_training(path: Path, method: Method) -> TrainingOutcome | None:
    """Load learned tensors into a method made for the same spec; None if there are none, or the file is damaged."""
    from promptbench.training import TrainingOutcome  # seconds, which who only wants the tensors need not wait

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            outcome = json.loads(file.metadata()["outcome"])
        method.load_state_dict(tensors)
        return TrainingOutcome(**outcome)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError):
        return None
