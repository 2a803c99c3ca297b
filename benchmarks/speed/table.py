"""What a report says, as Markdown, from the report alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from .measure import RECIPE_BATCH
from .rows import Row, bars, evaluation_seconds, matmul_rates, share, steps

CALM = 20  # percent that the matrix product may move between the start and the end of a run


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    judged = bars(report)
    parts = ["# Speed, against what the official code does", "", *machine_lines(report)]
    if judged:
        parts += ["", "## Bars: ViT-B/16-sized CLIP, 100 classes, 4 context tokens, float32", ""]
        head = ("what", "plain, s", "ours, s", "measured", "bar", "met")
        parts += grid(head, [bar_cells(row) for row in judged], names=1)
    for name, found in report["backbones"].items():
        parts += ["", f"## Training steps, {name}", "", *step_lines(found)]
        for evaluation in found["evaluations"]:
            parts += ["", f"## Evaluation, {name}, {evaluation['classes']} classes", "", *evaluation_lines(evaluation)]
    return "\n".join([*parts, "", *NOTES]) + "\n"


NOTES = (
    "Seconds are medians; `~` marks those of which a part was counted, not timed: a plain step of CoCoOp or Mutual "
    "Prompt Learning with several images is that of one image times the batch; plain steps at more classes than it was "
    "run with lie on a line through those at fewer; a plain evaluation was timed for one seed and, for CoCoOp, with "
    "two of the images scored.",
    "",
    "First: the first call at this size in the process. Memory: what the first call adds to resident memory. Cached: "
    "image features known; encoded: from pixels in memory. Reading: one random view of each of 32 JPEG files. "
    "PromptSRC's frozen texts, 60 sentences a class, are encoded before anything is timed. dpl and mutual are "
    "reconstructions, and no official code is public: plain computes their formulas as the code of the others does.",
)


def machine_lines(report: Mapping[str, Any]) -> list[str]:
    """What the figures were taken on, and how calm it was."""
    machine, rates = report["machine"], matmul_rates(report)
    start, end = median(rates[0]), median(rates[-1])
    drift = 100 * (end / start - 1)
    everything = [rate for part in rates for rate in part]
    calm = "" if abs(drift) <= CALM else f", more than the {CALM} % of a calm machine: do not cite these figures"
    versions = machine["versions"]
    return [
        f"{machine['processor']} ({machine['vector_units']}), threads: {machine['threads']}, cores: "
        f"{machine['cores']}, {machine['memory_gib']} GiB, {machine['system']}; torch {versions['torch']} with "
        f"{machine['blas']}, "
        f"open_clip {versions['open_clip']}, Python {versions['python']}; commit {machine['commit'] or 'unknown'}, "
        f"{machine['created']}.",
        "",
        f"Allocator: {report['allocator']}.",
        "",
        f"Product of two float32 matrices of {report['settings']['matmul']} rows, in turn with everything else: median "
        f"{median(everything):.0f} GFLOP/s, best {max(everything):.0f}; {drift:+.0f} % from the first group to the "
        f"last{calm}.",
    ]


def bar_cells(row: Row) -> list[str]:
    """A row of the bars."""
    sign = "<=" if row.most else ">="
    met = {True: "yes", False: "no", None: "-"}[row.met]
    return [
        row.what,
        seconds(row.plain, row.estimated),
        seconds(row.ours),
        figure(row.value, row.unit),
        f"{sign} {row.bar:g}{row.unit}",
        met,
    ]


def step_lines(found: Mapping[str, Any]) -> list[str]:
    """Every step, recipe batches before larger ones."""
    head = (
        *("method", "images", "classes", "batch", "plain, s", "ours, s", "ratio", "first plain, s", "first ours, s"),
        *("plain, GiB", "ours, GiB"),
    )
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for step in steps(found["groups"]):
        row = step.row(found["groups"])
        plain: Mapping[str, Any] = (step.plain if step.factor == 1 else None) or {}  # of a step, not of one image
        larger = step.batch > RECIPE_BATCH.get(step.method, step.batch)
        rows[larger].append(
            [
                *(step.method, "encoded" if step.images == "images" else "cached"),
                *(str(step.classes or "-"), str(step.batch)),
                *(seconds(row.plain, row.estimated), seconds(row.ours), figure(row.value, "x")),
                *(seconds(plain.get("first")), seconds(step.ours["first"])),
                *(gib(plain.get("peak_gib")), gib(step.ours["peak_gib"])),
            ]
        )
    lines = ["Batches of the recipes:", "", *grid(head, rows[False], names=2)]
    if rows[True]:
        lines += ["", "Larger batches:", "", *grid(head, rows[True], names=2)]
    work, of_peak = found["work"], share(found)
    if of_peak is not None:
        lines += [
            "",
            f"CoOp, cached: {work['counted_gflop']:.4g} GFLOP a step as torch counts them, {work['useful_gflop']:.4g} "
            "in the linear layers for useful tokens alone. By the smaller count the step reaches "
            f"{of_peak:.0f} % of the matrix product's rate.",
        ]
    return lines


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """Both sides by method, over all seeds."""
    methods, seeds = evaluation["methods"], len(evaluation["seeds"])
    chosen = {name: [name] for name in methods}
    chosen |= {"all": list(methods), "all but cocoop": [name for name in methods if name != "cocoop"]}
    rows = []
    for what, names in chosen.items():
        plain, ours = evaluation_seconds(evaluation, names)
        later = [sum(methods[name]["ours"][1:]) * seeds / (seeds - 1) for name in names] if seeds > 1 else []
        full = sum(later) if later else None
        cells = (seconds(plain, True), seconds(ours), figure(plain / ours, "x"), seconds(full))
        rows.append([what, *cells, figure(full and plain / full, "x")])
    head = ("method", "plain, s", "ours, empty cache, s", "ratio", "ours, full cache, s", "ratio")
    return [
        f"{evaluation['images']} images in batches of {evaluation['batch']}, {seeds} seeds, methods in this order. "
        "Full cache: as the later seeds took, for all seeds.",
        "",
        *grid(head, rows, names=1),
    ]


def seconds(value: float | None, estimated: bool = False) -> str:
    """Three digits."""
    return "-" if value is None else f"{'~' * estimated}{digits(value)}"


def figure(value: float | None, unit: str) -> str:
    """Three digits with a unit."""
    return "-" if value is None else f"{digits(value)}{unit}"


def digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.4f}"


def gib(value: float | None) -> str:
    """Two places."""
    return "-" if value is None else f"{value:.2f}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> list[str]:
    """A Markdown table with aligned columns; the first `names` are text."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if place < names else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return [line(head), line(rule), *map(line, rows)]
