"""`promptbench tune`."""

from __future__ import annotations

import argparse
from shlex import quote
from typing import TYPE_CHECKING

from promptbench.cli.flags import OUTPUT, add_jobs, add_list, add_what, place_of, request_of
from promptbench.config import path_of

if TYPE_CHECKING:
    from promptbench.runs.request import Request
    from promptbench.sweep.tune import Search

HELP = "choose settings on held-out images of halves of the training classes"
EXAMPLE = "promptbench tune --method coop --protocol base2new --grid lr=0.05,0.1,0.2 epochs=25,50"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench tune` to its parser."""
    add_what(parser)
    values = "values to try; default: multiples of the recipe's lr and length"
    add_list(parser, "--grid", metavar="[M.]FIELD=V,V", help=values)
    add_jobs(parser, "runs at once; default: auto, as many as cores and memory carry")
    parser.add_argument(
        "--keep-outdated",
        action="store_true",
        help="leave finished runs alone whose weights or whose method's code changed since; default: do them again",
    )
    parser.add_argument("--report", metavar="FILE", help="write all trials as JSON")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench tune`: the points of the grid, best first, for each method."""
    from promptbench.cli.progress import Display
    from promptbench.results.result import TUNING, check_writable
    from promptbench.sweep.tune import TuningSession, check_report, parse_grid, tune, write_report

    grid = parse_grid(options.grid or [])
    request = request_of(options, companions=False)
    output = path_of(options.output or OUTPUT) / TUNING
    check_writable(output)
    report = path_of(options.report) if options.report else None
    if report:
        check_report(report)
    session = TuningSession(place_of(options, output, request.device), request.suite)
    plugins = [path_of(file).absolute() for file in options.plugin or ()]
    how = {"jobs": options.jobs, "plugins": plugins, "keep_outdated": options.keep_outdated}
    searches = tune(session, request, grid, Display(), **how)
    if report:
        write_report(report, searches)
    print("\n\n".join(describe(search, request) for search in searches))
    return 0


def describe(search: Search, request: Request) -> str:
    """The points of a search, best first, and the best as a suite would say it."""
    from promptbench.cli.text import columns
    from promptbench.config import shown
    from promptbench.sweep.tune import SELECTION

    ((protocol, of),) = request.protocols.items()
    trials = search.trials
    titles = {"pseudo_base": "pseudo-base", "pseudo_new": "pseudo-new", "h": "H"}
    header = (*(titles[name] for name in trials[0].figures()), *trials[0].settings)
    rows = []
    for trial in trials:
        figures = [f"{figure:.1f}" for figure in trial.figures().values()]
        rows.append((*figures, *map(shown, trial.settings.values())))
    settings = (f"{search.label}.{name}={shown(value)}" for name, value in trials[0].settings.items())
    use = f"promptbench run --method {search.label} --protocol {protocol} --set {' '.join(map(quote, settings))}"
    best = ", ".join(f"{name}: {shown(value)}" for name, value in trials[0].settings.items())
    chosen = f"origin: ours, selection: {SELECTION}, trials: {len(trials)}"
    return (
        f"{search.label}, {protocol}, suite {request.suite.name}: averages over "
        f"{len(request.suite.datasets(of.role))} datasets and {len(request.seeds)} seeds, on held-out images of "
        f"the training classes' halves\n\n{columns([header, *rows])}\n\nbest: {best}, {chosen}\n"
        f"use it: {use}"
    )
