"""`promptbench list`."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import add_json, add_plugin
from promptbench.config import UsageError

KINDS = ("methods", "datasets", "protocols", "scores", "suites", "backbones")
HELP = f"list {', '.join(KINDS[:-1])} or {KINDS[-1]}"
EXAMPLE = "promptbench list methods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench list` to its parser."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "--capabilities",
        action="store_true",
        help="of backbones: what works with each architecture of open_clip, and why the rest does not",
    )
    add_json(parser)
    add_plugin(parser)


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench list`, which imports no plugin and, without `--capabilities`, no torch."""
    from promptbench.cli.describe import list_capabilities, list_kind

    if options.capabilities and options.kind == "backbones":
        print(list_capabilities())
        return 0
    if options.capabilities:
        raise UsageError("--capabilities goes with `promptbench list backbones`.")
    if options.json:
        from promptbench.cli.as_json import listed, printed

        print(printed(listed(options.kind)))
        return 0
    print(list_kind(options.kind, KINDS))
    return 0
