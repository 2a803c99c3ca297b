"""Intervals and tests of paired differences equal those of scipy."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from promptbench.metrics.statistics import paired_interval


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
