"""Paired bootstrap: how far a difference between two methods would move with other images or other seeds.

Images are resampled with replacement, the same ones for both sides; so are seeds. What an image contributes takes few
values (right or wrong on either side, summed over seeds), so instead of images the numbers of images with each value
are drawn, from the multinomial that resampling images amounts to: the same distribution, at a cost that does not grow
with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Figure = Callable[[Mapping[str, float]], float | None]

RESAMPLES, SEED, LEVEL = 10_000, 0, 95
_QUANTILES = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)


def over_images(right: Mapping[str, tuple[Floats, Floats]], figure: Figure | None) -> Interval | None:
    """Percentile interval of B minus A over images, those of each evaluation resampled apart.

    Args:
        right: By evaluation, for each of its images (N,), in the same order, in how many percent of the seeds A, and
            B, recognised it: 0 to 100.
        figure: Accuracies by name of the metric to the figure compared; None for the accuracy of the only evaluation.
    """
    generator = np.random.default_rng(SEED)
    drawn = {f"{name}/accuracy": _accuracies(*of_images, generator) for name, of_images in sorted(right.items())}
    if figure is None:
        ((a, b),) = drawn.values()
        return _interval(b - a)
    a, b = (_figures({key: values[side] for key, values in drawn.items()}, figure) for side in (0, 1))
    return _interval(b - a)


def over_seeds(count: int, difference: Callable[[tuple[int, ...]], float | None]) -> Interval | None:
    """Percentile interval of B minus A over seeds.

    Args:
        count: Of seeds.
        difference: The positions of the seeds drawn, in order and possibly repeated, to B minus A of those.
    """
    kinds, times = _draws(count)
    values = [difference(kind) for kind in kinds]
    if any(value is None for value in values):
        return None
    return _interval(np.repeat(np.array(values, dtype=np.float64), times))


@cache
def _draws(count: int) -> tuple[list[tuple[int, ...]], NDArray[np.intp]]:
    """The different draws of so many seeds, 10 of three and 126 of five, and how often each was drawn."""
    drawn = np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))
    kinds, times = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    return [tuple(map(int, kind)) for kind in kinds], times


def _figures(drawn: Mapping[str, Floats], figure: Figure) -> Floats:
    """The figure of every resample; not a number where there is none."""
    of_draws = zip(*(values.tolist() for values in drawn.values()), strict=True)
    values = [figure(dict(zip(drawn, draw, strict=True))) for draw in of_draws]
    return np.array([np.nan if value is None else value for value in values])


def _accuracies(a: Floats, b: Floats, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Accuracies of both sides in percent, one per resample."""
    pairs, counts = np.unique(np.stack([a, b], axis=1), axis=0, return_counts=True)
    drawn = generator.multinomial(len(a), counts / len(a), size=RESAMPLES)  # (RESAMPLES, kinds of images)
    means = drawn @ pairs / len(a)
    return means[:, 0], means[:, 1]


def _interval(differences: Floats) -> Interval | None:
    if not np.isfinite(differences).all():
        return None
    ordered = np.sort(differences, kind="stable")  # fast where few values repeat; np.percentile is not
    places = [quantile / 100 * (len(ordered) - 1) for quantile in _QUANTILES]
    low, high = np.interp(places, np.arange(len(ordered)), ordered)
    return float(low), float(high)
