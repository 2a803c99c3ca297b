"""The key that trainings are shared by, and the checksums of their files, change with all that they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from promptbench.methods.mutual import Mutual

import promptbench as pb
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


def test_another_version_of_promptbench_trains_again_only_where_its_code_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = replace(SPEC, training_code="3.11:ab")
    keys = files.training_key(SPEC), files.training_key(known)
    versions = files.library_versions()
    monkeypatch.setattr(files, "library_versions", lambda: {**versions, "promptbench": "99.0"})
    assert files.training_key(SPEC) != keys[0] and files.training_key(known) == keys[1]
    assert files.training_key(replace(known, training_code="3.11:cd")) != keys[1]


def test_fields_that_change_nothing_learned_share_a_training() -> None:
    own = replace(SPEC, method="mutual", config={"n_visual": 4, "tvp_text": "own", "tvp_strength": 1.0})
    mean = replace(own, config={**own.config, "tvp_text": "mean", "tvp_strength": 0.5})
    assert files.training_key(own, Mutual) == files.training_key(mean, Mutual)
    assert files.training_key(own, Mutual) != files.training_key(replace(own, config={"n_visual": 2}), Mutual)
    assert files.training_key(own) != files.training_key(mean)
    assert own.subject(Mutual.Config.untrained()) == mean.subject(Mutual.Config.untrained()) and own.name != mean.name


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


def test_a_stored_training_is_loaded_as_long_as_no_tensor_has_changed(tiny: pb.Backbone, tmp_path: Path) -> None:
    path, outcome = tmp_path / "a.safetensors", files.TrainingOutcome([{"ce": 0.5}], 2.0, 8.0)
    trained, other = (pb.create_method("coop", tiny, ["owl", "hawk"], seed=seed, ctx_init="") for seed in (1, 2))
    files.save_training(path, trained, outcome, SPEC)
    assert files.load_training(path, other) == outcome and torch.equal(other.ctx, trained.ctx)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the last number
    untouched = pb.create_method("coop", tiny, ["owl", "hawk"], seed=3, ctx_init="")
    before = untouched.ctx.detach().clone()
    assert files.load_training(path, untouched) is None and torch.equal(untouched.ctx, before)
