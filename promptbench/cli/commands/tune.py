"""`promptbench tune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from promptbench.cli.flags import OUTPUT, add_list, add_what, request_of

HELP = "choose settings on held-out images of halves of the training classes"
EXAMPLE = "promptbench tune --method coop --protocol base2new --grid lr=0.05,0.1,0.2 epochs=25,50"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_what(parser)
    add_list(
        parser, "--grid", metavar="FIELD=V,V", help="values to try; default: multiples of the recipe's lr and epochs"
    )


def execute(options: argparse.Namespace) -> int:
    """`tune`: the points of the grid, best first."""
    from promptbench.cli.progress import reporter
    from promptbench.data.dataset import data_roots
    from promptbench.results.result import check_writable
    from promptbench.sweep.tune import TuningSession, describe, parse_grid, tune

    request = request_of(options, companions=False)
    output = Path(options.output or OUTPUT) / "tuning"
    check_writable(output)
    session = TuningSession(request.suite, output, data_roots(options.data_root), request.device)
    with reporter() as listener:
        trials = tune(session, request, parse_grid(options.grid or []), listener)
    print(describe(trials, request))
    return 0
