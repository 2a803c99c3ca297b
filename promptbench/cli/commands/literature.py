"""`promptbench literature`: which figures papers print, where they contradict each other, and H over the years."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from promptbench.cli.flags import add_list
from promptbench.config import UsageError, path_of, unknown

HELP = "show what figures papers print, and where they contradict each other"
EXAMPLE = "promptbench literature disagreements --method mma"
PARTS = ("coverage", "disagreements")
FORMATS = ("md", "csv", "json")
SAID = {
    "coverage": (
        "Datasets: how many, averages apart. Figures: how many, in percent. Selection: what the settings of the "
        "figures were chosen on. Quoted: the source quotes others."
    ),
    "disagreements": (
        "Figures are in percent, with the digits that are printed. Needed: what any one of them would have to be, were "
        "the others right; an average and the datasets beside it may differ by their rounding."
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench literature` to its parser."""
    parser.add_argument("part", nargs="?", default="", metavar="PART", help=f"{' or '.join(PARTS)}; default: both")
    add_list(parser, "--method", metavar="M", help="only these, named as here or as papers do")
    add_list(parser, "--protocol", metavar="P", help="only these")
    add_list(parser, "--dataset", metavar="D", help="only these, such as ucf101 or average11")
    parser.add_argument("--figures", metavar="DIR", help="CSV files of figures instead of those that are shipped")
    parser.add_argument("--format", default="md", metavar="F", help=f"{', '.join(FORMATS)}; default: md")
    parser.add_argument("--plot", metavar="FILE", help="draw H over the years instead: a .png, .svg, .pdf or .pgf file")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench literature`, from the published figures alone."""
    from promptbench.results.literature import chosen, coverage, disagreements
    from promptbench.results.papers import load

    if options.part not in ("", *PARTS):
        raise unknown("part", options.part, PARTS)
    if options.format not in FORMATS:
        raise unknown("format", options.format, FORMATS)
    rows = load(path_of(options.figures) if options.figures else None)
    wanted = (options.method or (), options.protocol or (), options.dataset or ())
    if options.plot:
        return _draw(chosen(rows, *wanted), options.plot)
    shown: dict[str, list[Any]] = {
        "coverage": coverage(chosen(rows, *wanted)),
        "disagreements": [one for one in disagreements(chosen(rows, *wanted[:2])) if _is_of(one.dataset, wanted[2])],
    }
    print(_text({part: shown[part] for part in PARTS if options.part in ("", part)}, options.format), end="")
    return 0


def _is_of(dataset: str, wanted: Sequence[str]) -> bool:
    return not wanted or dataset in wanted


def _draw(rows: Sequence[Any], file: str) -> int:
    from promptbench.show.plots import literature
    from promptbench.show.plots.picture import paragraph, rounded, save

    path = path_of(file)
    data = rounded(literature.data(rows))
    save(literature.draw, data, path)
    print(f"wrote {path}\n\n{paragraph(literature.caption_of(data))}")
    return 0


def _text(parts: dict[str, list[Any]], format: str) -> str:
    """The parts in one of `FORMATS`."""
    if format == "json":
        return json.dumps({part: [line._asdict() for line in lines] for part, lines in parts.items()}, indent=1) + "\n"
    if format == "csv":
        if len(parts) > 1:
            raise UsageError("--format csv holds one table; name coverage or disagreements.")
        return _csv(*parts.values())
    return "\n".join(_markdown(part, lines) for part, lines in parts.items())


def _csv(lines: Sequence[Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([lines[0]._fields] if lines else [])
    writer.writerows([_cell(value) for value in line] for line in lines)
    return text.getvalue()


def _markdown(part: str, lines: Sequence[Any]) -> str:
    from promptbench.show.tables.formats.texts import MARKDOWN, Texts, laid_out

    if not lines:
        return f"### {part}\n\nNone.\n"
    head = list(lines[0]._fields)
    body = [[MARKDOWN.escape(_cell(value)) for value in line] for line in lines]
    return "\n".join(laid_out(part, Texts(head, [body], [SAID[part]]), names=len(head))) + "\n"


def _cell(value: Any) -> str:
    """The text of a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
