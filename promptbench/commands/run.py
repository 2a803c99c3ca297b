"""`promptbench run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from promptbench.flags import OUTPUT, add_evaluation, add_list, add_what, bench_of, request_of

if TYPE_CHECKING:
    from promptbench.bench import Bench
    from promptbench.planning import Run

HELP = "train, evaluate, store results and print the table"
EXAMPLE = "promptbench run --method zeroshot coop maple --protocol base2new --seeds 1 2 3 --set coop.n_ctx=4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_what(parser)
    add_evaluation(parser)
    add_list(parser, "--grid", dest="points", metavar="M.FIELD=V,V", help="run a method with every combination")
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
    return carry_out(bench, runs, request.methods)


def carry_out(bench: Bench, runs: Sequence[Run], methods: Sequence[str] = ()) -> int:
    """Do what is not finished and print the tables of all runs; 1 where a run failed."""
    from promptbench.preflight import preflight
    from promptbench.results import check_writable, find, read_result
    from promptbench.showing import print_tables

    todo = [run for run in runs if not bench.is_finished(run.spec)]
    failures = 0
    if todo:
        from promptbench.progress import reporter
        from promptbench.runner import run_all

        check_writable(bench.output)
        preflight(bench, todo)
        with reporter(total=len(runs), skipped=len(runs) - len(todo)) as listener:
            failures = run_all(bench, todo, listener)
    results = [read_result(path) for run in runs if (path := find(bench.output, run.spec)) is not None]
    print_tables(results, [bench.suite], methods, [entry.name for entry in bench.suite.entries()])
    if failures:
        of = f"{failures} of {len(todo)} runs" if len(todo) > 1 else "the run"
        print(f"promptbench: {of} failed; see *.failed.json in {bench.output}", file=sys.stderr)
    return 1 if failures else 0
