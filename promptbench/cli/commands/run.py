"""`promptbench run`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from promptbench.cli.describe import foreseen
from promptbench.cli.flags import OUTPUT, add_evaluation, add_list, add_what, integer, request_of, session_of
from promptbench.config import UsageError
from promptbench.experiment import carry_out
from promptbench.sweep.executors.contract import LOCAL, choose

if TYPE_CHECKING:
    from promptbench.runs.request import Request

HELP = "train, evaluate, store results and print the table"
EXAMPLE = "promptbench run --method zeroshot coop maple --protocol base2new --seeds 1 2 3 --set coop.n_ctx=4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_what(parser)
    add_evaluation(parser)
    add_list(parser, "--grid", dest="points", metavar="M.FIELD=V,V", help="run a method with every combination")
    parser.add_argument(
        "--jobs", type=integer(1), metavar="N", help="runs at once; default: 1, on a cluster as many as have room"
    )
    parser.add_argument(
        "--runs-per-gpu", type=integer(1), default=1, metavar="N", help="of --jobs, most on one GPU; default: 1"
    )
    executor = "where runs are done: local, ray, ray:ADDRESS, slurm; default: local"
    parser.add_argument("--executor", default="local", metavar="E", help=executor)
    add_list(parser, "--executor-option", metavar="KEY=VALUE", help="of ray or slurm, such as partition=gpu time=60")
    parser.add_argument(
        "--retry-failed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="do runs again that failed in an earlier call, or leave them alone; default: again",
    )
    parser.add_argument(
        "--keep-outdated",
        action="store_true",
        help="leave finished runs alone whose weights or whose method's code changed since; default: do them again",
    )
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="estimate",
        choices=("estimate", "list"),
        help="list the runs and how long they take, told from a few steps of each method; list: without that",
    )


def execute(options: argparse.Namespace) -> int:
    """`run`: 1 where a run failed."""
    from promptbench.results.result import stored_results
    from promptbench.runs.plan import plan_runs
    from promptbench.sweep.outdated import renew
    from promptbench.sweep.preflight import check_finished

    if options.executor != LOCAL or options.executor_option:  # this machine needs no more than is there
        choose(options.executor, options.executor_option or ())  # which says what is wrong, before it is needed
    request = request_of(options) if options.executor == LOCAL else request_elsewhere(options)
    runs = plan_runs(request)
    session = session_of(options, request.suite, options.output or OUTPUT, request.device)
    if options.dry_run:
        print(foreseen(session, runs, request, estimate=options.dry_run == "estimate"))
        return 0
    results = stored_results(session.output, [run.spec for run in runs])
    here = session if options.executor == LOCAL else replace(session, device="cpu")  # this machine may have no GPU
    check_finished(here, results)
    results = renew(here, runs, results, keep=options.keep_outdated)
    return carry_out(session, runs, request.methods, options, request, results)


def request_elsewhere(options: argparse.Namespace) -> Request:
    """What the command line asks for, of machines that may have a GPU where this one has none.

    Raises:
        UsageError: It names one of the GPUs of this machine.
    """
    from promptbench.training.numerics import check_device

    if not options.device.startswith("cuda"):
        return request_of(options)
    if options.device != "cuda":
        raise UsageError(f"--device {options.device}: with --executor, the nodes choose the GPU; say --device cuda.")
    check_device(options.precision, options.device)
    here = argparse.Namespace(**{**vars(options), "device": "cpu", "precision": "32"})
    return replace(request_of(here), device="cuda", precision=options.precision)
