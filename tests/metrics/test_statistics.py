"""Intervals and tests of paired differences equal those of scipy."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from promptbench.metrics.statistics import components, paired_interval


def test_the_interval_of_paired_differences_is_that_of_scipys_paired_t_test() -> None:
    ours, theirs = [80.1, 82.4, 79.9], [78.0, 81.0, 80.2]
    found = paired_interval([one - other for one, other in zip(ours, theirs, strict=True)])
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.mean == pytest.approx(3.2 / 3, rel=1e-12) and found.n == 3


def test_one_seed_has_no_interval() -> None:
    found = paired_interval([2.0])
    assert math.isnan(found.low) and str(found) == "+2.0 (one seed)"
    with pytest.raises(ValueError, match="at least one"):
        paired_interval([])


def test_variances_by_data_seed_and_by_training_seed_are_those_of_a_hand_calculation() -> None:
    """Squares within training seeds are 8 and 18, within data seeds 0.5 and 4.5, of what is left 4 times 0.25."""
    found = components({(1, 1): 80.0, (2, 1): 84.0, (1, 2): 81.0, (2, 2): 87.0})
    assert found == pytest.approx((26 / 2, 5 / 2, 1.0), rel=1e-12)


def test_one_seed_fixed_and_the_other_varied_in_turn_is_enough() -> None:
    """Data seeds 1 to 3 at training seed 1: 80, 82, 87 have mean 83; training seeds 1 and 2 at data seed 1: 80, 81."""
    found = components({(1, 1): 80.0, (2, 1): 82.0, (3, 1): 87.0, (1, 2): 81.0})
    assert (found.data, found.training) == pytest.approx(((9 + 1 + 16) / 2, 0.5), rel=1e-12)
    assert math.isnan(found.residual)


def test_seeds_that_vary_together_tell_no_variance_apart() -> None:
    assert all(map(math.isnan, components({(1, 1): 80.0, (2, 2): 84.0})))
    assert all(map(math.isnan, components({})))
