"""What a table is made of: its layout, cells, lines, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from promptbench.protocol import Column
from promptbench.results import Result

Seed = tuple[int, int]  # data seed, training seed
Numbers = Mapping[str, float]


def _of_its_dataset(result: Result) -> Mapping[str, Numbers]:
    return {result.spec.dataset: result.metrics}


def _notes_of_its_dataset(result: Result) -> Mapping[str, Mapping[str, str]]:
    return {result.spec.dataset: result.notes}


@dataclass(frozen=True)
class TableLayout:
    """What the table of a protocol shows.

    Attributes:
        columns: The columns for some results, from left to right.
        derived: Metrics to the same metrics with the derived ones added, where they can be: `Protocol.summarize`.
        blocks: The figures that a result gives the table: block, to column key, to figure.
        notes: Why figures of a result are missing, by block and column key or the first parts of it, "/" included.
        along: The field of the spec that runs along the columns; "" for none.
        averaged: Whether the table ends in averages over its blocks.
        blocks_are: What the blocks are.
        subject: What figures they are where that is not the usual; "" otherwise.
    """

    columns: Callable[[Sequence[Result]], Sequence[Column]]
    derived: Callable[[Mapping[str, float]], Mapping[str, float]] = dict
    blocks: Callable[[Result], Mapping[str, Numbers]] = _of_its_dataset
    notes: Callable[[Result], Mapping[str, Mapping[str, str]]] = _notes_of_its_dataset
    along: str = ""
    averaged: bool = True
    blocks_are: str = "dataset"
    subject: str = ""


@dataclass(frozen=True)
class Row:
    """The results of one method and configuration.

    Attributes:
        method: As typed on the command line.
        apart: What tells this row from others of the method, such as `n_ctx=16, epochs by recipe`; "" for an only row.
        results: By dataset and seed; several of one seed differ in what runs along the table's columns.
    """

    method: str
    apart: str
    results: tuple[Result, ...]

    @cached_property
    def reconstructed(self) -> bool:
        """Whether the method was rebuilt without its authors' code."""
        return any(result.conditions.get("reconstructed") for result in self.results)

    @cached_property
    def label(self) -> str:
        """What the table calls the row."""
        name, at, preset = self.method.partition("@")
        title = next((str(title) for result in self.results if (title := result.conditions.get("title"))), name)
        trained = sorted({result.spec.trained_by for result in self.results} - {""})
        said = [*([self.apart] if self.apart else []), *(f"trained by {protocol}" for protocol in trained)]
        return f"{title}{at}{preset} ({', '.join(said)})" if said else f"{title}{at}{preset}"


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
        published: For a line from papers, file and line of each figure in `results/published`, and the source it names.
    """

    kind: str
    group: str
    row: Row
    results: tuple[Result, ...]
    n: str
    cells: Mapping[str, Cell]
    versus: str = ""
    published: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the table calls it, without marks."""
        if self.published:
            return f"{self.row.method} (published)"
        return f"Δ {self.row.label} − {self.versus}" if self.versus else self.row.label

    @cached_property
    def seeds(self) -> tuple[Seed, ...]:
        return tuple(sorted({result.spec.seeds for result in self.results}))

    @cached_property
    def shots(self) -> tuple[int | None, ...]:
        return by_size({result.spec.shots for result in self.results})

    @cached_property
    def origins(self) -> set[str]:
        """Where the recipes come from: `paper`, `authors`, `transferred`, `ours`."""
        return {str(result.spec.recipe.get("origin", "")) for result in self.results} - {""}

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
class Table:
    """The lines of one suite and backbone, and what has to be said about them.

    Attributes:
        averaged: Whether it has averages over its blocks, if it has several.
        ranked: Whether best and second best may be shown.
        per_seed: Whether a line is one seed instead of a mean.
        comparisons: Figures of papers beside ours, where asked for.
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
    comparisons: tuple[Comparison, ...] = ()

    @property
    def groups(self) -> list[list[Line]]:
        """The lines, those of a block or an average together."""
        found: dict[tuple[str, str], list[Line]] = {}
        for line in self.lines:
            found.setdefault((line.kind, line.group), []).append(line)
        return list(found.values())


def by_size(shots: Iterable[int | None]) -> tuple[int | None, ...]:
    """Shots in order, all of them (None) last."""
    return tuple(sorted(shots, key=lambda number: math.inf if number is None else number))


def population_std(values: Collection[float]) -> float:
    """The standard deviation with ddof 0."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
