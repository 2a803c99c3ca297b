"""`promptbench show-config`."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import add_what, request_of

HELP = "show what a run uses, and where each value comes from"
EXAMPLE = "promptbench show-config --method maple --protocol base2new --dataset dtd --suite clip11"
add_arguments = add_what


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench show-config`: a block per method and dataset."""
    from promptbench.cli.describe import show_settings
    from promptbench.runs.plan import plan_runs

    request = request_of(options, companions=False)
    print("\n\n".join(dict.fromkeys(show_settings(run, request) for run in plan_runs(request))))
    return 0
