"""`promptbench audit`: whether the rows of a folder's tables compare like with like, from its files alone."""

from __future__ import annotations

import argparse
import json

from promptbench.cli.flags import OUTPUT
from promptbench.config import path_of, unknown

HELP = "check that the results in a folder are of the same images, names and words, and how they were made"
EXAMPLE = "promptbench audit results/mini"
FORMATS = ("text", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench audit` to its parser."""
    parser.add_argument("folder", nargs="?", default=OUTPUT, metavar="DIR", help=f"default: ./{OUTPUT}")
    parser.add_argument("--format", default="text", metavar="F", help=f"{' or '.join(FORMATS)}; default: text")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench audit`; 1 where something differs."""
    from promptbench.cli.text import columns
    from promptbench.show.audit import DIFFERS, audit
    from promptbench.show.tables.show import uncollected

    if options.format not in FORMATS:
        raise unknown("format", options.format, FORMATS)
    folder = path_of(options.folder)
    with uncollected():
        checks = audit(folder)
    if options.format == "json":
        print(json.dumps([check._asdict() for check in checks], indent=1))
    else:
        print(f"{folder}\n\n" + columns([(check.what, f"{check.state}: {check.said}") for check in checks]))
    return 1 if any(check.state == DIFFERS for check in checks) else 0
