"""The key that trainings are shared by, and the checksum of their tensors, change with all that they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from promptbench.results.spec import Spec
from promptbench.training import files

SPEC = Spec(
    suite="mini",
    protocol="base2new",
    dataset="birds",
    method="coop",
    shots=4,
    data_seed=1,
    train_seed=1,
    backbone="mini",
    threads=1,
)


def test_a_training_is_known_by_its_settings_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    key = files.training_key(SPEC)
    assert files.training_key(replace(SPEC)) == key
    assert files.training_key(replace(SPEC, train_seed=2)) != key
    assert files.training_key(replace(SPEC, data_seed=2)) != key
    monkeypatch.setattr(files, "library_versions", lambda: {"torch": "0"})
    assert files.training_key(SPEC) != key


def test_a_digest_covers_names_types_shapes_and_bytes() -> None:
    tensors = {"ctx": torch.tensor([1.0, 2.0]), "proj": torch.tensor([3.0, 4.0])}
    digest = files.digest(tensors)
    assert files.digest(dict(reversed(tensors.items()))) == digest
    others = [
        {"ctx": tensors["ctx"], "bias": tensors["proj"]},
        {"ctx": tensors["proj"], "proj": tensors["ctx"]},
        {**tensors, "ctx": tensors["ctx"].view(torch.int32)},
        {**tensors, "ctx": tensors["ctx"].reshape(2, 1)},
        {**tensors, "ctx": torch.tensor([1.0, 2.5])},
    ]
    assert len({digest, *map(files.digest, others)}) == 1 + len(others)
