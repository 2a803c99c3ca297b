"""`promptbench list`."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import add_plugin

KINDS = ("methods", "datasets", "protocols", "suites", "backbones")
HELP = f"list {', '.join(KINDS[:-1])} or {KINDS[-1]}"
EXAMPLE = "promptbench list methods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench list` to its parser."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    add_plugin(parser)


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench list`, which imports no plugin and no torch."""
    from promptbench.cli.describe import list_kind

    print(list_kind(options.kind, KINDS))
    return 0
