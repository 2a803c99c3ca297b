"""What is not finished is done, here or elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.sweep.executors.contract import LOCAL, choose

if TYPE_CHECKING:
    from promptbench.cli.progress import Overview
    from promptbench.results.result import Result
    from promptbench.runs.plan import Run
    from promptbench.runs.request import Request
    from promptbench.runs.session import Session
    from promptbench.sweep.loop import Executor


def carry_out(
    session: Session,
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

    output = session.output
    results = dict(stored_results(output, [run.spec for run in runs]) if results is None else results)
    again = session.save_predictions  # which a finished run may lack
    todo = [
        run
        for run in runs
        if run.spec.name not in results or (again and not predictions_path(output, run.spec).exists())
    ]
    failed = [run for run in todo if failure_path(session.output, run.spec).exists()]
    left = {run.spec.name for run in failed if options is not None and not options.retry_failed}
    todo = [run for run in todo if run.spec.name not in left]
    failures = do(session, runs, todo, options, request) if todo else 0
    if not todo and (output / CLAIMS).is_dir():  # killed between its last result and its end
        from promptbench.sweep.loop import tidy

        tidy(output)
    results |= stored_results(output, [run.spec for run in todo])
    shown = [results[run.spec.name] for run in runs if run.spec.name in results]
    from promptbench.show.tables.show import print_tables  # it takes pandas, runs do not

    print_tables(shown, [session.suite], methods, [entry.name for entry in session.suite.entries()])
    if failures:
        of = f"{failures} of {len(todo)} runs" if len(todo) > 1 else "the run"
        print(f"promptbench: {of} failed; see *.failed.json in {session.output}", file=sys.stderr)
    if left:
        print(f"promptbench: {len(left)} failed before; --retry-failed does them again", file=sys.stderr)
    return 1 if failures or left else 0


def do(
    session: Session,
    runs: Sequence[Run],
    todo: Sequence[Run],
    options: argparse.Namespace | None,
    request: Request | None,
) -> int:
    """Do the runs that are to do, of those of the call; returns how many failed."""
    from promptbench.results.result import check_writable

    check_writable(session.output)
    elsewhere = options is not None and options.executor != LOCAL
    executor = None
    if options and request and (elsewhere or ((options.jobs or 1) > 1 and len(todo) > 1)):
        executor = choose(options.executor, options.executor_option or ())
        executor.prepare(session.device)  # first, for what it starts may take as long as what follows
    from promptbench.cli.progress import Overview, reporter
    from promptbench.runs.identity import remembered_backbone
    from promptbench.sweep.loop import announced, run_all
    from promptbench.sweep.preflight import preflight

    preflight(replace(session, device="cpu") if elsewhere else session, todo)  # this machine may have no GPU
    if not elsewhere:
        remembered_backbone(session)  # so that the next call need not load the backbone to compare its weights
    with announced(session.output, [run.spec.name for run in todo]):
        if executor is None or options is None or request is None:
            with reporter(total=len(runs), skipped=len(runs) - len(todo)) as listener:
                return run_all(session, todo, listener)
        with Overview(todo, session.output, len(runs)) as overview:
            return at_once(session, todo, options, request, overview, executor)


def at_once(
    session: Session,
    todo: Sequence[Run],
    options: argparse.Namespace,
    request: Request,
    overview: Overview,
    executor: Executor,
) -> int:
    """Do several runs at once, or elsewhere; returns how many failed."""
    from promptbench.sweep import loop
    from promptbench.sweep.loop import failures_on_record

    session.__dict__.pop("backbone", None)  # the workers have their own
    names = tuple(run.spec.name for run in loop.neighbours(todo))
    plugins = tuple(Path(path).absolute() for path in getattr(options, "plugin", None) or ())
    planned = replace(request, suite=replace(request.suite, threads=todo[0].spec.threads))  # nodes differ in cores
    job = loop.Job(planned, session, names, failures_on_record(session.output, todo), plugins)
    return loop.carry_out(loop.Sweep(job, todo, options.jobs, options.runs_per_gpu), executor, overview)
