"""How much a method's figure varies by data seed and by training seed apart, from stored results.

The results are those of runs with one seed fixed and the other varied, `run --data-seed 1 --seeds 1 2 3` and
`run --train-seed 1 --seeds 1 2 3`, or of every data seed with every training seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from promptbench.metrics.statistics import Components, components
from promptbench.results.result import Result
from promptbench.show.tables.rows import rows
from promptbench.show.tables.table import Row


class SeedVariance(NamedTuple):
    """Standard deviations of a figure, in its unit (percent points from 0 on); NaN where the results tell none.

    Attributes:
        method: The row's label in a table: the method and what sets it apart.
        data: Over data seeds, the training seed fixed: root of the mean variance over datasets.
        training: Over training seeds, the data seed fixed; the same.
        datasets: How many datasets tell both.
    """

    method: str
    data: float
    training: float
    datasets: int


def variance_by_seed(results: Iterable[Result], metric: str = "h") -> list[SeedVariance]:
    """The spread of a figure by data seed and by training seed, of each row for which a dataset tells both.

    Args:
        results: Of one protocol, suite and backbone.
        metric: Of their metrics, such as `h` or `base/accuracy`.
    """
    found = []
    for row in rows(results):
        both = [one for one in by_dataset(row, metric) if not (math.isnan(one.data) or math.isnan(one.training))]
        if both:
            data = math.sqrt(math.fsum(one.data for one in both) / len(both))
            training = math.sqrt(math.fsum(one.training for one in both) / len(both))
            found.append(SeedVariance(row.label, data, training, len(both)))
    return found


def by_dataset(row: Row, metric: str) -> list[Components]:
    """The variances of a row on each dataset that has the figure."""
    figures: dict[str, dict[tuple[int, int], float]] = {}
    for result in row.results:
        if metric in result.metrics:
            figures.setdefault(result.spec.dataset, {})[result.spec.seeds] = result.metrics[metric]
    return [components(of_dataset) for of_dataset in figures.values()]
