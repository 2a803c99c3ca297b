"""What differences between methods are worth: intervals of paired differences.

Differences are taken seed by seed on the same samples, so that what a sample does to both methods cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


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
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1))
    half = float(t.ppf(1 - (1 - confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


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
