"""`promptbench describe`."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import add_json, add_plugin
from promptbench.config import path_of

HELP = "describe a method, dataset, protocol, score, suite, metric, column or result file"
EXAMPLE = "promptbench describe maple"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench describe` to its parser."""
    parser.add_argument("name", metavar="NAME", help="as `promptbench list` or a table shows it, or a result file")
    add_json(parser)
    add_plugin(parser)


def execute(options: argparse.Namespace) -> int:
    """`describe`."""
    if options.json:
        print(as_json(options.name))
        return 0
    if options.name.endswith(".json"):
        from promptbench.cli.stored import describe_result

        print(describe_result(path_of(options.name)))
        return 0
    from promptbench.cli.describe import describe

    print(describe(options.name))
    return 0


def as_json(name: str) -> str:
    """The same for programs."""
    from promptbench.cli.as_json import described, described_result, printed
    from promptbench.results.result import read_result

    if name.endswith(".json"):
        return printed(described_result(path_of(name), read_result(path_of(name))))
    return printed(described(name))
