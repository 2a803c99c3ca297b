"""`promptbench results`."""

from __future__ import annotations

import argparse
import sys

HELP = "merge the results of several folders into one"
EXAMPLE = "promptbench results merge runs-of-anna runs-of-ben -o runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its action and the flags of that."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    merge = actions.add_parser("merge", help=HELP, description=f"M{HELP[1:]}.", epilog=f"Example: {EXAMPLE}")
    merge.add_argument("folders", nargs="+", metavar="DIR", help="folders that `run` wrote to")
    merge.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="may be one of them; what is in it is never replaced"
    )
    merge.add_argument(
        "--prefer", default="", choices=("first", "newest"), help="where numbers of a run differ; default: copy neither"
    )


def execute(options: argparse.Namespace) -> int:
    """`results merge`: 1 where something was left out."""
    from promptbench.results.merge import merge

    merged = merge(options.folders, options.output, options.prefer)
    for line in (*merged.settled, *merged.left_out):
        print(f"promptbench: {' '.join(line.splitlines())}", file=sys.stderr)
    written = ", ".join(f"{count} {kind}" for kind, count in merged.written.items())
    left_out = f"; left out: {len(merged.left_out)}, see above" if merged.left_out else ""
    print(f"wrote {written} to {options.output}; {merged.known} runs were there already{left_out}")
    return 1 if merged.left_out else 0
