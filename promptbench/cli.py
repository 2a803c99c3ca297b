"""The `promptbench` command.

Parsing costs nothing: torch is imported by the command that needs it. A user's mistake is one line on stderr and exit
code 2; a failed run is recorded and gives exit code 1; Ctrl-C gives 130 and loses nothing that was finished.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench import __version__
from promptbench.config import UsageError, unknown
from promptbench.flags import OUTPUT, Parser, add_list, add_plugin, add_what, known_command, request_of

if TYPE_CHECKING:
    from promptbench.results import Result
    from promptbench.suite import Suite

FORMATS = ("md", "csv", "latex")
KINDS = ("methods", "datasets", "protocols", "suites", "backbones")
COMMANDS = ("run", "show-config", "list", "describe", "table", "tune", "mini")
INTERRUPTED = "promptbench: interrupted; finished runs are kept, and the same command goes on from here"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to other runs
    logging.basicConfig(level=logging.WARNING, format="promptbench: %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign still shows the rest
    try:
        known_command(words, COMMANDS)
        options = parser().parse_args(words)
        add_plugins(getattr(options, "plugin", None) or [])
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"promptbench: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    except BrokenPipeError:  # `promptbench table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def add_plugins(paths: Sequence[str]) -> None:
    """Make the files given with `--plugin` known."""
    from promptbench.registry import add_file

    for path in paths:
        add_file(path)


def parser() -> argparse.ArgumentParser:
    """The command line, with an example for every command."""
    top = Parser(
        prog="promptbench",
        description="Every prompt-learning method for CLIP under the same data, backbone, trainer and evaluator.",
        epilog="Start here: promptbench run --method maple --protocol base2new",
    )
    top.add_argument("--version", action="version", version=f"promptbench {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        sub = commands.add_parser(name, help=text, description=description, epilog=f"Example: {example}")
        sub.set_defaults(command=function)
        return sub

    example = "promptbench run --method zeroshot coop maple --protocol base2new --seeds 1 2 3 --set coop.n_ctx=4"
    run = command("run", run_command, "train, evaluate, store results and print the table", example)
    add_what(run)
    run.add_argument("--dry-run", action="store_true", help="list the runs, which are finished, and their recipes")

    example = "promptbench show-config --method maple --protocol base2new --dataset dtd --suite clip11"
    add_what(
        command("show-config", show_config_command, "show what a run uses, and where each value comes from", example)
    )

    listing = command("list", list_command, f"list {', '.join(KINDS[:-1])} or {KINDS[-1]}", "promptbench list methods")
    listing.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    add_plugin(listing)

    describe = command(
        "describe", describe_command, "describe a method, dataset, protocol or suite", "promptbench describe maple"
    )
    describe.add_argument("name", metavar="NAME", help="as `promptbench list` shows it")
    add_plugin(describe)

    example = "promptbench table --protocol base2new --format latex"
    table = command("table", table_command, "print the comparison table of stored results", example)
    table.add_argument("--protocol", default="base2new", metavar="P", help="default: base2new")
    add_list(table, "--method", metavar="M", help="only these, in this order, and the suite's companions")
    add_list(table, "--dataset", metavar="D", help="only these, in this order")
    add_list(table, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    table.add_argument("--format", default="md", metavar="F", help=f"{', '.join(FORMATS)}; default: md")

    example = "promptbench tune --method coop --protocol base2new --grid lr=0.05,0.1,0.2 epochs=25,50"
    tune = command(
        "tune", tune_command, "choose settings on held-out images of halves of the training classes", example
    )
    add_what(tune)
    add_list(
        tune, "--grid", metavar="FIELD=V,V", help="values to try; default: multiples of the recipe's lr and epochs"
    )

    example = "promptbench mini contact-sheet -o sheet.png"
    mini = command("mini", mini_command, "draw a picture of the embedded datasets", example)
    mini.add_argument("what", choices=("contact-sheet",), help="one row of images per dataset")
    mini.add_argument("-o", "--output", default="sheet.png", metavar="FILE", help="a PNG; default: ./sheet.png")
    return top


def run_command(options: argparse.Namespace) -> int:
    """`run`: 1 where a run failed."""
    from promptbench.bench import Bench
    from promptbench.dataset import data_roots
    from promptbench.listing import describe_runs, state_of
    from promptbench.planning import plan_runs
    from promptbench.preflight import check_finished, preflight
    from promptbench.results import check_writable, find, read_result
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


def show_config_command(options: argparse.Namespace) -> int:
    """`show-config`: one block per method and dataset."""
    from promptbench.listing import show_settings
    from promptbench.planning import plan_runs

    request = request_of(options, companions=False)
    print("\n\n".join(dict.fromkeys(show_settings(run, request) for run in plan_runs(request))))
    return 0


def list_command(options: argparse.Namespace) -> int:
    """`list`: imports no plugin and no torch."""
    from promptbench.listing import list_kind

    print(list_kind(options.kind, KINDS))
    return 0


def describe_command(options: argparse.Namespace) -> int:
    """`describe`."""
    from promptbench.listing import describe

    print(describe(options.name))
    return 0


def table_command(options: argparse.Namespace) -> int:
    """`table`: of stored results alone."""
    from promptbench.registry import names
    from promptbench.results import read_results
    from promptbench.suite import load_suite, suite_names

    if options.protocol not in names("protocols"):
        raise unknown("protocol", options.protocol, names("protocols"))
    if options.format not in FORMATS:
        raise unknown("format", options.format, FORMATS)
    places = options.results or [OUTPUT]
    suites = [load_suite(name) for name in suite_names()]
    companions = {(suite.name, label) for suite in suites for label in suite.companions}
    results = [result for result in read_results(*places) if result.spec.protocol == options.protocol]
    for wanted, kind in ((options.method or (), "label"), (options.dataset or (), "dataset")):
        present = {getattr(result.spec, kind) for result in results}
        for name in wanted:
            if name not in present:
                raise UsageError(f"There is no {options.protocol} result of '{name}' in {', '.join(places)}.")
        results = [
            result
            for result in results
            if not wanted
            or getattr(result.spec, kind) in wanted
            or (kind == "label" and (result.spec.suite, result.spec.label) in companions)
        ]
    if not results:
        raise UsageError(
            f"There are no {options.protocol} results in {', '.join(places)}; make some with "
            "`promptbench run`, or name another folder with --results."
        )
    print_tables(results, suites, options.method or (), options.dataset or (), options.format)
    return 0


def tune_command(options: argparse.Namespace) -> int:
    """`tune`: the points of the grid, best first."""
    from promptbench.dataset import data_roots
    from promptbench.progress import reporter
    from promptbench.results import check_writable
    from promptbench.tuning import TuningBench, describe, parse_grid, tune

    request = request_of(options, companions=False)
    output = Path(options.output) / "tuning"
    check_writable(output)
    bench = TuningBench(request.suite, output, data_roots(options.data_root), request.device)
    with reporter() as listener:
        trials = tune(bench, request, parse_grid(options.grid or []), listener)
    print(describe(trials, request))
    return 0


def mini_command(options: argparse.Namespace) -> int:
    """`mini contact-sheet`."""
    from promptbench.mini.sheet import contact_sheet, suite_rows

    try:
        contact_sheet(suite_rows()).save(options.output)
    except (OSError, ValueError) as error:
        raise UsageError(f"The picture cannot be written to {options.output}: {error}.") from error
    print(f"wrote {options.output}")
    return 0


def print_tables(
    results: Sequence[Result], suites: Sequence[Suite], methods: Sequence[str], datasets: Sequence[str], fmt: str = "md"
) -> None:
    """One table per protocol."""
    from promptbench.listing import layout_of, presentation
    from promptbench.tables import render

    for protocol in dict.fromkeys(result.spec.protocol for result in results):
        chosen = [result for result in results if result.spec.protocol == protocol]
        print(render(chosen, layout_of(protocol), fmt, **presentation(chosen, suites, methods, datasets)), end="")
