"""`promptbench eval`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

from promptbench.cli.flags import (
    add_corrupt,
    add_evaluation,
    add_list,
    add_places,
    add_plugin,
    add_run,
    place_of,
    run_of,
)
from promptbench.config import UsageError
from promptbench.training.numerics import resolve_device

HELP = "evaluate the stored training of a run under other protocols"
EXAMPLE = "promptbench eval --run coop-0123 --protocol ood"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench eval` to its parser."""
    add_run(parser, "a result")
    add_list(parser, "--protocol", required=True, metavar="P", help="protocols, or all")
    parser.add_argument("--suite", metavar="S", help="a name or a YAML file; default: the run's")
    add_corrupt(parser)
    add_places(parser, "where the run is")
    add_evaluation(parser)
    add_plugin(parser)


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench eval`; returns the exit code, 1 where an evaluation failed."""
    from promptbench.cli.progress import Display, print_results
    from promptbench.experiment import do
    from promptbench.results.result import folder_of, read_result
    from promptbench.runs.reevaluate import evaluations_of, suite_of
    from promptbench.runs.request import corruptions_for, protocols_of
    from promptbench.runs.session import Session
    from promptbench.suite import load_suite

    path = run_of(options)
    result = read_result(path)
    try:
        device = resolve_device(result.spec.device)
    except UsageError as error:
        raise UsageError(
            f"{path} was trained on {result.spec.device}, which is not here, and is evaluated where it was "
            "trained; `promptbench predict` scores images with it on a CPU."
        ) from error
    suite = suite_of(load_suite(options.suite or result.spec.suite), result.spec)
    protocols = protocols_of(suite, options.protocol)
    corruptions = corruptions_for(options.corrupt or (), protocols)
    suite = replace(suite, corruptions=tuple(map(str, corruptions)) or suite.corruptions)
    corruption = corruptions[0] if corruptions else None
    how = {"corruption": corruption, "temperature": options.temperature, "limit": options.limit}
    runs = evaluations_of(result, protocols, suite, **how)
    output = options.output or folder_of(path)
    session = Session(place_of(options, output, device, may_train=False), suite)
    return print_results(partial(do, runs, session, Display()), session)
