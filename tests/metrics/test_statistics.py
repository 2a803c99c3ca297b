"""Intervals and tests of paired differences equal those of scipy, and hand calculations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from promptbench.metrics.statistics import (
    components,
    critical_difference,
    friedman,
    holm,
    paired_interval,
    seeds_needed,
    smallest_p,
    wilcoxon,
)


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


@pytest.mark.parametrize("n", [1, 2, 5, 11, 25])
def test_wilcoxon_is_scipys_exact_test_where_nothing_ties(n: int) -> None:
    for seed in range(5):
        differences = np.random.default_rng(seed).normal(0.4, 1, n)
        expected = scipy.stats.wilcoxon(differences, method="exact").pvalue
        assert wilcoxon(list(differences)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "differences",
    [
        (1, 1, 1, -1, 2, 3),  # ties
        (0, 1.5, -0.5, 0, 2, 4),  # zeros
        (0, 1, 1, -1, -2, 2, 3, 0),  # both
        (0.3, -0.1, 0.2, 0.1),  # ties but for the last bits
    ],
)
def test_wilcoxon_with_ties_and_zeros_counts_every_sign_pattern(differences: tuple[float, ...]) -> None:
    kept = [round(value, 6) for value in differences if value]
    ranks = scipy.stats.rankdata(np.abs(kept))
    middle = ranks.sum() / 2
    observed = abs(sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0) - middle)
    sums = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(kept))]
    by_hand = sum(abs(one - middle) >= observed for one in sums) / len(sums)
    assert wilcoxon(differences) == by_hand
    permuted = scipy.stats.wilcoxon(kept, method=scipy.stats.PermutationMethod(n_resamples=np.inf))
    assert wilcoxon(differences) == pytest.approx(permuted.pvalue)


def test_wilcoxon_by_hand() -> None:
    assert wilcoxon([1, 2, 3, 4, 5]) == smallest_p(5) == 2 / 2**5
    # ranks 1 to 5 without 1: of 32 sums of positive ranks 0, 1, 14 and 15 lie as far out
    assert wilcoxon([-1, 2, 3, 4, 5]) == 4 / 32
    assert wilcoxon([0.1 + 0.2 - 0.3, 0.0]) == 1.0  # nothing but zeros
    assert [smallest_p(n) for n in (0, 1, 2, 11)] == [1, 1, 0.5, 2 / 2048]


def test_holm_steps_down_and_never_back() -> None:
    # in order 0.01, 0.015, 0.04, 0.2: times 4, 3, 2, 1 that is 0.04, 0.045, 0.08, 0.2
    assert holm([0.04, 0.01, 0.2, 0.015]) == pytest.approx([0.08, 0.04, 0.2, 0.045])
    # 0.02 * 3 = 0.06; 0.025 * 2 = 0.05 may not fall below 0.06
    assert holm([0.02, 0.025, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_friedman_is_scipys() -> None:
    figures = np.random.default_rng(1).normal(size=(12, 4)).round(1)  # with ties
    figures[0] = [0.5, 0.5, 0.1, 0.2]
    found = friedman(figures.tolist())
    expected = scipy.stats.friedmanchisquare(*figures.T)
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.ranks == pytest.approx(scipy.stats.rankdata(-figures, axis=1).mean(axis=0))


def test_friedman_by_hand() -> None:
    # ranks (1, 2, 3) on each of four blocks: 12 * 4 / (3 * 4) * ((1 - 2)^2 + 0 + (3 - 2)^2) = 8, p = exp(-4)
    found = friedman([[9, 8, 7]] * 4)
    assert found == ((8.0, pytest.approx(math.exp(-4)), (1.0, 2.0, 3.0)))
    assert friedman([[9, 8, 7]] * 4, lower=True).ranks == (3.0, 2.0, 1.0)
    assert friedman([[1, 1, 1]] * 4) == (0.0, 1.0, (2.0, 2.0, 2.0))


# Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006, Table 5(a), q at 0.05
DEMSAR = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize("rows", [2, 5, 10])
def test_the_critical_difference_is_that_of_demsars_table(rows: int) -> None:
    expected = DEMSAR[rows] * math.sqrt(rows * (rows + 1) / (6 * 14))
    assert critical_difference(rows, 14) == pytest.approx(expected, rel=5e-4)


def test_seeds_needed_by_hand() -> None:
    # 1, 2, 3: standard deviation 1, (2.8 * 1 / 1)^2 = 7.84; of half a point 31.36
    assert seeds_needed([1, 2, 3]) == 8
    assert seeds_needed([1, 2, 3], points=0.5) == 32
    assert seeds_needed([2.0, 2.0]) == 0
    with pytest.raises(ValueError, match="at least two"):
        seeds_needed([1.0])


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
