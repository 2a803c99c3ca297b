"""`promptbench run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.flags import OUTPUT, add_evaluation, add_list, add_what, bench_of, integer, request_of

if TYPE_CHECKING:
    from promptbench.bench import Bench
    from promptbench.planning import Request, Run
    from promptbench.progress import Overview
    from promptbench.results import Result

HELP = "train, evaluate, store results and print the table"
EXAMPLE = "promptbench run --method zeroshot coop maple --protocol base2new --seeds 1 2 3 --set coop.n_ctx=4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_what(parser)
    add_evaluation(parser)
    add_list(parser, "--grid", dest="points", metavar="M.FIELD=V,V", help="run a method with every combination")
    parser.add_argument("--jobs", type=integer(1), default=1, metavar="N", help="runs at once; default: 1")
    parser.add_argument(
        "--runs-per-gpu", type=integer(1), default=1, metavar="N", help="of --jobs, most on one GPU; default: 1"
    )
    parser.add_argument(
        "--retry-failed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="do runs again that failed in an earlier call, or leave them alone; default: again",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs, which are finished, and their recipes")


def execute(options: argparse.Namespace) -> int:
    """`run`: 1 where a run failed."""
    from promptbench.listing import describe_runs, state_of
    from promptbench.planning import plan_runs
    from promptbench.preflight import check_finished

    request = request_of(options)
    runs = plan_runs(request)
    bench = bench_of(options, request.suite, options.output or OUTPUT, request.device)
    if options.dry_run:
        print(describe_runs(runs, [state_of(bench.output, run) for run in runs]))
        return 0
    check_finished(bench, runs)
    return carry_out(bench, runs, request.methods, options, request)


def carry_out(
    bench: Bench,
    runs: Sequence[Run],
    methods: Sequence[str] = (),
    options: argparse.Namespace | None = None,
    request: Request | None = None,
) -> int:
    """Do what is not finished and print the tables of all runs; 1 where a run failed.

    Args:
        methods: In the order that tables show them.
        options: Of `add_arguments`, where several runs may go at once.
        request: What the runs were planned from; needed then.
    """
    from promptbench.results import failure_path
    from promptbench.showing import print_tables

    results = stored(bench, runs)
    again = bench.save_predictions  # which a finished run may lack
    todo = [run for run in runs if run.spec.name not in results or (again and not bench.is_finished(run.spec))]
    failed = [run for run in todo if failure_path(bench.output, run.spec).exists()]
    left = {run.spec.name for run in failed if options is not None and not options.retry_failed}
    todo = [run for run in todo if run.spec.name not in left]
    failures = do(bench, runs, todo, options, request) if todo else 0
    results |= stored(bench, todo)
    shown = [results[run.spec.name] for run in runs if run.spec.name in results]
    print_tables(shown, [bench.suite], methods, [entry.name for entry in bench.suite.entries()])
    if failures:
        of = f"{failures} of {len(todo)} runs" if len(todo) > 1 else "the run"
        print(f"promptbench: {of} failed; see *.failed.json in {bench.output}", file=sys.stderr)
    if left:
        print(f"promptbench: {len(left)} failed before; --retry-failed does them again", file=sys.stderr)
    return 1 if failures or left else 0


def stored(bench: Bench, runs: Sequence[Run]) -> dict[str, Result]:
    """The results of those runs that have one, by name; each file is read once."""
    from promptbench.results import find, read_result, result_path

    found = {}
    for run in runs:
        path = result_path(bench.output, run.spec)
        if path.exists():
            found[run.spec.name] = read_result(path)
            if found[run.spec.name].spec != run.spec:
                find(bench.output, run.spec)  # which says so
    return found


def do(
    bench: Bench, runs: Sequence[Run], todo: Sequence[Run], options: argparse.Namespace | None, request: Request | None
) -> int:
    """Do the runs that are to do, of those of the call; returns how many failed."""
    from promptbench.preflight import preflight
    from promptbench.progress import Overview, reporter
    from promptbench.results import check_writable
    from promptbench.runner import announced, run_all

    check_writable(bench.output)
    preflight(bench, todo)
    with announced(bench.output, [run.spec.name for run in todo]):
        if options is None or request is None or options.jobs == 1 or len(todo) == 1:
            with reporter(total=len(runs), skipped=len(runs) - len(todo)) as listener:
                return run_all(bench, todo, listener)
        with Overview(todo, bench.output, len(runs)) as overview:
            return at_once(bench, todo, options, request, overview)


def at_once(
    bench: Bench, todo: Sequence[Run], options: argparse.Namespace, request: Request, overview: Overview
) -> int:
    """Do several runs at once; returns how many failed."""
    from promptbench.runner import failures_on_record
    from promptbench.sweep import Job, Sweep, neighbours, places

    jobs, gpus = places(min(options.jobs, len(todo)), bench.device, options.runs_per_gpu)
    bench.__dict__.pop("backbone", None)  # the workers have their own
    names = tuple(run.spec.name for run in neighbours(todo))
    plugins = tuple(Path(path).absolute() for path in getattr(options, "plugin", None) or ())
    job = Job(request, bench, names, failures_on_record(bench.output, todo), plugins)
    return Sweep(job, todo, gpus).carry_out(jobs, overview)
