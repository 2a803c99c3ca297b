"""What the literature says of itself: which paper prints figures of what, and where printed figures contradict others.

A function of the published figures (`promptbench.results.papers`) alone; nothing measured here takes part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from promptbench.config import unknown
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.papers import (
    METRICS,
    Published,
    bib_key_of_source,
    contradictions,
    harmonic_contradictions,
    year_of,
)

SOURCES, HARMONIC, AVERAGE = "sources differ", "H", "average"


class Covered(NamedTuple):
    """What one source prints of one method in one protocol.

    Attributes:
        source: The CSV file.
        year: Of the paper that prints it; None for a list.
        method: As the source calls it.
        label: Our name of it, or "".
        shots: In rising order.
        datasets: How many, averages apart.
        figures: How many, averages included.
        selection: What settings were chosen on.
        quoted: Whether the source quotes others.
    """

    source: str
    year: int | None
    method: str
    label: str
    protocol: str
    backbone: str
    shots: tuple[int, ...]
    datasets: int
    figures: int
    selection: str
    quoted: bool


class Disagreement(NamedTuple):
    """Printed figures that cannot all be right.

    Attributes:
        kind: `sources differ`, `H` (it does not follow from base and new) or `average` (of the datasets beside it).
        printed: The figures with their sources, in percent.
        needed: What would make them agree; "" where nothing but the other figure would.
        note: What the files say of it.
    """

    kind: str
    method: str
    protocol: str
    backbone: str
    shots: int | None
    dataset: str
    metric: str
    printed: str
    needed: str
    note: str


def chosen(
    rows: Sequence[Published], methods: Sequence[str] = (), protocols: Sequence[str] = (), datasets: Sequence[str] = ()
) -> list[Published]:
    """The rows of these methods, named as we or their sources do, protocols and datasets; all where none is named.

    Raises:
        UsageError: There are none of one of them.
    """
    for kind, wanted, known in (
        ("method", methods, set(chain.from_iterable(map(_names, rows)))),
        ("protocol", protocols, set(METRICS)),
        ("dataset", datasets, {row.dataset for row in rows}),
    ):
        for name in wanted:
            if name not in known:
                raise unknown(kind, name, sorted(known))
    return [
        row
        for row in rows
        if (not methods or set(_names(row)) & set(methods))
        and (not protocols or row.protocol in protocols)
        and (not datasets or row.dataset in datasets)
    ]


def _names(row: Published) -> tuple[str, ...]:
    return (row.method, *row.labels)


def coverage(rows: Iterable[Published]) -> list[Covered]:
    """What is printed where: a line for each source, method, protocol and backbone, in that order."""
    groups: dict[tuple[str, ...], list[Published]] = {}
    for row in rows:
        groups.setdefault((row.file, row.method, row.protocol, row.backbone), []).append(row)
    return [_covered(group) for _, group in sorted(groups.items())]


def _covered(group: Sequence[Published]) -> Covered:
    first = group[0]
    key = bib_key_of_source(first)
    return Covered(
        source=first.file,
        year=year_of(key) if key else None,
        method=first.method,
        label=first.labels[0] if first.labels else "",
        protocol=first.protocol,
        backbone=first.backbone,
        shots=tuple(sorted({row.shots for row in group if row.shots is not None})),
        datasets=len({row.dataset for row in group if not _size(row)}),
        figures=len(group),
        selection=", ".join(dict.fromkeys(row.selection.kind for row in group)),
        quoted=first.secondary,
    )


def disagreements(rows: Sequence[Published]) -> list[Disagreement]:
    """Where sources differ, where H does not follow from base and new, and where an average is not that of its sets."""
    return [*_between_sources(rows), *_of_harmonic_means(rows), *_of_averages(rows)]


def _between_sources(rows: Sequence[Published]) -> Iterator[Disagreement]:
    groups: dict[tuple[object, ...], dict[str, Published]] = {}
    for pair in contradictions(rows):
        for row in pair:
            key = (row.same, row.protocol, row.backbone, row.shots, row.dataset, row.metric, row.score)
            groups.setdefault(key, {})[row.where] = row
    for group in groups.values():
        by_value: dict[str, list[str]] = {}
        for row in group.values():
            by_value.setdefault(_digits(row), []).append(row.file)
        printed = [f"{value} ({', '.join(files)})" for value, files in sorted(by_value.items())]
        yield _disagreement(SOURCES, list(group.values()), "; ".join(printed), "")


def _of_harmonic_means(rows: Sequence[Published]) -> Iterator[Disagreement]:
    for base, new, h in harmonic_contradictions(rows):
        printed = f"base {_digits(base)}, new {_digits(new)}, H {_digits(h)} ({h.file})"
        wanted = [f"H {harmonic_mean(base.value, new.value):.2f}"]
        wanted += [f"{name} {_partner(h.value, known.value):.2f}" for name, known in (("new", base), ("base", new))]
        yield _disagreement(HARMONIC, [h], printed, " or ".join(wanted))


def _partner(h: float, known: float) -> float:
    """The accuracy that has the harmonic mean `h` with another one: h known / (2 known - h), in percent."""
    return h * known / (2 * known - h) if 2 * known > h else math.inf


def _of_averages(rows: Sequence[Published]) -> Iterator[Disagreement]:
    """Averages that are not the mean of the datasets beside them; of a file without one, those of other files.

    The H of an average is that of mean base and mean new, which is checked as any other H.
    """
    tables: dict[tuple[object, ...], dict[str, dict[str, Published]]] = {}
    for row in rows:
        if row.metric != "h":
            key = (row.same, row.protocol, row.backbone, row.shots, row.metric, row.score)
            tables.setdefault(key, {}).setdefault(row.file, {}).setdefault(row.dataset, row)
    for files in tables.values():
        for file, table in files.items():
            for name in sorted(filter(_averaged, set().union(*files.values()))):
                parts = _parts(table, name)
                printed = [table[name]] if name in table else [other[name] for other in files.values() if name in other]
                if parts and not any(_fits(parts, average) for average in printed):
                    mean = math.fsum(row.value for row in parts) / len(parts)
                    values = "; ".join(f"{_digits(average)} ({average.file})" for average in printed)
                    yield _disagreement(AVERAGE, printed, values, f"the mean of {file}'s {len(parts)} is {mean:.3f}")


def _averaged(dataset: str) -> int:
    """Over how many datasets an average is; 0 for a dataset."""
    return int(dataset.removeprefix("average")) if dataset.startswith("average") else 0


def _size(row: Published) -> int:
    return _averaged(row.dataset)


def _parts(table: dict[str, Published], average: str) -> list[Published]:
    """The rows of a table that an average is made of; none where they are not all there."""
    size = _averaged(average)
    rows = [row for row in table.values() if not _size(row)]
    targets = [row for row in rows if not row.average]  # without ImageNet, which is trained on
    return next((found for found in (rows, targets) if len(found) == size), [])


def _fits(parts: Sequence[Published], average: Published) -> bool:
    """Whether an average is the mean of its parts, as far as the digits of both say."""
    mean = math.fsum(row.value for row in parts) / len(parts)
    slack = math.fsum(row.rounding for row in parts) / len(parts)
    return abs(mean - average.value) <= average.rounding + slack + 1e-9


def _disagreement(kind: str, rows: Sequence[Published], printed: str, needed: str) -> Disagreement:
    first = rows[0]
    metric = f"{first.score}/{first.metric}" if first.score else first.metric
    return Disagreement(
        kind=kind,
        method=first.method,
        protocol=first.protocol,
        backbone=first.backbone,
        shots=first.shots,
        dataset=first.dataset,
        metric=metric,
        printed=printed,
        needed=needed,
        note="; ".join(dict.fromkeys(row.note for row in rows if row.note)),
    )


def _digits(row: Published) -> str:
    """The figure as it is printed."""
    return f"{row.value:.{row.digits}f}"
