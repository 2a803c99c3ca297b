"""`promptbench describe`."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import add_plugin

HELP = "describe a method, dataset, protocol, score, suite, metric or column"
EXAMPLE = "promptbench describe maple"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench describe` to its parser."""
    parser.add_argument("name", metavar="NAME", help="as `promptbench list` or a table shows it")
    add_plugin(parser)


def execute(options: argparse.Namespace) -> int:
    """`describe`."""
    from promptbench.cli.describe import describe

    print(describe(options.name))
    return 0
