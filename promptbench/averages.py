"""The figures of a table: what is averaged over what, and how far it spreads.

For a metric x of dataset d and seed s, and H derived from metrics:

    dataset                  x_d = mean_s x_ds          H_d = H(base_d, new_d)
    average                  X = mean_d x_d             H(mean_d base_d, mean_d new_d), as in the papers
    mean of per-dataset H                               mean_d H_d
    ±                        population standard deviation (ddof 0) of the quantity shown, computed seed by seed

An average is shown for rows that have every dataset of the table, its ± where every dataset has the same seeds. A table
may be made of other blocks than datasets, such as scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from promptbench.config import UsageError
from promptbench.protocol import Column
from promptbench.results import Result
from promptbench.rows import Row, Seed, rows

Numbers = Mapping[str, float]
Over = Callable[[Sequence[Numbers]], Numbers]  # the numbers of each dataset to those of a line


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
class Cell:
    """A mean with its spread over seeds, both in percent and unrounded, or why there is none."""

    mean: float | None = None
    std: float | None = None
    gap: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        kind: `block`, `average` or `mean`.
        group: What the lines that it stands among are called: a dataset or another block, `average`, `mean of
            per-dataset H`.
        row: Method and configuration.
        results: The records behind the figures.
        n: How many seeds, or from how many to how many where blocks differ.
        cells: By column key; a column may have none.
    """

    kind: str
    group: str
    row: Row
    results: tuple[Result, ...]
    n: str
    cells: Mapping[str, Cell]

    @property
    def seeds(self) -> tuple[Seed, ...]:
        return tuple(sorted({result.spec.seeds for result in self.results}))

    @property
    def shots(self) -> tuple[int | None, ...]:
        return _by_size({result.spec.shots for result in self.results})

    @property
    def origins(self) -> set[str]:
        """Where the recipes come from: `paper`, `authors`, `transferred`, `ours`."""
        return {str(result.spec.recipe.get("origin", "")) for result in self.results} - {""}


@dataclass(frozen=True)
class Table:
    """The lines of one suite and backbone, and what has to be said about them."""

    suite: str
    backbone: str
    protocol: str
    shots: tuple[int | None, ...]
    seeds: tuple[Seed, ...]
    columns: tuple[Column, ...]
    blocks_are: str
    subject: str
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]


def build_tables(
    results: Iterable[Result],
    layout: TableLayout,
    *,
    notes: Mapping[str, str] | None = None,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> list[Table]:
    """One table per suite and backbone.

    Args:
        results: Of one protocol.
        layout: The protocol's.
        notes: A sentence to put under the table, by suite.
        methods: Their order; others follow by name.
        datasets: Their order; others follow by name.

    Raises:
        UsageError: If there are no results, or of several protocols, or the same run twice.
    """
    by_table: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        by_table.setdefault((result.spec.suite, result.spec.backbone), []).append(result)
    if not by_table:
        raise UsageError("There are no results to make a table of; make some with `promptbench run`.")
    protocols = sorted({result.spec.protocol for group in by_table.values() for result in group})
    if len(protocols) > 1:
        raise UsageError(f"A table shows one protocol, not {' and '.join(protocols)}; choose one with --protocol.")
    return [_table(by_table[key], layout, (notes or {}).get(key[0], ""), methods, datasets) for key in sorted(by_table)]


def _table(
    results: Sequence[Result], layout: TableLayout, note: str, methods: Sequence[str], datasets: Sequence[str]
) -> Table:
    sheets = [_sheet(row, layout) for row in rows(results, methods, layout.along)]
    columns = tuple(layout.columns(results))
    order = {name: place for place, name in reversed(list(enumerate(datasets)))}
    seen = dict.fromkeys(block for sheet in sheets for block in sheet.figures)
    blocks = sorted(seen, key=lambda name: (order.get(name, len(order)), name)) if layout.averaged else list(seen)
    first = results[0].spec
    trained = {result.spec.shots for result in results if result.spec.shots != 0} or {0}
    return Table(
        suite=first.suite,
        backbone=first.backbone,
        protocol=first.protocol,
        shots=_by_size(trained),
        seeds=tuple(sorted({result.spec.seeds for result in results})),
        columns=columns,
        blocks_are=layout.blocks_are,
        subject=layout.subject,
        lines=tuple(_lines(sheets, blocks, columns, layout)),
        remarks=tuple(_remarks(sheets, blocks, columns, layout)) + ((note,) if note else ()),
    )


@dataclass(frozen=True)
class _Sheet:
    """The figures of a row by block and seed, without those that a table derives itself, and what is behind them."""

    row: Row
    figures: Mapping[str, Mapping[Seed, Numbers]]
    notes: Mapping[str, Sequence[Mapping[str, str]]]
    results: Mapping[str, tuple[Result, ...]]


def _sheet(row: Row, layout: TableLayout) -> _Sheet:
    derived = {column.key for column in layout.columns(row.results) if column.derived}
    figures: dict[str, dict[Seed, dict[str, float]]] = {}
    notes: dict[str, list[Mapping[str, str]]] = {}
    results: dict[str, list[Result]] = {}
    for result in row.results:
        said = layout.notes(result)
        for block, numbers in layout.blocks(result).items():
            of_seed = figures.setdefault(block, {}).setdefault(result.spec.seeds, {})
            of_seed |= {key: value for key, value in numbers.items() if key not in derived}
            notes.setdefault(block, []).append(said.get(block, {}))
            results.setdefault(block, []).append(result)
    return _Sheet(row, figures, notes, {block: tuple(of_block) for block, of_block in results.items()})


def _lines(
    sheets: Sequence[_Sheet], blocks: Sequence[str], columns: Sequence[Column], layout: TableLayout
) -> Iterator[Line]:
    """Every block with its methods, then the averages."""

    def of_average(numbers: Sequence[Numbers]) -> Numbers:
        return layout.derived(_means(numbers))

    def average_of(numbers: Sequence[Numbers]) -> Numbers:
        return _means([layout.derived(item) for item in numbers])

    for block in blocks:
        for sheet in sheets:
            if block in sheet.figures:
                yield _line("block", block, sheet, [block], columns, layout, of_average)
    if len(blocks) < 2 or not layout.averaged:
        return
    for sheet in sheets:
        yield _line("average", "average", sheet, blocks, columns, layout, of_average)
    for column in columns:
        if column.derived:
            for sheet in sheets:
                group = f"mean of per-{layout.blocks_are} {column.title}"
                yield _line("mean", group, sheet, blocks, [column], layout, average_of)


def _line(
    kind: str,
    group: str,
    sheet: _Sheet,
    blocks: Sequence[str],
    columns: Sequence[Column],
    layout: TableLayout,
    over: Over,
) -> Line:
    present = [block for block in blocks if block in sheet.figures]
    numbers = [sheet.figures[block] for block in present]
    means = [_means(list(of_seed.values())) for of_seed in numbers]
    seeds = numbers[0].keys()
    same = all(of_seed.keys() == seeds for of_seed in numbers)
    per_seed = [over([of_seed[seed] for of_seed in numbers]) for seed in seeds] if same and len(seeds) > 1 else []
    shown = over(means) if len(present) == len(blocks) else {}
    cells = {}
    for column in columns:
        key = column.key
        if key in shown:
            std = _population_std([figures[key] for figures in per_seed]) if per_seed else None
            cells[key] = Cell(mean=shown[key], std=std)
        elif kind == "block":
            has = sum(key in layout.derived(item) for item in numbers[0].values())
            cells[key] = _gap(has, len(numbers[0]), "seeds", sheet, present, column)
        else:
            has = sum(key in layout.derived(item) for item in means)
            cells[key] = _gap(has, len(blocks), f"{layout.blocks_are}s", sheet, present, column)
    counts = {len(of_seed) for of_seed in numbers}
    n = "-".join(str(count) for count in sorted({min(counts), max(counts)}))
    behind = {result.name: result for block in present for result in sheet.results[block]}
    return Line(kind, group, sheet.row, tuple(behind.values()), n, cells)


def _gap(has: int, of: int, what: str, sheet: _Sheet, blocks: Sequence[str], column: Column) -> Cell:
    """An empty cell: how much of it there is, and why not all, as far as the results say."""
    said = [note for block in blocks for notes in sheet.notes[block] for note in notes.items()]
    reasons = [reason for key, reason in said if key == column.key or (key[-1:] == "/" and column.key.startswith(key))]
    if (column.derived or column.key.startswith("average/")) and not reasons:
        reasons = [reason for _, reason in said]
    return Cell(gap=f"n/a ({has} of {of} {what})" if has else "–", reason=reasons[0] if reasons else "")


def _remarks(
    sheets: Sequence[_Sheet], blocks: Sequence[str], columns: Sequence[Column], layout: TableLayout
) -> Iterator[str]:
    """What a reader has to know of spreads and averages."""
    if any(len(of_seed) > 1 for sheet in sheets for of_seed in sheet.figures.values()):
        yield "± is the population standard deviation over n seeds (ddof 0)."
    if len(blocks) < 2 or not layout.averaged:
        return
    for column in columns:
        if column.derived:
            mean = f"the mean of per-{layout.blocks_are} {column.title} stands apart"
            yield f"Average {column.title} is computed from the averages beside it; {mean}."
    for sheet in sheets:
        missing = [block for block in blocks if block not in sheet.figures]
        if missing:
            yield f"{sheet.row.label} has no results on {', '.join(missing)}, so no average."
        elif len({tuple(of_seed) for of_seed in sheet.figures.values()}) > 1:
            where = f"some {layout.blocks_are}s than on others"
            yield f"{sheet.row.label} has other seeds on {where}, so its averages have no ±."


def _by_size(shots: Iterable[int | None]) -> tuple[int | None, ...]:
    """Shots in order, all of them (None) last."""
    return tuple(sorted(shots, key=lambda number: math.inf if number is None else number))


def _means(numbers: Sequence[Numbers]) -> Numbers:
    """Mean of every figure that all of them have."""
    keys = [key for key in numbers[0] if all(key in item for item in numbers)]
    return {key: math.fsum(item[key] for item in numbers) / len(numbers) for key in keys}


def _population_std(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
