"""The figures of a table: what is averaged over what, and how far it spreads.

For a metric x of dataset d and seed s, and H derived from metrics:

    dataset                  x_d = mean_s x_ds          H_d = H(base_d, new_d)
    average                  X = mean_d x_d             H(mean_d base_d, mean_d new_d), as in the papers
    mean of per-dataset H                               mean_d H_d
    ±                        population standard deviation (ddof 0) of the quantity shown, computed seed by seed

An average is shown for rows that have every dataset of the table, its ± where every dataset has the same seeds. A table
may be made of other blocks than datasets, such as scores. With the median m of at least three seeds, a measured figure
of a dataset is an outlier where

    |x_ds - m| > max(p, 3 * 1.4826 * median_s |x_ds - m|)

with p of 3 points, or 10 among three or four seeds, whose median deviation says little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from promptbench.config import UsageError, unknown
from promptbench.lines import Cell, Line, Numbers, Table, TableLayout, by_size
from promptbench.protocol import Column
from promptbench.results import Result
from promptbench.rows import Row, Seed, rows, setting_named, settings_of

__all__ = ["MEANS_APART", "SPREAD", "Line", "Table", "TableLayout", "build_tables", "outliers"]

Over = Callable[[Sequence[Numbers]], Numbers]  # the numbers of each dataset to those of a line

SPREAD = "± is the population standard deviation over n seeds (ddof 0)."
APART = "Other suites and backbones have tables of their own: no figure mixes them."
MEANS_APART = "; the mean of per-"
OUTLIER_POINTS, OUTLIER_POINTS_OF_FEW, OUTLIER_SIGMAS, SIGMA_OF_MAD = 3.0, 10.0, 3.0, 1.4826


def build_tables(
    results: Iterable[Result],
    layout: TableLayout,
    *,
    notes: Mapping[str, str] | None = None,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    ranked: Collection[str] = (),
    group_by: str = "",
) -> list[Table]:
    """One table per suite and backbone.

    Args:
        results: Of one protocol.
        layout: The protocol's.
        notes: A sentence to put under the table, by suite.
        methods: Their order; others follow by name.
        datasets: Their order; others follow by name.
        ranked: The suites whose best figures may be shown as such.
        group_by: A setting whose values set rows apart, as `rows` takes it; "" for none.

    Raises:
        UsageError: If there are no results, or of several protocols, or the same run twice, or none with the
            setting.
    """
    by_table: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        source = "" if layout.blocks_are == "dataset" else result.spec.dataset
        by_table.setdefault((result.spec.suite, result.spec.backbone, source), []).append(result)
    if not by_table:
        raise UsageError("There are no results to make a table of; make some with `promptbench run`.")
    protocols = sorted({result.spec.protocol for group in by_table.values() for result in group})
    if len(protocols) > 1:
        raise UsageError(f"A table shows one protocol, not {' and '.join(protocols)}; choose one with --protocol.")
    everything = [result for group in by_table.values() for result in group]
    if group_by and not any(setting_named(result, group_by) for result in everything):
        owned = {
            (result.spec.label if "." in group_by else "", name)
            for result in everything
            for name in settings_of(result)
        }
        known = {f"{label}.{name.rpartition('.')[2]}".strip(".") for label, name in owned}
        raise unknown("setting", group_by, known)
    return [
        _table(
            rows(by_table[suite, backbone, source], methods, layout.along, group_by),
            replace(layout, subject=", ".join(filter(None, (layout.subject, source)))),
            [*([APART] if len(by_table) > 1 else []), *([notes[suite]] if notes and notes.get(suite) else [])],
            datasets,
            suite in ranked,
        )
        for suite, backbone, source in sorted(by_table)
    ]


def _table(
    of: Sequence[Row], layout: TableLayout, notes: Sequence[str], datasets: Sequence[str], ranked: bool
) -> Table:
    results = [result for row in of for result in row.results]
    sheets = [_sheet(row, layout) for row in of]
    columns = tuple(layout.columns(results))
    order = {name: place for place, name in reversed(list(enumerate(datasets)))}
    seen = dict.fromkeys(block for sheet in sheets for block in sheet.figures)
    blocks = sorted(seen, key=lambda name: (order.get(name, len(order)), name)) if layout.averaged else list(seen)
    lines = tuple(_lines(sheets, blocks, columns, layout))
    columns = _filled(columns, lines)
    first = results[0].spec
    trained = {result.spec.shots for result in results if result.spec.shots != 0} or {0}
    return Table(
        suite=first.suite,
        backbone=first.backbone,
        protocol=first.protocol,
        shots=by_size(trained),
        seeds=tuple(sorted({result.spec.seeds for result in results})),
        columns=columns,
        blocks_are=layout.blocks_are,
        subject=layout.subject,
        averaged=layout.averaged,
        ranked=ranked,
        rows=tuple(of),
        lines=lines,
        remarks=tuple(_remarks(sheets, blocks, columns, layout)) + tuple(notes),
    )


@dataclass(frozen=True)
class _Sheet:
    """The figures of a row by block and seed, without those that a table derives itself, and what is behind them."""

    row: Row
    figures: Mapping[str, Mapping[Seed, Numbers]]
    notes: Mapping[str, Sequence[Mapping[str, str]]]
    results: Mapping[str, tuple[Result, ...]]
    names: Mapping[str, Mapping[str, Sequence[str]]]  # of the runs behind each figure, by block and column key

    def runs(self, blocks: Iterable[str], column: Column) -> tuple[str, ...]:
        """Names of the runs that a figure of these blocks is made of."""
        found = (
            name
            for block in blocks
            for key, names in self.names.get(block, {}).items()
            if column.derived or key == column.key
            for name in names
        )
        return tuple(dict.fromkeys(found))


def _sheet(row: Row, layout: TableLayout) -> _Sheet:
    derived = {column.key for column in layout.columns(row.results) if column.derived}
    figures: dict[str, dict[Seed, dict[str, float]]] = {}
    notes: dict[str, list[Mapping[str, str]]] = {}
    results: dict[str, list[Result]] = {}
    names: dict[str, dict[str, list[str]]] = {}
    for result in row.results:
        said = layout.notes(result)
        for block, numbers in layout.blocks(result).items():
            measured = {key: value for key, value in numbers.items() if key not in derived}
            figures.setdefault(block, {}).setdefault(result.spec.seeds, {}).update(measured)
            notes.setdefault(block, []).append(said.get(block, {}))
            results.setdefault(block, []).append(result)
            for key in measured:
                names.setdefault(block, {}).setdefault(key, []).append(result.name)
    return _Sheet(row, figures, notes, {block: tuple(of_block) for block, of_block in results.items()}, names)


def outliers(values: Mapping[Seed, float]) -> tuple[Seed, ...]:
    """The seeds whose figure, in percent, lies far from the others', as the module says."""
    if len(values) < 3:
        return ()
    middle = median(values.values())
    sigma = SIGMA_OF_MAD * median(abs(value - middle) for value in values.values())
    points = OUTLIER_POINTS_OF_FEW if len(values) < 5 else OUTLIER_POINTS
    limit = max(points, OUTLIER_SIGMAS * sigma)
    return tuple(seed for seed, value in values.items() if abs(value - middle) > limit)


def _filled(columns: Sequence[Column], lines: Sequence[Line]) -> tuple[Column, ...]:
    """The columns that any line has a figure for, or a reason why not: older results lack younger metrics."""
    cells = {column.key: [line.cells[column.key] for line in lines if column.key in line.cells] for column in columns}
    kept = [column for column in columns if any(cell.values or cell.reason for cell in cells[column.key])]
    return tuple(kept or columns)


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
    seeds = [seed for seed in numbers[0] if all(seed in of_seed for of_seed in numbers)]
    same = all(len(of_seed) == len(seeds) for of_seed in numbers)
    whole = len(present) == len(blocks)
    per_seed = {seed: over([of_seed[seed] for of_seed in numbers]) for seed in seeds} if whole else {}
    shown = over(means) if whole else {}
    cells = {}
    for column in columns:
        key = column.key
        values = {seed: figures[key] for seed, figures in per_seed.items() if key in figures}
        if key in shown:
            cell = Cell(mean=shown[key], std=_population_std([*values.values()]) if same and len(seeds) > 1 else None)
        elif kind == "block":
            cell = _gap(len(values), len(numbers[0]), "seeds", sheet, present, column)
        else:
            has = sum(key in layout.derived(item) for item in means)
            cell = _gap(has, len(blocks), f"{layout.blocks_are}s", sheet, present, column)
        far = outliers(values) if kind == "block" and not column.derived else ()
        runs = sheet.runs(present, column) if values or cell.mean is not None else ()
        cells[key] = replace(cell, values=values, outliers=far, runs=runs)
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


def _data_remarks(results: Sequence[Result]) -> Iterator[str]:
    """Splits that are not the papers', and images that were left out."""
    generated = {r.spec.dataset for r in results if str(r.conditions.get("split_source", "")).startswith("generated")}
    skipped = {result.spec.dataset for result in results if result.conditions.get("skipped")}
    if generated:
        yield f"Split generated for want of a split file, so not the papers': {', '.join(sorted(generated))}."
    if skipped:
        yield f"Unreadable images were left out in runs on {', '.join(sorted(skipped))}."


def _remarks(
    sheets: Sequence[_Sheet], blocks: Sequence[str], columns: Sequence[Column], layout: TableLayout
) -> Iterator[str]:
    """What a reader has to know of spreads and averages."""
    if any(len(of_seed) > 1 for sheet in sheets for of_seed in sheet.figures.values()):
        yield SPREAD
    yield from _data_remarks([result for sheet in sheets for result in sheet.row.results])
    if len(blocks) < 2 or not layout.averaged:
        return
    for column in columns:
        if column.derived:
            apart = f"{MEANS_APART}{layout.blocks_are} {column.title} stands apart."
            yield f"Average {column.title} is computed from the averages beside it{apart}"
    for sheet in sheets:
        missing = [block for block in blocks if block not in sheet.figures]
        if missing:
            yield f"{sheet.row.label} has no results on {', '.join(missing)}, so no average."
        elif len({tuple(of_seed) for of_seed in sheet.figures.values()}) > 1:
            where = f"some {layout.blocks_are}s than on others"
            yield f"{sheet.row.label} has other seeds on {where}, so its averages have no ±."


def _means(numbers: Sequence[Numbers]) -> Numbers:
    """Mean of every figure that all of them have."""
    keys = [key for key in numbers[0] if all(key in item for item in numbers)]
    return {key: math.fsum(item[key] for item in numbers) / len(numbers) for key in keys}


def _population_std(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
