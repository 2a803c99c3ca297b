"""`promptbench diff`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from promptbench.cli.flags import add_list
from promptbench.show.tables.formats.texts import MARKDOWN, Texts, clean, laid_out, seeds_text

if TYPE_CHECKING:
    from promptbench.results.diff import Cell, Comparison
    from promptbench.results.result import Result

HELP = "tell what changed between two sets of results"
EXAMPLE = "promptbench diff runs-before runs-after --protocol base2new"
HEAD = ("dataset", "method", "figure", "A", "B", "B − A", "95 % interval", "over", "n")
NAMES = 3  # columns on the left that hold names
INTERVALS = (
    "A and B: means over the n seeds that both have, in percent. Intervals: paired bootstrap, 10000 resamples, over "
    "test images where both sides have stored predictions of the same ones, else over three seeds or more."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench diff` to its parser."""
    parser.add_argument("a", metavar="A", help="a folder that `run` wrote to, or a result file")
    parser.add_argument("b", metavar="B", help="what it is compared with")
    add_list(parser, "--protocol", metavar="P", help="only these; default: all")
    parser.add_argument("--format", default="md", choices=("md", "json"), help="default: md")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 where something changed")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench diff`; returns the exit code, 1 where something changed, if asked for."""
    from promptbench.results.diff import compare

    found = compare(options.a, options.b, [name for name in options.protocol or () if name != "all"])
    print(as_json(found, options.a, options.b) if options.format == "json" else as_text(found, options.a, options.b))
    return int(options.exit_code and not found.same)


def as_text(found: Comparison, a: str, b: str) -> str:
    """Markdown: a table per protocol, then what the sides do not share."""
    parts = [f"A: {clean(a)}", f"B: {clean(b)}"]
    shared = _everywhere(found)
    if shared:
        parts.append(f"Differs in all runs compared: {'; '.join(shared)}.")
    for protocol in dict.fromkeys(cell.protocol for cell in found.cells):
        parts.append(_table(protocol, [cell for cell in found.cells if cell.protocol == protocol], set(shared)))
    runs = sum(len(pair.a) for pair in found.matched.pairs)
    parts.append(
        "no difference"
        if found.same
        else f"{len(found.cells)} of {len(found.cells) + found.unchanged} figures changed, of {runs} runs compared."
    )
    parts += [
        f"Only in {side}:\n\n" + "\n".join(f"- {line}" for line in _listed(runs))
        for side, runs in (("A", found.matched.only_a), ("B", found.matched.only_b))
        if runs
    ]
    return "\n\n".join(parts)


def as_json(found: Comparison, a: str, b: str) -> str:
    """Everything, unrounded."""
    cells = [{**vars(cell), "difference": cell.difference} for cell in found.cells]
    record: dict[str, Any] = {
        "a": a,
        "b": b,
        "same": found.same,
        "changed": cells,
        "unchanged": found.unchanged,
        "compared": [
            {"a": before.name, "b": pair.b[seed].name, "differs": dict(pair.differs)}
            for pair in found.matched.pairs
            for seed, before in pair.a.items()
        ],
        "only_in_a": [run.name for run in found.matched.only_a],
        "only_in_b": [run.name for run in found.matched.only_b],
    }
    return json.dumps(record, indent=1, ensure_ascii=False)


def _everywhere(found: Comparison) -> list[str]:
    """The differences that all pairs of runs have."""
    of_pairs = [{f"{name}: {text}": None for name, text in pair.differs.items()} for pair in found.matched.pairs]
    return [text for text in of_pairs[0] if all(text in other for other in of_pairs)] if of_pairs else []


def _table(protocol: str, cells: Sequence[Cell], shared: set[str]) -> str:
    notes: dict[str, int] = {}
    rows = [_row(cell, shared, notes) for cell in cells]
    remarks = [INTERVALS, *(f"[{number}] {clean(note)}." for note, number in notes.items())]
    return "\n".join(laid_out(protocol, Texts(list(HEAD), [rows], remarks), NAMES))


def _row(cell: Cell, shared: set[str], notes: dict[str, int]) -> list[str]:
    """A figure as text; what is new to say of it gets the next number."""

    def noted(text: str) -> str:
        return f" [{notes.setdefault(text, len(notes) + 1)}]" if text else ""

    own = [text for name, said in cell.differs.items() if (text := f"{name}: {said}") not in shared]
    interval = f"{_signed(cell.interval[0])} to {_signed(cell.interval[1])}" if cell.interval else "–"
    why = f"No interval: {cell.why}" if cell.why and not cell.interval else ""
    values = ["–" if value is None else f"{value:.2f}" for value in (cell.a, cell.b)]
    gap = "–" if cell.difference is None else _signed(cell.difference)
    names = (cell.dataset, cell.method + noted("; ".join(own)), cell.title)
    return [*map(MARKDOWN.escape, names), *values, gap, interval + noted(why), cell.over or "–", str(len(cell.seeds))]


def _listed(runs: Iterable[Result]) -> Iterator[str]:
    """Runs without a counterpart, the seeds of one method together."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        of = f"{run.spec.protocol}, {run.spec.dataset}, {run.spec.label}, {_shots(run.spec.shots)}"
        seeds.setdefault(of, []).append(seeds_text([run.spec.seeds], ""))
    for of, found in seeds.items():
        yield f"{clean(of)}: seed{'s' * (len(found) > 1)} {', '.join(found)}"


def _shots(shots: int | None) -> str:
    return "all images" if shots is None else f"{shots} shot{'' if shots == 1 else 's'}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
