"""The spread of a figure by data seed and by training seed, from stored results."""

from __future__ import annotations

import math

import pytest

from promptbench.results.result import Result, Spec
from promptbench.show.evidence.variance import variance_by_seed


def result(h: float, seeds: tuple[int, int], dataset: str = "dtd", method: str = "coop") -> Result:
    spec = Spec(
        suite="clip11",
        protocol="base2new",
        dataset=dataset,
        method=method,
        shots=16,
        data_seed=seeds[0],
        train_seed=seeds[1],
        backbone="b",
        threads=1,
    )
    return Result(spec=spec, conditions={}, metrics={"h": h}, versions={}, commit="", created="")


def test_the_variances_of_datasets_are_averaged_before_the_root() -> None:
    """dtd: 80, 84 by data seed (8), 80, 81 by training seed (0.5); pets: 90, 92 (2) and 90, 93 (4.5)."""
    dtd = [result(80, (1, 1)), result(84, (2, 1)), result(81, (1, 2))]
    pets = [result(90, (1, 1), "pets"), result(92, (2, 1), "pets"), result(93, (1, 2), "pets")]
    only_together = [result(70, (1, 1), "cars"), result(72, (2, 2), "cars")]
    others = [result(60, (1, 1), method="maple"), result(62, (2, 2), method="maple")]
    (found,) = variance_by_seed([*dtd, *pets, *only_together, *others])
    assert (found.method, found.datasets) == ("CoOp", 2)
    assert (found.data, found.training) == pytest.approx((math.sqrt((8 + 2) / 2), math.sqrt((0.5 + 4.5) / 2)))
