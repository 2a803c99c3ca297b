"""The learning rate of every epoch or step is that of the official schedules: cosine, some after a constant warm-up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import promptbench as pb
from promptbench import registry
from promptbench.clip.image_tower import ImageFeatures
from promptbench.data.batches import EpochOrder, FeatureBatches
from promptbench.recipe import LENGTHS, find_recipe
from promptbench.training.fit import fit, learning_rate

ADAPTERS = json.loads((Path(__file__).parent / "lr_schedule_adapters.json").read_text())
BY_STEP = ("clip_lora", "tip_adapter_f")
BY_EPOCH = {"clap": (0.1, 1), "mma": (0.0015, 0), "taskres": (0.002, 1)}  # rate and epochs of warm-up
SCHEDULES = json.loads((Path(__file__).parent / "lr_schedule_dassl.json").read_text())
BASE = {"maxep50_lr0.002_warm1": 0.002, "maxep50_lr0.035_warm1": 0.035, "maxep50_lr0.0035_warm1": 0.0035}


def test_every_stored_schedule_is_checked() -> None:
    assert set(SCHEDULES) == set(BASE)


@pytest.mark.parametrize("name", BASE)
def test_learning_rate_equals_the_reference(name: str) -> None:
    stored = SCHEDULES[name]["lr_per_epoch"]
    rates = [learning_rate(BASE[name], epoch, 50, warmup_epochs=1, warmup_lr=1e-5) for epoch in range(50)]
    assert rates == pytest.approx(stored, rel=1e-9)
    left = learning_rate(BASE[name], 50, 50, warmup_epochs=1, warmup_lr=1e-5)
    assert left == pytest.approx(SCHEDULES[name]["lr_left_after_last_step"], rel=1e-9)


def test_two_epochs_are_one_of_warm_up_and_one_at_the_full_rate() -> None:
    """MaPLe's cross-dataset recipe: the period of the cosine is the number of all epochs."""
    rates = [learning_rate(0.0026, epoch, 2, warmup_epochs=1, warmup_lr=1e-5) for epoch in range(2)]
    assert rates == pytest.approx([1e-5, 0.0026], rel=1e-12)


# Of the adapters' authors --------------------------------------------------------------------------------------------


def rates_of(recipe: pb.Recipe, backbone: pb.Backbone, steps_per_epoch: int) -> list[float]:
    """The rate of every step of a real training."""
    found: list[float] = []
    method = pb.create_method("coop", backbone, ["owl", "hawk"])
    features = ImageFeatures(torch.ones(4 * steps_per_epoch, backbone.embed_dim))
    batches = FeatureBatches(features, [0, 1] * 2 * steps_per_epoch, 4, EpochOrder(4 * steps_per_epoch, 1))
    fit(method, recipe, batches, steps_per_epoch, seed=1, logger=lambda _, figures: found.append(figures["lr"]))
    return found


def recipe_of(method: str, **changes: Any) -> pb.Recipe:
    """The authors' recipe for few shots, with another length."""
    found = find_recipe(registry.load("methods", method), "few_shot", "dtd")
    return replace(found, epochs_at={}, **dict.fromkeys(LENGTHS, 0) | changes)


def test_every_stored_schedule_of_an_adapter_is_checked() -> None:
    assert set(ADAPTERS) == {"unit", *BY_STEP, *BY_EPOCH}


@pytest.mark.parametrize(("name", "steps_per_epoch"), [("clip_lora", 7), ("tip_adapter_f", 5)])
def test_rates_of_steps_equal_the_reference(name: str, steps_per_epoch: int, tiny: pb.Backbone) -> None:
    if name not in registry.names("methods"):
        pytest.skip("the method is not there")
    stored = ADAPTERS[name]["per_step"]
    length = {"steps": 24} if name == "clip_lora" else {"epochs": 4}
    assert rates_of(recipe_of(name, **length), tiny, steps_per_epoch) == pytest.approx(stored, rel=1e-9)


@pytest.mark.parametrize("name", BY_EPOCH)
def test_rates_of_epochs_equal_the_reference(name: str, tiny: pb.Backbone) -> None:
    stored = ADAPTERS[name]["per_epoch"]
    first, warmup = BY_EPOCH[name]
    rates = [learning_rate(first, epoch, len(stored), warmup_epochs=warmup) for epoch in range(len(stored))]
    assert rates == pytest.approx(stored, rel=1e-9)
    if name in registry.names("methods"):
        recipe = recipe_of(name, epochs=len(stored))
        assert (recipe.lr, recipe.warmup_epochs, recipe.schedule, recipe.lr_end) == (first, warmup, "epoch", 0)


def test_rates_of_mma_s_training_equal_the_reference(tiny: pb.Backbone) -> None:
    rates = rates_of(recipe_of("mma", epochs=5), tiny, 2)
    assert rates[::2] == rates[1::2] == pytest.approx(ADAPTERS["mma"]["per_epoch"], rel=1e-9)
