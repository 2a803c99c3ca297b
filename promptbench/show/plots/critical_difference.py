"""Mean ranks over datasets, and which of them differ by more than Nemenyi's critical difference, after Friedman's test.

Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006. Seeds are averaged first. The rule
is asymptotic, so that few datasets are refused, and it weakens with every row, so that many rows are.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError, unknown
from promptbench.metrics.statistics import LEVEL, critical_difference, friedman
from promptbench.protocol import Column
from promptbench.show.plots.picture import LABEL, finish, name_rows, new_figure, style_in, width_of
from promptbench.show.plots.source import Source, about, column_of, metric_of, name
from promptbench.show.tables.formats.texts import probability
from promptbench.show.tables.significance import Figures, figures_of
from promptbench.show.tables.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = "base2new"
DATASETS = 10  # at least
ROWS = 3, 10  # from, to


def data(source: Source) -> dict[str, Any]:
    """Per method: its mean rank, 1 for the best; and the groups of methods of which none differs from another.

    Methods without a figure on every dataset are left out.

    Raises:
        UsageError: There are too few datasets, or too few or too many rows.
    """
    table = source.table()
    column = column_of(table, source.column)
    rows = _rows(source, table, column)
    datasets = list(dict.fromkeys(chain.from_iterable(row.by_dataset for row in rows)))
    complete = [row for row in rows if len(row.by_dataset) == len(datasets)]
    _refuse(len(datasets), len(complete))
    test = friedman([[row.by_dataset[dataset] for row in complete] for dataset in datasets], lower=column.lower)
    critical = critical_difference(len(complete), len(datasets))
    ranked = sorted(zip(test.ranks, [name(row.line) for row in complete], strict=True))
    ranks = [rank for rank, _ in ranked]
    left_out = [name(row.line) for row in rows if row not in complete]
    return {
        **about("critical-difference", source, table, [row.line for row in rows], left_out),
        "x": f"mean rank by {_said(column)} (1: best)",
        "datasets": datasets,
        "friedman": {"statistic": test.statistic, "p": test.p},
        "critical_difference": critical,
        "rows": [{"method": method, "rank": rank} for rank, method in ranked],
        "groups": _groups(ranks, critical) if test.p < LEVEL else [[0, len(ranks) - 1]],
        "left_out": left_out,
    }


def _rows(source: Source, table: Table, column: Column) -> list[Figures]:
    """The figures of the rows; of a protocol with several scores, those of the score asked for."""
    found = figures_of(table, column)
    if len(found) == 1:
        return next(iter(found.values()))
    by_name = {group.lower().replace("-", "_"): rows for group, rows in found.items()}
    wanted = source.score or next(iter(by_name))
    if wanted not in by_name:
        raise unknown(f"{table.blocks_are} of {table.protocol}", wanted, by_name)
    return by_name[wanted]


def _refuse(datasets: int, rows: int) -> None:
    least, most = ROWS
    if datasets < DATASETS:
        raise UsageError(
            f"A critical-difference plot needs {DATASETS} datasets, and there are {datasets}; "
            "`promptbench table --test` compares on fewer."
        )
    if not least <= rows <= most:
        raise UsageError(
            f"A critical-difference plot shows {least} to {most} rows, and {rows} have a figure on every dataset; "
            "choose some with --method."
        )


def _said(column: Column) -> str:
    return column.title if column.derived else f"{column.title} {metric_of(column)}"


def _groups(ranks: Sequence[float], critical: float) -> list[list[int]]:
    """First and last of the longest runs of ranks, in order, within which none is a critical difference apart."""
    groups: list[list[int]] = []
    for first, rank in enumerate(ranks):
        last = max(place for place, other in enumerate(ranks) if other - rank < critical)
        if last > first and not any(last <= end for _, end in groups):
            groups.append([first, last])
    return groups


def draw(data: dict[str, Any]) -> Figure:
    """A line per method with a mark at its mean rank; upright bars join those that do not differ."""
    rows = data["rows"]
    labels = [textwrap.fill(row["method"], LABEL) for row in rows]
    lines = [label.count("\n") + 1 for label in labels]
    middles = [sum(lines[:place]) + own / 2 for place, own in enumerate(lines)]
    figure, axes = new_figure(0.85 + 0.165 * sum(lines), width=width_of(data))
    worst, bars = len(rows), len(data["groups"])
    right = worst * (1.1 + 0.05 * bars)
    for middle, row in zip(middles, rows, strict=True):
        axes.plot([1, right], [middle, middle], color="0.88", linewidth=0.5, zorder=1)
        axes.plot([row["rank"]], [middle], **style_in(data, row["method"]))
        _label(axes, f"{row['rank']:.1f}", row["rank"], middle)
    for place, (first, last) in enumerate(data["groups"]):
        x = worst * (1.1 + 0.05 * place)
        ends = [middles[first] - 0.25, middles[last] + 0.25]
        axes.plot([x, x], ends, color="black", linewidth=2.2, solid_capstyle="butt", zorder=3)
    critical = data["critical_difference"]
    axes.errorbar([1 + critical / 2], [-0.75], xerr=[critical / 2], color="black", capsize=3, zorder=3)
    _label(axes, f"CD {critical:.2f}", 1 + critical, -0.75)
    name_rows(axes, middles, [row["method"] for row in rows], data)
    axes.set(ylim=(sum(lines) + 0.1, -1.3), xlim=(0.9, right + 0.1), xticks=range(1, worst + 1))
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(1, worst)
    axes.set_xlabel(textwrap.fill(data["x"], 32))
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """What the tests found, and what the upright bars mean."""
    found = f"chi-squared {data['friedman']['statistic']:.1f}, p {probability(data['friedman']['p'])}"
    test = f"Friedman's test over {len(data['datasets'])} datasets: {found}."
    return [test, _meaning(data)]


def _label(axes: Any, text: str, x: float, y: float) -> None:
    """A number just behind a place, on white."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=7, bbox=box, zorder=2)


def _meaning(data: Mapping[str, Any]) -> str:
    """What the bars mean."""
    if data["friedman"]["p"] >= LEVEL:
        return f"The ranks do not differ at {LEVEL}, so one bar joins all rows."
    if not data["groups"]:
        return f"All rows differ at {LEVEL} (Nemenyi)."
    return f"An upright bar joins rows that do not differ at {LEVEL} (Nemenyi: less than CD apart)."
