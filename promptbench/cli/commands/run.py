"""`promptbench run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench import registry
from promptbench.cli.describe import foreseen
from promptbench.cli.flags import (
    OUTPUT,
    PROTOCOL,
    add_corrupt,
    add_evaluation,
    add_jobs,
    add_list,
    add_what,
    integer,
    request_of,
    session_of,
)
from promptbench.config import path_of, unknown
from promptbench.experiment import Where, run
from promptbench.recipe import parse_label
from promptbench.suite import Suite, load_suite

if TYPE_CHECKING:
    from promptbench.sweep.remembered import Known

HELP = "train, evaluate, store results and print the table"
EXAMPLE = "promptbench run --method zeroshot coop maple --protocol base2new --seeds 1 2 3 --set coop.n_ctx=4"
ALL = "all"  # methods, or protocols of a suite
NAMED = 6  # methods or datasets that the first line names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench run` to its parser."""
    add_what(parser)
    evaluation = parser.add_argument_group("evaluation")
    add_corrupt(evaluation)
    add_evaluation(evaluation)
    several = parser.add_argument_group("many runs")
    add_list(several, "--grid", dest="points", metavar="M.FIELD=V,V", help="run a method with every combination")
    add_jobs(several, "runs at once; default: auto, as many as cores and memory carry, on a GPU one, on a cluster all")
    several.add_argument(
        "--runs-per-gpu", type=integer(1), default=1, metavar="N", help="of --jobs, most on one GPU; default: 1"
    )
    executor = "where runs are done: local, ray, ray:ADDRESS, slurm; default: local"
    several.add_argument("--executor", default="local", metavar="E", help=executor)
    add_list(several, "--executor-option", metavar="KEY=VALUE", help="of ray or slurm, such as partition=gpu time=60")
    again = parser.add_argument_group("what is done again, and before anything is done")
    again.add_argument(
        "--retry-failed",
        action=argparse.BooleanOptionalAction,
        help="do runs again that failed in an earlier call, or leave them alone; default: again, but for those at "
        "which the process itself ended twice",
    )
    again.add_argument(
        "--keep-outdated",
        action="store_true",
        help="leave finished runs alone whose weights or whose method's code changed since; default: do them again",
    )
    again.add_argument(
        "--dry-run",
        nargs="?",
        const="estimate",
        choices=("estimate", "list"),
        help="list the runs and how long they take, told from a few steps of each method; list: without that",
    )


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench run`; returns the exit code, 1 where a run failed."""
    from promptbench.cli.progress import Display, print_results
    from promptbench.sweep.remembered import key_of, remember

    where = Where(
        jobs=options.jobs,
        runs_per_gpu=options.runs_per_gpu,
        executor=options.executor,
        options=options.executor_option or (),
        plugins=options.plugin or (),
    )
    where.check()
    key = None
    if "torch" not in sys.modules:  # importing it takes seconds, in which something should have been said
        suite = announce(options)
        key = key_of(vars(options), suite) if where.here and not options.dry_run else None
        known = recalled(key, options) if key else None
        if known is not None:
            output = path_of(options.output or OUTPUT)
            return print_results(lambda: known.results, suite, output, known.labels, known.datasets)
    request = request_of(options)
    session = session_of(options, request.suite, options.output or OUTPUT, request.device)
    if options.dry_run:
        print(foreseen(session, request, estimate=options.dry_run == "estimate", jobs=options.jobs))
        return 0
    how = {"where": where, "retry_failed": options.retry_failed, "keep_outdated": options.keep_outdated}
    results_of = partial(run, request, session, Display(), **how)
    code = print_results(results_of, session.suite, session.place.named, request.labels)
    if key and not code:
        remember(key, request, session)
    return code


def recalled(key: str, options: argparse.Namespace) -> Known | None:
    """What the same call came to before, where all of that still stands."""
    from promptbench.sweep.remembered import recall

    kept = {"save_predictions": options.save_predictions, "skip_unreadable": options.on_bad_image == "skip"}
    roots = [Path(root) for root in options.data_root or ()]
    return recall(key, path_of(options.output or OUTPUT).absolute(), roots, **kept)


def announce(options: argparse.Namespace) -> Suite:
    """Say what a call will run and where its results go, as far as its words and its suite tell that; the suite.

    Raises:
        UsageError: A method, a protocol or the suite is not known.
    """
    suite = load_suite(options.suite)
    usual = [] if options.dataset else [PROTOCOL]  # a dataset may ask for another one
    protocols = list(dict.fromkeys(options.protocol or usual))
    methods = options.method or suite.lineup
    named = {"methods": [parse_label(label)[0] for label in methods], "protocols": protocols}
    for kind, names in named.items():
        for name in names:
            if name not in (ALL, *registry.names(kind)):
                raise unknown(kind.removesuffix("s"), name, registry.names(kind))
    if not methods:  # that is refused
        return suite
    datasets = f"{few(options.dataset)}, " if options.dataset else ""
    under = f"{', '.join(protocols)} on " if protocols else ""
    what = f"{under}{datasets}suite {suite.name}: {few([*suite.companions, *methods])}"
    seeds = options.seeds or suite.seeds
    drawn = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"
    print(f"{what}; {drawn}; results in {options.output or OUTPUT}", file=sys.stderr, flush=True)
    return suite


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    once = list(dict.fromkeys(names))
    more = f" and {len(once) - NAMED} more" if len(once) > NAMED else ""
    return ", ".join(once[:NAMED]) + more
