"""What a report says, as Markdown, from the report alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from .limit import CACHED, ENCODED, KNOWN
from .measure import RECIPE_BATCH
from .operations import KINDS
from .rows import Row, Step, bars, evaluation_seconds, matmul_rates, steps

IN_WORDS = {ENCODED: "encoded", KNOWN: "known", CACHED: "cached"}
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
    "Prompt Learning with several images is that of one image times the batch; plain steps at other numbers of classes "
    "than it was run with lie on a line through those at fewer, if these rise by a quarter; a plain step that encodes, "
    "of a method that trains on cached features, is the cached one and CoOp's image tower for as many images; a plain "
    "evaluation was timed for one seed and, for CoCoOp, with two of the images scored.",
    "",
    "Limit: the operations of the linear layers that no step can do without, by formula "
    "(`benchmarks/speed/limit.py`: forward and backward, for tokens that depend on what is learned or on new images, "
    "no padding, nothing twice), over the rate of the matrix product in turn with the step; of limit: the share of it "
    "that our step reaches. What attention, normalisation and the update of what is learned take is not in it.",
    "",
    "Memory: what the first call adds to resident memory. Cached: image features known, and no pixels read; known: "
    "pixels, and the features of the frozen tower beside them; encoded: from pixels in memory. Reading: one random "
    "view of each of 32 JPEG files. PromptSRC's frozen texts are encoded before anything is timed. dpl and mutual are "
    "reconstructions, and no official code is public: plain computes their formulas as the code of the others does. "
    "zeroshot, linear_probe and tip_adapter take no gradient steps.",
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
    """Every step, recipe batches before larger ones, and what steps spend their time on."""
    head = (
        *("method", "images", "classes", "batch", "plain, s", "ours, s", "ratio", "limit, s", "of limit"),
        *("plain, GiB", "ours, GiB"),
    )
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    spent = []
    for step in sorted(steps(found["groups"]), key=lambda step: step.classes or float("inf")):
        larger = step.batch != RECIPE_BATCH.get(step.method, step.batch)
        names = [step.method, images_of(step), str(step.classes or "-"), str(step.batch)]
        ours = [seconds(step.seconds), figure(step.ratio, "x"), seconds(step.limit), percent(step.share)]
        cells = [seconds(step.plain, step.estimated), *ours, gib(step.plain_gib), gib(step.ours["peak_gib"])]
        rows[larger].append([*names, *cells])
        if "operations" in step.ours and step.images == step.plain_images:
            kinds = [percent(share) for share in step.ours["operations"].values()]
            spent.append([*names, seconds(step.seconds), percent(step.share), *kinds])
    lines = ["Batches of the recipes:", "", *grid(head, rows[False], names=2)]
    if rows[True]:
        lines += ["", "Other batches:", "", *grid(head, rows[True], names=2)]
    if spent:
        head = ("method", "images", "classes", "batch", "ours, s", "of limit", *KINDS, "other")
        lines += ["", "What our steps spend their time on, by kind of operation:", "", *grid(head, spent, names=2)]
    return lines


def images_of(step: Step) -> str:
    """Where both sides get image features from, in words."""
    words = IN_WORDS[step.images]
    return words if step.images == step.plain_images else f"{words}, plain encodes"


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


def percent(value: float | None) -> str:
    """Without places."""
    return "-" if value is None else f"{value:.0f}%"


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
