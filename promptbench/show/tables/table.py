"""What a table is made of: its layout, cells, lines, and what stands beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from promptbench import registry
from promptbench.metrics.statistics import Interval, smallest_p
from promptbench.protocol import Column, Protocol
from promptbench.results.knowledge import TEXT_PRIORS, Choice, heaviest, most_told, selection_of, text_prior
from promptbench.results.papers import Published
from promptbench.results.result import Result
from promptbench.results.spec import Spec

Seed = tuple[int, int]  # data seed, training seed
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class TableLayout:
    """What the table of a protocol shows.

    Attributes:
        protocol: The results' one.
        metric: One of its `metrics`.
        order: Names of datasets, in the order that evaluations on them come.
    """

    protocol: Protocol
    metric: str
    order: Sequence[str] = ()

    @property
    def subject(self) -> str:
        """The metric shown where that is not the protocol's first; "" otherwise."""
        return "" if self.metric == self.protocol.metrics[0] else self.metric

    def along(self, result: Result) -> Any:
        """The field of a result's spec that runs along the columns, such as its shots; None where none does."""
        return getattr(result.spec, self.protocol.along, None)

    def columns(self, results: Iterable[Result]) -> list[Column]:
        """The columns for some results, from left to right."""
        results = list(results)
        places = {name: place for place, name in reversed(list(enumerate(self.order)))}
        found = set(chain.from_iterable(result.conditions.get("images", {}) for result in results))
        evaluations = sorted(found, key=lambda name: (places.get(name, len(places)), name))
        values: set[Any] = {self.along(result) for result in results}
        along = sorted(values, key=lambda value: (value is None, value or 0))
        columns = self.protocol.columns(self.metric, evaluations, along)
        titles = dataset_titles(results)
        return [column._replace(title=titles.get(column.title, column.title)) for column in columns]

    def blocks(self, result: Result) -> Mapping[str, Numbers]:
        """The figures that a result gives the table: block, to column key, to figure."""
        return self.protocol.blocks(self.metric, result.spec.dataset, self.along(result), result.metrics)

    def notes(self, result: Result) -> Mapping[str, Mapping[str, Any]]:
        """Why figures of a result are missing, by block and column key or the first parts of it, "/" included."""
        notes: Mapping[str, Any] = result.notes
        return self.protocol.blocks(self.metric, result.spec.dataset, self.along(result), notes)


def dataset_titles(results: Iterable[Result]) -> dict[str, str]:
    """What papers call the datasets that some results are of, by name: trained on or evaluated on."""
    names: dict[str, None] = {}
    for result in results:
        names |= dict.fromkeys([result.spec.dataset, *result.spec.evaluated])
    return registry.titles("datasets", names)


@dataclass(frozen=True)
class Row:
    """The results of one method and configuration.

    Attributes:
        method: As typed on the command line.
        apart: What tells this row from others of the method, such as `n_ctx=16, epochs by recipe`; "" for an only row.
        results: By dataset and seed; several of one seed differ in what runs along the table's columns.
        title: What papers call the method, without its preset; "" for its name.
    """

    method: str
    apart: str
    results: tuple[Result, ...]
    title: str = ""

    @cached_property
    def reconstructed(self) -> bool:
        """Whether the method was rebuilt without its authors' code."""
        return any(result.conditions.get("reconstructed") for result in self.results)

    @cached_property
    def from_dataset(self) -> bool:
        """Whether the method's context started from the words of the dataset trained on."""
        return any(result.spec.from_dataset for result in self.results)

    @cached_property
    def split(self) -> str:
        """Which classes are base and which new."""
        return next((result.spec.split for result in self.results), Spec.split)

    @cached_property
    def by_dataset(self) -> bool:
        """Whether the settings were seen to differ from dataset to dataset."""
        seen: dict[int | None, set[str]] = {}
        for result in self.results:
            if "selection" not in result.conditions:  # which would say it
                recipe = {name: value for name, value in result.spec.recipe.items() if name != "origin"}
                settings = json.dumps([result.spec.config, recipe], sort_keys=True)
                seen.setdefault(result.spec.shots, set()).add(settings)
        return any(len(settings) > 1 for settings in seen.values())

    @cached_property
    def label(self) -> str:
        """The row's name in the table: method, preset and what tells it from others of the method."""
        name, _, preset = self.method.partition("@")
        return _with_details(self.title or name, [preset, *self._details])

    @cached_property
    def typed(self) -> str:
        """The same with the method as it is typed, `ivlp@promptsrc (n_ctx=16)`."""
        return _with_details(self.method, self._details)

    @property
    def _details(self) -> list[str]:
        trained = sorted({result.spec.trained_by for result in self.results} - {""})
        return [self.apart, *(f"trained by {protocol}" for protocol in trained)]


def _with_details(name: str, details: Iterable[str]) -> str:
    said = ", ".join(filter(None, details))
    return f"{name} ({said})" if said else name


@dataclass(frozen=True)
class Cell:
    """A mean with its spread over seeds, both in percent and unrounded, or why there is none.

    Attributes:
        mean: Over seeds.
        std: Population standard deviation over seeds.
        gap: What is shown where there is no mean.
        reason: Why there is none.
        values: The figure of each seed that has it; of an average, of each seed that all blocks have.
        outliers: The seeds whose figure lies far from the others', as `rows.outliers` says.
        runs: Names of the results behind it.
    """

    mean: float | None = None
    std: float | None = None
    gap: str = ""
    reason: str = ""
    values: Mapping[Seed, float] = field(default_factory=dict)
    outliers: tuple[Seed, ...] = ()
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        kind: `block`, `average` or `mean`.
        group: What the lines that it stands among are called: a dataset or another block, `average`, `mean of
            per-dataset H`.
        row: Method and configuration.
        results: The records behind the figures; none of a line from papers.
        n: How many seeds, or from how many to how many where blocks differ; the seed itself in a table of seeds.
        cells: By column key; a column may have none.
        versus: The row that its figures are differences to; "" for figures themselves.
        published: For a line from papers, each of its figures by file and line in `results/published`.
    """

    kind: str
    group: str
    row: Row
    results: tuple[Result, ...]
    n: str
    cells: Mapping[str, Cell]
    versus: str = ""
    published: Mapping[str, Published] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The line's name in the table, without marks."""
        if self.published:
            return f"{self.row.method} (published)"
        return f"Δ {self.row.label} − {self.versus}" if self.versus else self.row.label

    @cached_property
    def seeds(self) -> tuple[Seed, ...]:
        """The seeds behind the line, sorted, each once."""
        return tuple(sorted({result.spec.seeds for result in self.results}))

    @cached_property
    def shots(self) -> tuple[int | None, ...]:
        """The numbers of training images a class behind the line, the smallest first."""
        return by_size({result.spec.shots for result in self.results})

    @cached_property
    def origins(self) -> set[str]:
        """Where the recipes come from: `paper`, `authors`, `transferred`, `ours`."""
        return {str(result.spec.recipe.get("origin", "")) for result in self.results} - {""}

    @property
    def own(self) -> tuple[Result, ...]:
        """The records of the row itself, without those that it is compared with."""
        return self.row.results if self.versus else self.results

    @cached_property
    def selection(self) -> Choice:
        """How the settings were chosen."""
        found = [figure.selection for figure in self.published.values()] or [*map(selection_of, self.own)]
        choice = heaviest(found)
        return choice._replace(by_dataset=choice.by_dataset or self.row.by_dataset)

    @cached_property
    def text_prior(self) -> str:
        """What was told of the words around class names, one of `TEXT_PRIORS`."""
        return most_told([figure.text_prior for figure in self.published.values()] or map(text_prior, self.own))

    @cached_property
    def samplers(self) -> set[str]:
        """The rules that drew the training images, where there were any."""
        return {result.spec.sampler for result in self.results if result.spec.shots != 0}


@dataclass(frozen=True)
class Comparison:
    """One of our figures beside a paper's.

    Attributes:
        line: Ours.
        column: Ours.
        paper: The paper's figure as it prints it.
        origin: File and line of `results/published` where it stands.
        source: Paper and table that it was read from.
        verdict: What may be said, in a word or two.
        gap: Ours minus theirs, in points; None where the two may not be compared.
        interval: 90 % confidence interval of the gap; None for a single seed.
        why: What a reader has to know of it, or "".
    """

    line: Line
    column: Column
    paper: str
    origin: str
    source: str
    verdict: str
    gap: float | None
    interval: tuple[float, float] | None
    why: str


@dataclass(frozen=True)
class Tested:
    """A row against another: the exact test over datasets, and the differences over seeds.

    Attributes:
        line: The line that sums the row up.
        seeds: How many both have.
        interval: Of the differences of that line, seed by seed, in points; None without a common seed.
        needed: How many seeds would show a difference of 1 point; None with fewer than two common ones.
        difference: Mean over datasets of the row's figure minus the other's, in points; None if it is not tested.
        won: On how many datasets the row is better.
        tied: On how many both are equal.
        lost: On how many the other is better.
        p: Exact and two-sided, by Wilcoxon's signed-rank test, from 0 to 1.
        holm: The same, corrected for the number of rows tested.
        why: Why it is not tested, or "".
    """

    line: Line
    seeds: int
    interval: Interval | None
    needed: int | None
    difference: float | None = None
    won: int = 0
    tied: int = 0
    lost: int = 0
    p: float | None = None
    holm: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Test:
    """One row against all others of a table, or of one of its blocks.

    Attributes:
        against: The label of the row.
        column: What is compared.
        group: The block, where each is an experiment of its own, such as a score; "" otherwise.
        datasets: Those that the row has a figure of: the pairs.
        rows: The others, in the order of the table.
    """

    __test__ = False  # for pytest, which takes the name for its own

    against: str
    column: Column
    group: str
    datasets: tuple[str, ...]
    rows: tuple[Tested, ...]

    @property
    def title(self) -> str:
        """What is compared: the column, and the block where there are several."""
        return f"{self.column.title}, {self.group}" if self.group else self.column.title

    @property
    def family(self) -> int:
        """How many rows are tested."""
        return sum(one.p is not None for one in self.rows)

    @property
    def smallest(self) -> float:
        """The smallest p that so many datasets can give."""
        return smallest_p(len(self.datasets))


@dataclass(frozen=True)
class Table:
    """The lines of one suite and backbone, and what has to be said about them.

    Attributes:
        averaged: Whether it has averages over its blocks, if it has several.
        ranked: Whether best and second best may be shown.
        per_seed: Whether a line is one seed instead of a mean.
        titles: What papers call its datasets, where not as we do.
        comparisons: Figures of papers beside ours, where asked for.
        tests: One row against all others, where asked for.
    """

    suite: str
    backbone: str
    protocol: str
    shots: tuple[int | None, ...]
    seeds: tuple[Seed, ...]
    columns: tuple[Column, ...]
    blocks_are: str
    subject: str
    averaged: bool
    ranked: bool
    rows: tuple[Row, ...]
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]
    per_seed: bool = False
    titles: Mapping[str, str] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    tests: tuple[Test, ...] = ()

    @property
    def main_column(self) -> Column:
        """The column that sums the table up: H, an average, or what stands last."""
        derived = [column for column in self.columns if column.derived]
        averages = [column for column in self.columns if column.key.startswith("average/")]
        return [*derived, *averages, self.columns[-1]][0]

    def column(self, name: str) -> Column | None:
        """The column of a title or key, or of the dataset that it is about."""
        names = [(column.title, column.key, column.key.rpartition("/")[0]) for column in self.columns]
        return next((column for column, of in zip(self.columns, names, strict=True) if name in of), None)

    def title(self, name: str) -> str:
        """What papers call one of its datasets or other blocks."""
        return self.titles.get(name, name)

    @property
    def results(self) -> dict[str, Result]:
        """The results behind the rows, by name."""
        return {result.name: result for result in chain.from_iterable(row.results for row in self.rows)}

    @property
    def groups(self) -> list[list[Line]]:
        """The lines, those of a block or an average together."""
        found: dict[tuple[str, str], list[Line]] = {}
        for line in self.lines:
            found.setdefault((line.kind, line.group), []).append(line)
        return list(found.values())

    @property
    def parts(self) -> list[list[Line]]:
        """The groups in parts, whose lines are ranked among themselves."""
        return list(chain.from_iterable(map(parts_of, self.groups)))


def parts_of(group: Sequence[Line]) -> list[list[Line]]:
    """The lines of a group, those of each text prior apart, for only they may be compared; of each, every split of the
    classes apart, for other classes are another task."""
    parts: dict[tuple[int, bool, str], list[Line]] = {}
    for line in group:
        key = (list(TEXT_PRIORS).index(line.text_prior), line.row.split != Spec.split, line.row.split)
        parts.setdefault(key, []).append(line)
    return [parts[key] for key in sorted(parts)]


def by_size(shots: Iterable[int | None]) -> tuple[int | None, ...]:
    """Shots in order, all of them (None) last."""
    return tuple(sorted(shots, key=lambda number: math.inf if number is None else number))


def population_std(values: Collection[float]) -> float:
    """The population standard deviation, with ddof 0."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
