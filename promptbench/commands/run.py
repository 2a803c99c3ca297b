"""`promptbench run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.config import UsageError
from promptbench.flags import OUTPUT, add_evaluation, add_list, add_what, bench_of, integer, request_of
from promptbench.sweep.executors.contract import LOCAL, choose

if TYPE_CHECKING:
    from promptbench.progress import Overview
    from promptbench.results.result import Result
    from promptbench.runs.plan import Run
    from promptbench.runs.request import Request
    from promptbench.runs.session import Bench
    from promptbench.sweep.loop import Executor

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
    bench = bench_of(options, request.suite, options.output or OUTPUT, request.device)
    if options.dry_run:
        print(foreseen(bench, runs, request, estimate=options.dry_run == "estimate"))
        return 0
    results = stored_results(bench.output, [run.spec for run in runs])
    here = bench if options.executor == LOCAL else replace(bench, device="cpu")  # this machine may have no GPU
    check_finished(here, runs, results)
    results = renew(here, runs, results, keep=options.keep_outdated)
    return carry_out(bench, runs, request.methods, options, request, results)


def foreseen(bench: Bench, runs: Sequence[Run], request: Request, estimate: bool) -> str:
    """The runs of a call, which are finished, and, where that is to be estimated, how long the others take."""
    from promptbench.listing import describe_runs, grid_points, state_of
    from promptbench.results.result import stored_results
    from promptbench.sweep.outdated import outdated

    old = outdated(bench, stored_results(bench.output, [run.spec for run in runs]), may_load=False)
    states = ["outdated" if run.spec.name in old else state_of(bench.output, run) for run in runs]
    points = {"grid": grid_points(runs, request)} if request.grid else {}
    if not estimate or set(states) <= {"done"}:
        return describe_runs(runs, states, points)
    from promptbench.sweep.estimate import duration, forecast

    found, said = forecast(bench, runs, again=old)
    times = ["?" if one is None else duration(one.seconds) if one.seconds else "-" for one in found]
    return describe_runs(runs, states, {**points, "time": times}) + "\n" + said


def carry_out(
    bench: Bench,
    runs: Sequence[Run],
    methods: Sequence[str] = (),
    options: argparse.Namespace | None = None,
    request: Request | None = None,
    results: Mapping[str, Result] | None = None,
) -> int:
    """Do what is not finished and print the tables of all runs; 1 where a run failed.

    Args:
        methods: In the order that tables show them.
        options: Of `add_arguments`, where several runs may go at once.
        request: What the runs were planned from; needed then.
        results: Of the runs that are finished, by name; None where nobody has read them yet.
    """
    from promptbench.results.result import failure_path, predictions_path, stored_results
    from promptbench.storage.claims import CLAIMS

    output = bench.output
    results = dict(stored_results(output, [run.spec for run in runs]) if results is None else results)
    again = bench.save_predictions  # which a finished run may lack
    todo = [
        run
        for run in runs
        if run.spec.name not in results or (again and not predictions_path(output, run.spec).exists())
    ]
    failed = [run for run in todo if failure_path(bench.output, run.spec).exists()]
    left = {run.spec.name for run in failed if options is not None and not options.retry_failed}
    todo = [run for run in todo if run.spec.name not in left]
    failures = do(bench, runs, todo, options, request) if todo else 0
    if not todo and (output / CLAIMS).is_dir():  # killed between its last result and its end
        from promptbench.sweep.loop import tidy

        tidy(output)
    results |= stored_results(output, [run.spec for run in todo])
    shown = [results[run.spec.name] for run in runs if run.spec.name in results]
    from promptbench.show.tables.show import print_tables  # it takes pandas, runs do not

    print_tables(shown, [bench.suite], methods, [entry.name for entry in bench.suite.entries()])
    if failures:
        of = f"{failures} of {len(todo)} runs" if len(todo) > 1 else "the run"
        print(f"promptbench: {of} failed; see *.failed.json in {bench.output}", file=sys.stderr)
    if left:
        print(f"promptbench: {len(left)} failed before; --retry-failed does them again", file=sys.stderr)
    return 1 if failures or left else 0


def do(
    bench: Bench,
    runs: Sequence[Run],
    todo: Sequence[Run],
    options: argparse.Namespace | None,
    request: Request | None,
) -> int:
    """Do the runs that are to do, of those of the call; returns how many failed."""
    from promptbench.results.result import check_writable

    check_writable(bench.output)
    elsewhere = options is not None and options.executor != LOCAL
    executor = None
    if options and request and (elsewhere or ((options.jobs or 1) > 1 and len(todo) > 1)):
        executor = choose(options.executor, options.executor_option or ())
        executor.prepare(bench.device)  # first, for what it starts may take as long as what follows
    from promptbench.progress import Overview, reporter
    from promptbench.sweep.loop import announced, run_all
    from promptbench.sweep.outdated import weights_hash
    from promptbench.sweep.preflight import preflight

    preflight(replace(bench, device="cpu") if elsewhere else bench, todo)  # this machine may have no GPU
    if not elsewhere:
        weights_hash(bench)  # so that the next call need not load the backbone to compare its weights
    with announced(bench.output, [run.spec.name for run in todo]):
        if executor is None or options is None or request is None:
            with reporter(total=len(runs), skipped=len(runs) - len(todo)) as listener:
                return run_all(bench, todo, listener)
        with Overview(todo, bench.output, len(runs)) as overview:
            return at_once(bench, todo, options, request, overview, executor)


def at_once(
    bench: Bench,
    todo: Sequence[Run],
    options: argparse.Namespace,
    request: Request,
    overview: Overview,
    executor: Executor,
) -> int:
    """Do several runs at once, or elsewhere; returns how many failed."""
    from promptbench.sweep import loop
    from promptbench.sweep.loop import failures_on_record

    bench.__dict__.pop("backbone", None)  # the workers have their own
    names = tuple(run.spec.name for run in loop.neighbours(todo))
    plugins = tuple(Path(path).absolute() for path in getattr(options, "plugin", None) or ())
    planned = replace(request, suite=replace(request.suite, threads=todo[0].spec.threads))  # nodes differ in cores
    job = loop.Job(planned, bench, names, failures_on_record(bench.output, todo), plugins)
    return loop.carry_out(loop.Sweep(job, todo, options.jobs, options.runs_per_gpu), executor, overview)


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
