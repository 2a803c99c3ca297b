"""`promptbench status`."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import OUTPUT, add_json
from promptbench.config import UsageError, path_of

HELP = "show which runs are done, running and failed, here or on other machines"
EXAMPLE = "promptbench status --results promptbench-runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench status` to its parser."""
    parser.add_argument(
        *("--results", "--output"),
        dest="output",
        default=OUTPUT,
        metavar="DIR",
        help=f"what `run` writes to; default: ./{OUTPUT}",
    )
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench status`, from the files of an output folder."""
    from promptbench.cli.text import columns, reason, running_lines, short, summary
    from promptbench.sweep.status import SHOWN, left_undone, standing_of

    folder = path_of(options.output)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}; name one that `promptbench run` writes to with --results.")
    standing = standing_of(folder)
    if options.json:
        from promptbench.cli.as_json import printed, stood

        print(printed(stood(folder, standing)))
        return 0
    print(f"{folder}: {summary(standing)}")
    left = left_undone(folder, standing)
    if left:
        print(f"{len(left)} to do that an interrupted call left; the same command goes on from here")
    if standing.running:
        print("\nrunning\n" + columns(running_lines(standing), indent="  "))
    if standing.failed:
        shown = list(standing.failed.items())[:SHOWN]
        print("\nfailed\n" + "\n".join(f"  {short(name)}: {reason(path)}" for name, path in shown))
        if len(standing.failed) > SHOWN:
            print(f"  ... and {len(standing.failed) - SHOWN} more, see *.failed.json")
    return 0
