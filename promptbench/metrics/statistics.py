"""What differences between methods are worth: intervals over seeds, exact tests over datasets, ranks of several rows.

Intervals: differences are taken seed by seed on the same samples, so that what a sample does to both methods cancels.
Tests: the pairs, or the blocks, are datasets; figures are means over seeds. Demsar, "Statistical Comparisons of
Classifiers over Multiple Data Sets", JMLR 2006, says why these. Figures that differ by less than the last of `DECIMALS`
are equal, so that the last bits of a floating point number break no tie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
LEVEL = 0.05
"""Below which p a difference counts."""
POWER_AND_LEVEL = 2.8
"""Standard errors between no difference and one that is found in 4 of 5 cases at `LEVEL`: 1.96 + 0.84."""
DECIMALS = 9


class Interval(NamedTuple):
    """A mean difference and the interval of its t statistic; `low` and `high` are NaN for a single difference."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.1f} (one seed)"
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def paired_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of paired differences, a seed each, and its interval by Student's t with n - 1 degrees of freedom.

    mean ± t(1 - (1 - confidence) / 2, n - 1) * s / sqrt(n), with s the standard deviation with ddof 1.

    Args:
        differences: One per seed, in the unit of the figure; at least one.
        confidence: Between 0 and 1.

    Raises:
        ValueError: There is no difference.
    """
    n = len(differences)
    if not n:
        raise ValueError("An interval needs at least one difference.")
    mean = math.fsum(differences) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    from scipy.special import stdtrit  # Student's t; `scipy.stats` takes half a second to import

    quantile = float(stdtrit(n - 1, 1 - (1 - confidence) / 2))
    half = quantile * _deviation(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation with ddof 1."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def seeds_needed(differences: Sequence[float], points: float = 1.0) -> int:
    """How many pairs of seeds would show a difference of so many points: ceil((2.8 s / points)^2).

    They show it in 4 of 5 cases, at the level 0.05, if s, the standard deviation of the differences with ddof 1, is the
    true one; from three seeds s is a rough guess.

    Args:
        differences: One per seed, in points; at least two.
        points: The difference that matters, in points.

    Raises:
        ValueError: There are fewer than two differences.
    """
    if len(differences) < 2:
        raise ValueError("How many seeds are needed follows from at least two of them.")
    return math.ceil((POWER_AND_LEVEL * round(_deviation(differences), DECIMALS) / points) ** 2)


def wilcoxon(differences: Sequence[float]) -> float:
    """The exact two-sided p of Wilcoxon's signed-rank test, from 0 to 1.

    Zero differences are left out, as Wilcoxon did, and equal ones share the mean of their ranks. p is the share of the
    2^n ways to give the n ranks a sign whose sum of positive ranks lies as far from the middle as the observed one: one
    exact distribution for all cases. Where nothing is equal or zero it is that of `scipy.stats.wilcoxon` with the
    method `exact`; otherwise that of its permutation test with every permutation.

    Args:
        differences: One per dataset.
    """
    kept = [value for value in (round(value, DECIMALS) for value in differences) if value]
    doubled = [round(2 * rank) for rank in _ranks([abs(value) for value in kept])]  # whole numbers
    total = sum(doubled)
    ways = [1] + [0] * total  # by the sum of those ranks that are positive
    for rank in doubled:
        ways = [count + (ways[place - rank] if place >= rank else 0) for place, count in enumerate(ways)]
    positive = sum(rank for rank, value in zip(doubled, kept, strict=True) if value > 0)
    tail = sum(ways[: min(positive, total - positive) + 1])
    return min(1.0, 2 * tail / 2 ** len(kept))


def smallest_p(n: int) -> float:
    """The smallest p that `wilcoxon` can give of n differences, 2/2^n."""
    return min(1.0, 2 / 2**n)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, of the smallest; equal values share the mean of theirs."""
    ordered = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(ordered, start=1)))}
    last = {value: place for place, value in enumerate(ordered, start=1)}
    return [(first[value] + last[value]) / 2 for value in values]


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several tests, corrected by Holm's method for their number, in their order.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below the one before it or exceeds
    1.
    """
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    corrected = [1.0] * len(ps)
    so_far = 0.0
    for done, place in enumerate(order):
        so_far = max(so_far, min(1.0, (len(ps) - done) * ps[place]))
        corrected[place] = so_far
    return corrected


class Friedman(NamedTuple):
    """Friedman's test of equal ranks: its statistic, chi-squared with ties corrected, its p, and the mean ranks."""

    statistic: float
    p: float
    ranks: tuple[float, ...]


def friedman(figures: Sequence[Sequence[float]], *, lower: bool = False) -> Friedman:
    """Friedman's test, and the mean rank of each row over the datasets: 1 is the best, equal figures share their ranks.

    Args:
        figures: Of each dataset, those of all rows; three rows at least.
        lower: Whether less is better.
    """
    from scipy.stats import friedmanchisquare

    sign = 1 if lower else -1
    ranks = [_ranks([sign * round(value, DECIMALS) for value in of_dataset]) for of_dataset in figures]
    by_row = list(zip(*ranks, strict=True))
    means = tuple(math.fsum(of_row) / len(of_row) for of_row in by_row)
    if all(len(set(of_dataset)) == 1 for of_dataset in ranks):
        return Friedman(0.0, 1.0, means)
    statistic, p = friedmanchisquare(*by_row)
    return Friedman(float(statistic), float(p), means)


def critical_difference(rows: int, datasets: int, level: float = LEVEL) -> float:
    """How far two mean ranks must be apart to differ, by Nemenyi: q sqrt(k (k + 1) / (6 N)), k rows and N datasets.

    q is the quantile 1 - level of the studentized range of k groups with infinitely many degrees of freedom, divided by
    the square root of 2.
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, rows, math.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * datasets))


class Components(NamedTuple):
    """Variances of a figure over seeds, in the square of its unit, with ddof 1; NaN where nothing tells one.

    Attributes:
        data: Over data seeds, the training seed fixed; pooled over training seeds. It holds the residual.
        training: Over training seeds, the data seed fixed; pooled over data seeds. It holds the residual.
        residual: What neither seed explains by itself, where every data seed was run with every training seed.
    """

    data: float
    training: float
    residual: float


def components(figures: Mapping[tuple[int, int], float]) -> Components:
    """The variance of a figure x_dt by data seed d and by training seed t apart.

    data      sum_t sum_d (x_dt - mean_d x_dt)^2 / sum_t (n_t - 1), n_t the data seeds that t was run with
    training  the same with the seeds exchanged
    residual  sum_dt (x_dt - mean_d x_dt - mean_t x_dt + mean x)^2 / ((n_d - 1) (n_t - 1))

    Args:
        figures: By (data seed, training seed); any pairs, such as one seed fixed and the other varied in turn.
    """
    data_seeds = sorted({data for data, _ in figures})
    training_seeds = sorted({training for _, training in figures})
    by_training = [[figures[d, t] for d in data_seeds if (d, t) in figures] for t in training_seeds]
    by_data = [[figures[d, t] for t in training_seeds if (d, t) in figures] for d in data_seeds]
    data, training = _pooled_variance(by_training), _pooled_variance(by_data)
    freedom = (len(data_seeds) - 1) * (len(training_seeds) - 1)
    crossed = len(figures) == len(data_seeds) * len(training_seeds)
    if not crossed or min(len(data_seeds), len(training_seeds)) < 2:
        return Components(data, training, math.nan)
    of_data = {seed: _mean(values) for seed, values in zip(data_seeds, by_data, strict=True)}
    of_training = {seed: _mean(values) for seed, values in zip(training_seeds, by_training, strict=True)}
    mean = _mean(list(figures.values()))
    left = [value - of_data[d] - of_training[t] + mean for (d, t), value in figures.items()]
    return Components(data, training, math.fsum(value**2 for value in left) / freedom)


def _pooled_variance(groups: Sequence[Sequence[float]]) -> float:
    """The variance within groups, ddof 1 in each; NaN where no group has two values."""
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return math.nan
    squares = []
    for group in groups:
        mean = _mean(group)
        squares += [(value - mean) ** 2 for value in group]
    return math.fsum(squares) / freedom


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
