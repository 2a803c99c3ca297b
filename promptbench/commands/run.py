"""`promptbench run`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from promptbench.flags import add_what, request_of

HELP = "train, evaluate, store results and print the table"
EXAMPLE = "promptbench run --method zeroshot coop maple --protocol base2new --seeds 1 2 3 --set coop.n_ctx=4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_what(parser)
    parser.add_argument("--dry-run", action="store_true", help="list the runs, which are finished, and their recipes")


def execute(options: argparse.Namespace) -> int:
    """`run`: 1 where a run failed."""
    from promptbench.bench import Bench
    from promptbench.dataset import data_roots
    from promptbench.listing import describe_runs, state_of
    from promptbench.planning import plan_runs
    from promptbench.preflight import check_finished, preflight
    from promptbench.results import check_writable, find, read_result
    from promptbench.showing import print_tables
    from promptbench.suite import load_suite

    request = request_of(options)
    runs = plan_runs(request)
    output = Path(options.output)
    if options.dry_run:
        print(describe_runs(runs, [state_of(output, run) for run in runs]))
        return 0
    bench = Bench(request.suite, output, data_roots(options.data_root), request.device)
    check_finished(bench, runs)
    todo = [run for run in runs if find(output, run.spec) is None]
    failures = 0
    if todo:
        from promptbench.progress import reporter
        from promptbench.runner import run_all

        check_writable(output)
        preflight(bench, todo)
        with reporter(total=len(runs), skipped=len(runs) - len(todo)) as listener:
            failures = run_all(bench, todo, listener)
    results = [read_result(path) for run in runs if (path := find(output, run.spec)) is not None]
    order = [entry.name for entry in request.suite.entries()]
    print_tables(results, [load_suite(options.suite)], request.methods, order)
    if failures:
        of = f"{failures} of {len(todo)} runs" if len(todo) > 1 else "the run"
        print(f"promptbench: {of} failed; see *.failed.json in {output}", file=sys.stderr)
    return 1 if failures else 0
