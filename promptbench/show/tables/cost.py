"""What runs cost, as columns of a table: parameters, seconds of training, milliseconds an image, memory.

A figure is the mean over a line's runs of a seed, then over seeds. It is of the machine that it was measured on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from promptbench.protocol import Column
from promptbench.results.result import Result
from promptbench.show.tables.table import Cell, Line, Seed, Table

FROM_ZERO = "0 and more"
COSTS: Mapping[str, Column] = {
    name: Column(f"cost/{name}", title, lower=True, unit=unit, range=FROM_ZERO, digits=digits, ranked=False)
    for name, title, unit, digits in (
        ("learned_parameters", "parameters", "learned numbers", 0),
        ("train_seconds", "training", "seconds a run", 1),
        ("eval_ms_per_image", "evaluation", "milliseconds for each image scored", 2),
        ("peak_memory_mb", "memory", "MiB at most, the backbone included", 0),
    )
}
"""Columns by the name in `Result.cost`."""


def with_cost(table: Table) -> Table:
    """The table with a column for each cost, and the machine that it was measured on."""
    lines = tuple(line if line.kind == "mean" or line.published else _with_cells(line) for line in table.lines)
    columns = (*table.columns, *COSTS.values())
    remark = (
        f"Costs: measured on {'; '.join(machines(list(table.results.values())))}; no other machine's are comparable."
    )
    return replace(table, lines=lines, columns=columns, remarks=(*table.remarks, remark))


def cost_of(result: Result, name: str) -> float | None:
    """One of `COSTS` of a run; None where it was not measured.

    Results that do not know of milliseconds an image have the seconds and the numbers of images that they follow from.
    """
    found = result.cost.get(name)
    seconds = result.cost.get("eval_seconds")
    if found is not None or name != "eval_ms_per_image" or seconds is None:
        return found
    evaluated: Mapping[str, int] = result.conditions.get("images", {})
    images = sum(number for evaluation, number in evaluated.items() if f"{evaluation}/" not in result.notes)
    return 1000 * seconds / images if images else None


def machines(results: Sequence[Result]) -> list[str]:
    """The devices of some runs with their threads, such as `cpu, 1 thread`."""
    found = {(result.spec.device, result.spec.threads) for result in results}
    return [f"{device}, {threads} thread{'s' * (threads != 1)}" for device, threads in sorted(found)]


def _with_cells(line: Line) -> Line:
    cells = {column.key: _cell(line.results, name) for name, column in COSTS.items()}
    return replace(line, cells={**line.cells, **cells})


def _cell(results: Sequence[Result], name: str) -> Cell:
    """The mean cost of some runs; none where one of them does not have it."""
    by_seed: dict[Seed, list[float]] = {}
    measured = {result.name: cost_of(result, name) for result in results}
    for result in results:
        value = measured[result.name]
        if value is not None:
            by_seed.setdefault(result.spec.seeds, []).append(value)
    has = sum(value is not None for value in measured.values())
    if not results or has < len(measured):
        return Cell(gap=f"n/a ({has} of {len(measured)} runs)" if has else "–")
    values = {seed: fmean(of_seed) for seed, of_seed in by_seed.items()}
    return Cell(mean=fmean(values.values()), values=values, runs=tuple(measured))
