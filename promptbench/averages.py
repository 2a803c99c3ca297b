"""The figures of a table: what is averaged over what, and how far it spreads.

For a metric x of dataset d and seed s, and H derived from metrics:

    dataset                  x_d = mean_s x_ds          H_d = H(base_d, new_d)
    average                  X = mean_d x_d             H(mean_d base_d, mean_d new_d), as in the papers
    mean of per-dataset H                               mean_d H_d
    ±                        population standard deviation (ddof 0) of the quantity shown, computed seed by seed

An average is shown for rows that have every dataset of the table, its ± where every dataset has the same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from promptbench.config import UsageError
from promptbench.results import Result
from promptbench.rows import Row, Seed, rows

Numbers = Mapping[str, float]
Over = Callable[[Sequence[Numbers]], Numbers]  # the numbers of each dataset to those of a line


@dataclass(frozen=True)
class Column:
    """One figure of a table.

    Attributes:
        key: Name of the metric, such as `base/accuracy`.
        title: What the table calls it.
        derived: Whether it follows from other columns, seed means and averages included, instead of being averaged.
    """

    key: str
    title: str
    derived: bool = False


@dataclass(frozen=True)
class TableLayout:
    """What the table of a protocol shows.

    Attributes:
        columns: From left to right.
        derived: Metrics to the same metrics with the derived ones added, where they can be: `Protocol.summarize`.
    """

    columns: tuple[Column, ...]
    derived: Callable[[Mapping[str, float]], Mapping[str, float]] = dict


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
        kind: `dataset`, `average` or `mean`.
        group: What the lines that it stands among are called: a dataset, `average`, `mean of per-dataset H`.
        row: Method and configuration.
        datasets: What the figures are over.
        cells: By column key; a column may have none.
    """

    kind: str
    group: str
    row: Row
    datasets: tuple[str, ...]
    cells: Mapping[str, Cell]

    @property
    def results(self) -> list[Result]:
        """The records behind the figures."""
        return [result for name in self.datasets for result in self.row.runs[name].values()]

    @property
    def seeds(self) -> tuple[Seed, ...]:
        return tuple(sorted({result.spec.seeds for result in self.results}))

    @property
    def shots(self) -> tuple[int | None, ...]:
        return _by_size({result.spec.shots for result in self.results})

    @property
    def n(self) -> str:
        """How many seeds, or from how many to how many where datasets differ."""
        counts = {len(self.row.runs[name]) for name in self.datasets}
        return "-".join(str(count) for count in sorted({min(counts), max(counts)}))

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
    order = {name: place for place, name in reversed(list(enumerate(datasets)))}
    names = sorted({result.spec.dataset for result in results}, key=lambda name: (order.get(name, len(order)), name))
    own = rows(results, methods)
    first = results[0].spec
    trained = {result.spec.shots for result in results if result.spec.shots != 0} or {0}
    return Table(
        suite=first.suite,
        backbone=first.backbone,
        protocol=first.protocol,
        shots=_by_size(trained),
        seeds=tuple(sorted({result.spec.seeds for result in results})),
        columns=layout.columns,
        lines=tuple(_lines(own, names, layout)),
        remarks=tuple(_remarks(own, names, layout)) + ((note,) if note else ()),
    )


def _lines(own: Sequence[Row], names: Sequence[str], layout: TableLayout) -> Iterator[Line]:
    """Every dataset with its methods, then the averages."""

    def of_average(numbers: Sequence[Numbers]) -> Numbers:
        return layout.derived(_means(numbers))

    def average_of(numbers: Sequence[Numbers]) -> Numbers:
        return _means([layout.derived(item) for item in numbers])

    for name in names:
        for row in own:
            if name in row.runs:
                yield _line("dataset", name, row, [name], layout.columns, layout, of_average)
    if len(names) < 2:
        return
    for row in own:
        yield _line("average", "average", row, names, layout.columns, layout, of_average)
    for column in layout.columns:
        if column.derived:
            for row in own:
                group = f"mean of per-dataset {column.title}"
                yield _line("mean", group, row, names, [column], layout, average_of)


def _line(
    kind: str,
    group: str,
    row: Row,
    names: Sequence[str],
    columns: Sequence[Column],
    layout: TableLayout,
    over: Over,
) -> Line:
    present = tuple(name for name in names if name in row.runs)
    numbers = [{seed: _measured(run, layout) for seed, run in row.runs[name].items()} for name in present]
    means = [_means(list(of_seed.values())) for of_seed in numbers]
    seeds = numbers[0].keys()
    same = all(of_seed.keys() == seeds for of_seed in numbers)
    per_seed = [over([of_seed[seed] for of_seed in numbers]) for seed in seeds] if same and len(seeds) > 1 else []
    shown = over(means) if len(present) == len(names) else {}
    cells = {}
    for column in columns:
        key = column.key
        if key in shown:
            std = _population_std([figures[key] for figures in per_seed]) if per_seed else None
            cells[key] = Cell(mean=shown[key], std=std)
        elif kind == "dataset":
            has = sum(key in layout.derived(item) for item in numbers[0].values())
            cells[key] = _gap(has, len(numbers[0]), "seeds", row, present, column)
        else:
            has = sum(key in layout.derived(item) for item in means)
            cells[key] = _gap(has, len(names), "datasets", row, present, column)
    return Line(kind, group, row, present, cells)


def _gap(has: int, of: int, what: str, row: Row, names: Sequence[str], column: Column) -> Cell:
    """An empty cell: how much of it there is, and why not all, as far as the results say."""
    notes = [run.notes for name in names for run in row.runs[name].values()]
    reasons = [said[column.key] for said in notes if column.key in said]
    if column.derived and not reasons:
        reasons = [reason for said in notes for reason in said.values()]
    return Cell(gap=f"n/a ({has} of {of} {what})" if has else "–", reason=reasons[0] if reasons else "")


def _remarks(own: Sequence[Row], names: Sequence[str], layout: TableLayout) -> Iterator[str]:
    """What a reader has to know of spreads and averages."""
    if any(len(runs) > 1 for row in own for runs in row.runs.values()):
        yield "± is the population standard deviation over n seeds (ddof 0)."
    if len(names) < 2:
        return
    for column in layout.columns:
        if column.derived:
            mean = f"the mean of per-dataset {column.title} stands apart"
            yield f"Average {column.title} is computed from the averages beside it; {mean}."
    for row in own:
        missing = [name for name in names if name not in row.runs]
        if missing:
            yield f"{row.label} has no results on {', '.join(missing)}, so no average."
        elif len({tuple(runs) for runs in row.runs.values()}) > 1:
            yield f"{row.label} has other seeds on some datasets than on others, so its averages have no ±."


def _measured(run: Result, layout: TableLayout) -> Numbers:
    """A run's metrics without those that a table derives itself."""
    derived = {column.key for column in layout.columns if column.derived}
    return {key: value for key, value in run.metrics.items() if key not in derived}


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
