"""The rows of base-to-new results with their figures seed by seed, averaged over datasets, as pages compare them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from statistics import fmean

from promptbench import registry
from promptbench.config import UsageError
from promptbench.metrics.statistics import Interval, paired_interval
from promptbench.results.knowledge import most_told, text_prior
from promptbench.results.result import Result
from promptbench.show.plots.source import Source, read_source
from promptbench.show.tables.formats.texts import RECONSTRUCTED, Texts, laid_out, seeds_text
from promptbench.show.tables.rows import rows
from promptbench.show.tables.show import Question
from promptbench.show.tables.table import Row, Seed

PROTOCOL = "base2new"
PRIORS = (
    "Text prior: what a row was told of the words around class names. generic: nothing of a dataset; dataset: its "
    "template; ensemble: several. Rows compare within one."
)


@dataclass(frozen=True)
class Averaged:
    """A row of the table and its metrics.

    Attributes:
        row: Method and configuration.
        datasets: Those that figures are averaged over.
    """

    row: Row
    datasets: tuple[str, ...]

    @property
    def label(self) -> str:
        """The row's name with the mark of a reconstruction."""
        return self.row.label + RECONSTRUCTED[0] * self.row.reconstructed

    @property
    def trained(self) -> bool:
        """Whether anything is learned."""
        return any(result.spec.recipe for result in self.row.results)

    @cached_property
    def text_prior(self) -> str:
        """What it was told of the words around class names, one of `TEXT_PRIORS`."""
        return most_told(map(text_prior, self.row.results))

    def alike(self, others: Iterable[Averaged]) -> Averaged | None:
        """The first of others that learns nothing and was told as much: zero-shot of the same text prior."""
        return next((one for one in others if not one.trained and one.text_prior == self.text_prior), None)

    @cached_property
    def _metrics(self) -> dict[Seed, dict[str, Mapping[str, float]]]:
        found: dict[Seed, dict[str, Mapping[str, float]]] = {}
        for result in self.row.results:
            found.setdefault(result.spec.seeds, {})[result.spec.dataset] = result.metrics
        return found

    def by_seed(self, metric: str) -> dict[Seed, float]:
        """The mean over datasets of each seed that has the metric on all of them; `h` is that of the means."""
        if metric == "h":
            base, new = self.by_seed("base/accuracy"), self.by_seed("new/accuracy")
            return {seed: 2 * base[seed] * new[seed] / (base[seed] + new[seed]) for seed in base if seed in new}
        return {
            seed: fmean(of[name][metric] for name in self.datasets)
            for seed, of in sorted(self._metrics.items())
            if all(metric in of.get(name, {}) for name in self.datasets)
        }

    def mean(self, metric: str) -> float | None:
        """The mean over seeds; None where there is none."""
        values = self.by_seed(metric)
        return fmean(values.values()) if values else None

    def values(self, metric: str) -> list[float]:
        """The metric of every run that has it."""
        return [result.metrics[metric] for result in self.row.results if metric in result.metrics]


def averaged(question: Question, metric: str) -> tuple[Source, list[Averaged], list[str]]:
    """The results asked for, the rows that have a metric on every dataset, and the names of the others.

    Of a run that is there with a temperature and without, the first counts, which has the figures of both.

    Raises:
        UsageError: There are no results, none of them with the metric, or they are of several suites or backbones.
    """
    source = read_source(question.places, PROTOCOL, question.methods, question.datasets)
    results = with_temperature(source.results)
    present = {result.spec.dataset for result in results}
    ordered = [name for name in dict.fromkeys(source.datasets) if name in present]
    datasets = (*ordered, *sorted(present - {*ordered}))
    found = [Averaged(row, datasets) for row in rows(results, source.methods)]
    shown = [one for one in found if one.by_seed(metric)]
    if not shown:
        raise UsageError(
            f"No {PROTOCOL} results in {', '.join(map(str, question.places))} have {metric} on all of "
            f"{', '.join(datasets)}; make some with `promptbench run`."
        )
    return source, shown, [one.label for one in found if one not in shown]


def with_temperature(results: Iterable[Result]) -> list[Result]:
    """The results without those that are there again with a temperature."""
    found: dict[str, Result] = {}
    for result in sorted(results, key=lambda result: result.spec.temperature):
        plain = {**result.spec.naming(), "temperature": False}
        found[repr(sorted(plain.items()))] = result
    return list(found.values())


def paired(first: Mapping[Seed, float], second: Mapping[Seed, float]) -> Interval | None:
    """The first minus the second on the seeds that both have; None where they share none."""
    both = [first[seed] - second[seed] for seed in first if seed in second]
    return paired_interval(both) if both else None


def said(interval: Interval | None) -> str:
    """An interval in a table, a dash where there is none."""
    return "–" if interval is None else str(interval)


def number(value: float | None, digits: int = 1) -> str:
    """A figure in a table, a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def section(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown under its title; the first two columns hold words."""
    text = Texts(list(head), [[list(row) for row in body]], [])
    return "\n".join(laid_out(title, text, names=2))


def conditions(source: Source, shown: Sequence[Averaged], left_out: Sequence[str]) -> str:
    """What a reader has to know of the figures: on what, over how many seeds, and what is not among them."""
    results = list(chain.from_iterable(one.row.results for one in shown))
    first = results[0].spec
    seeds = sorted({result.spec.seeds for result in results})
    titles = registry.titles("datasets", shown[0].datasets)
    parts = [
        f"{PROTOCOL} on {first.suite}, backbone {first.backbone}, mean over {', '.join(titles.values())}, "
        f"seeds {seeds_text(seeds, ', ')}.",
        "Intervals: 95 %, Student's t over differences of seeds (ddof 1).",
    ]
    if len({one.text_prior for one in shown}) > 1:
        parts.append(PRIORS)
    if left_out:
        parts.append(f"Without these figures on every dataset: {', '.join(left_out)}.")
    if any(one.row.reconstructed for one in shown):
        parts.append(f"{RECONSTRUCTED[0]} {RECONSTRUCTED[1]}.")
    if source.suite is not None and source.suite.note:
        parts.append(f"{source.suite.note[:1].upper()}{source.suite.note[1:]}.")
    return "\n\n".join(parts)


def tables(results: Iterable[Result]) -> Iterator[tuple[str, list[Result]]]:
    """The results of each protocol, suite and backbone, with what they are of."""
    by_table: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        spec = result.spec
        by_table.setdefault((spec.protocol, spec.suite, spec.backbone), []).append(result)
    for (protocol, suite, backbone), found in sorted(by_table.items()):
        yield f"{protocol} on {suite}, backbone {backbone}", found
