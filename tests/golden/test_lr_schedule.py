"""The learning rate of every epoch is that of the official schedule: cosine after one constant warm-up epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptbench.training.fit import learning_rate

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
