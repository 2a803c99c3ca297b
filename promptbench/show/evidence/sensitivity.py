"""How much of a figure is the setting, the sample, the training or the halves of the classes, from stored files.

Settings: the reports of `promptbench tune --report`, whose trials are judged by H of pseudo-base and pseudo-new
classes, halves of the base classes, without a test image or a new class. A method that scores the classes of its
training alone is judged by pseudo-base accuracy.
Seeds: results of several seeds. Halves: results of base-to-new with other halves than the alphabetical ones.

The places of the question are folders of results, and reports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, overrides, path_of
from promptbench.metrics.classification import harmonic_mean
from promptbench.metrics.statistics import Interval, paired_interval
from promptbench.results.result import Result, read_results
from promptbench.show.evidence.averages import tables
from promptbench.show.evidence.variance import variance_by_seed
from promptbench.show.tables.formats.texts import Texts, laid_out, rounded
from promptbench.show.tables.rows import rows
from promptbench.show.tables.show import Question, uncollected
from promptbench.show.tables.table import Row
from promptbench.suite import ALPHABETICAL

H, BASE = "h", "pseudo_base"  # what a trial is judged by
NAN = "–"

GRID = ("method", "points", "best", "median", "worst", "best - median", "best - worst", "best settings", "report")
SEEDS = ("method", "data seed", "training seed", "both together", "sets")
OF_GRIDS = (
    "Figures are in percent from 0 to 100, more is better, differences in points from 0 on, less is better: so much "
    "hangs on the setting. `best` is judged by the images that chose it, so it looks a little better than it is.",
)
OF_SEEDS = (
    "Standard deviations of H in points from 0 on, less is better (ddof 1, root of the mean variance over sets): over "
    "data seeds, which draw the sample, with the training seed fixed; over training seeds, which draw first values and "
    "order, with the data seed fixed; and over seeds where both change together, as in the tables.",
    "Runs that tell the first two apart: `run --data-seed 1 --seeds 1 2 3` and `run --train-seed 1 --seeds 1 2 3`.",
)
OF_HALVES = (
    "H in percent from 0 to 100, more is better: of accuracies averaged over sets, then over seeds. The difference is "
    "in points from -100 to +100, above 0 where the alphabetical halves are the easier ones, with the 95 % interval of "
    "Student's t over the random halves, each subtracted.",
)


@dataclass(frozen=True)
class Grid:
    """What tuning tried of a method.

    Attributes:
        label: The method.
        report: The file's stem.
        about: Suite, shots, sets and seeds that it was tried on.
        judged_by: `h` or `pseudo_base`.
        figures: Percent, the best first.
        best: The settings of the best.
    """

    label: str
    report: str
    about: str
    judged_by: str
    figures: tuple[float, ...]
    best: str

    @property
    def name(self) -> str:
        """What tables call the method."""
        method = self.label.partition("@")[0]
        return Row(self.label, "", (), registry.titles("methods", [method])[method]).label

    @property
    def gain(self) -> float:
        """The best minus the median, in points."""
        return self.figures[0] - median(self.figures)

    @property
    def span(self) -> float:
        """The best minus the worst, in points."""
        return self.figures[0] - self.figures[-1]


def page(question: Question) -> str:
    """The page as Markdown.

    Raises:
        UsageError: There is neither a report nor a result that says anything of this.
    """
    grids, places = read_places(question.places)
    with uncollected():
        stored = read_results(*places)
    results = [result for result in stored if H in result.metrics]
    if question.methods:
        grids = [grid for grid in grids if grid.label in question.methods]
        results = [result for result in results if result.spec.label in question.methods]
    if question.datasets:
        results = [result for result in results if result.spec.dataset in question.datasets]
    sections = [*sections_of_grids(grids), *sections_of_seeds(results), *sections_of_halves(results)]
    if not sections:
        raise UsageError(
            f"Nothing in {', '.join(map(str, question.places))} says how figures vary; name a report of `promptbench "
            "tune --report` with --results, or a folder with results of several seeds."
        )
    return "\n".join(["# Sensitivity", "", finding(grids, results), *sections]) + "\n"


def read_places(places: Iterable[str | Path]) -> tuple[list[Grid], list[Path]]:
    """The grids in the places that are reports, and the other places."""
    grids: list[Grid] = []
    others: list[Path] = []
    for place in map(path_of, places):
        searches = read_report(place) if place.is_file() else None
        if searches is None:
            others.append(place)
        else:
            grids += [grid_of(search, place) for search in searches]
    return grids, others


def read_report(path: Path) -> list[Any] | None:
    """The searches that a file reports; None where it is no report, but a result or anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, list) else None


def grid_of(search: Any, path: Path) -> Grid:
    """What a report says of one method.

    Raises:
        UsageError: It is no report of `promptbench tune`.
    """
    try:
        trials = [trial for trial in search["trials"] if BASE in trial]
        judged_by = H if all(H in trial for trial in trials) else BASE
        ordered = sorted(trials, key=lambda trial: -trial[judged_by])
        seeds = [data if data == training else f"{data}/{training}" for data, training in search["seeds"]]
        shots = "all images" if search["shots"] is None else f"{search['shots']} shots"
        about = f"{search['protocol']} on {search['suite']}, {shots}, {', '.join(sorted(search['datasets']))}"
        about += f", seed {', '.join(map(str, seeds))}"
        figures = tuple(float(trial[judged_by]) for trial in ordered)
        return Grid(search["label"], path.stem, about, judged_by, figures, overrides(ordered[0]["settings"]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"{path} is no report of `promptbench tune` ({type(error).__name__}: {error}).") from error


def sections_of_grids(grids: Sequence[Grid]) -> Iterator[str]:
    """The lines of tables of best, median and worst points, those judged by H first."""
    for judged_by, called in ((H, "pseudo-new H"), (BASE, "pseudo-base accuracy, of methods without new classes")):
        chosen = [grid for grid in grids if grid.judged_by == judged_by]
        for about in dict.fromkeys(grid.about for grid in chosen):
            lines = [line_of(grid) for grid in chosen if grid.about == about]
            yield from ("", *laid_out(f"Settings, by {called}: {about}", Texts(list(GRID), [lines], []), 1))
    if grids:
        yield from chain.from_iterable(("", remark) for remark in OF_GRIDS)


def line_of(grid: Grid) -> list[str]:
    """A line of a grid's table."""
    figures = (grid.figures[0], median(grid.figures), grid.figures[-1], grid.gain, grid.span)
    return [grid.name, str(len(grid.figures)), *map(rounded, figures), grid.best, grid.report]


def sections_of_seeds(results: Sequence[Result]) -> Iterator[str]:
    """The lines of tables of spreads over seeds."""
    written = False
    for title, of_table in tables(results):
        apart = {one.method: one for one in variance_by_seed(of_table, H)}
        lines = []
        for row in rows(of_table):
            together, sets = spread_together(row)
            one = apart.get(row.label)
            if one is not None or not math.isnan(together):
                spreads = (one.data if one else math.nan, one.training if one else math.nan, together)
                lines.append([row.label, *map(or_nothing, spreads), str(max(sets, one.datasets if one else 0))])
        if lines:
            written = True
            yield from ("", *laid_out(f"Seeds, {title}", Texts(list(SEEDS), [lines], []), 1))
    if written:
        yield from chain.from_iterable(("", remark) for remark in OF_SEEDS)


def spread_together(row: Row) -> tuple[float, int]:
    """Standard deviation of H over seeds that change together, root of the mean variance over sets, and how many."""
    by_dataset: dict[str, list[float]] = {}
    for result in row.results:
        if result.spec.data_seed == result.spec.train_seed:
            by_dataset.setdefault(result.spec.dataset, []).append(result.metrics[H])
    variances = [variance_of(values) for values in by_dataset.values() if len(values) > 1]
    return (math.sqrt(fmean(variances)) if variances else math.nan), len(variances)


def variance_of(values: Sequence[float]) -> float:
    """Of several values, ddof 1."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def or_nothing(value: float) -> str:
    """A figure, or a dash where there is none."""
    return NAN if math.isnan(value) else rounded(value)


def sections_of_halves(results: Sequence[Result]) -> Iterator[str]:
    """The lines of tables of H by halves of the classes, where results of others than the alphabetical ones are."""
    written = False
    for title, of_table in tables(results):
        halves = halves_of(of_table)
        if set(halves) - {ALPHABETICAL}:
            written = True
            lines = [line_of_halves(label, found, halves) for label, found in by_half(of_table).items()]
            head = ["method", *halves, "mean of random", "alphabetical - random"]
            yield from ("", *laid_out(f"Halves, H, {title}", Texts(head, [lines], []), 1))
    if written:
        yield from chain.from_iterable(("", remark) for remark in OF_HALVES)


def halves_of(results: Iterable[Result]) -> list[str]:
    """Which halves the results are of, the alphabetical ones first, drawn ones by their seed."""
    return sorted({result.spec.split for result in results}, key=lambda half: (half != ALPHABETICAL, len(half), half))


def by_half(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """H of each row of one table by the halves of the classes."""
    found: dict[str, dict[str, float]] = {}
    for half in halves_of(results):
        for row in rows([without_half(result) for result in results if result.spec.split == half]):
            found.setdefault(row.label, {})[half] = h_of(row)
    return found


def without_half(result: Result) -> Result:
    """The result as if it were of the alphabetical halves, so that its row is called as theirs."""
    return replace(result, spec=replace(result.spec, split=ALPHABETICAL))


def h_of(row: Row) -> float:
    """H of accuracies averaged over sets, averaged over the seeds that have all sets of the row."""
    datasets = {result.spec.dataset for result in row.results}
    by_seed: dict[Any, list[Result]] = {}
    for result in row.results:
        by_seed.setdefault(result.spec.seeds, []).append(result)
    whole = [found for found in by_seed.values() if len(found) == len(datasets)]
    values = []
    for found in whole:
        base, new = (fmean(result.metrics[f"{name}/accuracy"] for result in found) for name in ("base", "new"))
        values.append(harmonic_mean(base, new))
    return fmean(values) if values else math.nan


def line_of_halves(label: str, found: Mapping[str, float], halves: Sequence[str]) -> list[str]:
    """A line of the table of halves."""
    drawn = drawn_of(found)
    mean = fmean(drawn) if drawn else math.nan
    difference = alphabetical_minus_drawn(found)
    said = NAN if difference is None else str(difference).replace("one seed", "one half")
    return [label, *(or_nothing(found.get(half, math.nan)) for half in halves), or_nothing(mean), said]


def drawn_of(found: Mapping[str, float]) -> list[float]:
    """The figures of halves that were drawn."""
    return [value for half, value in found.items() if half != ALPHABETICAL and not math.isnan(value)]


def alphabetical_minus_drawn(found: Mapping[str, float]) -> Interval | None:
    """H of the alphabetical halves minus that of each drawn one; None where one of the two is missing."""
    usual, drawn = found.get(ALPHABETICAL, math.nan), drawn_of(found)
    return None if math.isnan(usual) or not drawn else paired_interval([usual - value for value in drawn])


def finding(grids: Sequence[Grid], results: Sequence[Result]) -> str:
    """One sentence: what settings are worth, or else what seeds are."""
    judged = {grid.label: grid for grid in grids if grid.judged_by == H}
    if len(judged) > 1:
        gain = paired_interval([grid.gain for grid in judged.values()])
        span = paired_interval([grid.span for grid in judged.values()])
        return (
            f"The best point of a grid has {gain} pseudo-new H over its median point and {span} over its worst, mean "
            f"and 95 % interval over {len(judged)} methods and presets."
        )
    if judged:
        (grid,) = judged.values()
        return (
            f"The best of {len(grid.figures)} points of {grid.name} has {grid.gain:+.1f} pseudo-new H over the median "
            f"one and {grid.span:+.1f} over the worst; one method gives no interval."
        )
    spreads: list[float] = []
    for _, of_table in tables(results):
        spreads += [spread_together(row)[0] for row in rows(of_table)]
    known = [spread for spread in spreads if not math.isnan(spread)]
    if not known:
        return finding_of_halves(results)
    return (
        f"Seeds move H by a standard deviation of {paired_interval(known)} points, mean and 95 % interval over methods."
    )


def finding_of_halves(results: Sequence[Result]) -> str:
    """One sentence: how much easier the papers' halves of the classes are than drawn ones."""
    found: list[Interval | None] = []
    for _, of_table in tables(results):
        found += map(alphabetical_minus_drawn, by_half(of_table).values())
    means = [one.mean for one in found if one is not None]
    if not means:
        return "No method has both the alphabetical halves of the classes and drawn ones here."
    said = paired_interval(means) if len(means) > 1 else next(one for one in found if one is not None)
    over = f"over {len(means)} methods and presets" if len(means) > 1 else "over the drawn halves of one method"
    return f"The alphabetical halves have {said} H over drawn ones, mean and 95 % interval {over}."
