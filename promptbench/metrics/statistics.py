"""What differences between methods are worth: intervals of paired differences.

Differences are taken seed by seed on the same samples, so that what a sample does to both methods cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
