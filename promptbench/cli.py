"""The `promptbench` command.

Parsing costs nothing: torch is imported by the command that needs it. A user's mistake is one line on stderr and exit
code 2; a failed run is recorded and gives exit code 1; Ctrl-C gives 130 and loses nothing that was finished.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench import __version__
from promptbench.config import UsageError, parse_assignment

if TYPE_CHECKING:
    from promptbench.planning import Request
    from promptbench.results import Result
    from promptbench.suite import Suite

OUTPUT = "promptbench-runs"
FORMATS = ("md", "csv", "latex")
KINDS = ("methods", "datasets", "protocols", "suites", "backbones")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="promptbench: %(message)s", stream=sys.stderr)
    try:
        for path in getattr(options, "plugin", []):
            from promptbench.registry import add_file

            add_file(path)
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"promptbench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "promptbench: interrupted; finished runs are kept, and the same command goes on from here", file=sys.stderr
        )
        return 130
    except BrokenPipeError:  # `promptbench table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    """The command line, with an example for every command."""
    top = argparse.ArgumentParser(
        prog="promptbench",
        description="Every prompt-learning method for CLIP under the same data, backbone, trainer and evaluator.",
        epilog="Start here: promptbench run --method maple --protocol base2new",
    )
    top.add_argument("--version", action="version", version=f"promptbench {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = command(
        commands,
        "run",
        run_command,
        "train, evaluate, store results and print the table",
        "promptbench run --method zeroshot coop maple --protocol base2new --seeds 1 2 3 --set coop.n_ctx=4",
    )
    add_what(run)
    run.add_argument("--dry-run", action="store_true", help="list the runs, which are finished, and their recipes")

    show = command(
        commands,
        "show-config",
        show_config_command,
        "everything resolved, and where each value came from",
        "promptbench show-config --method maple --protocol base2new --dataset dtd --suite clip11",
    )
    add_what(show)

    listing = command(commands, "list", list_command, "what there is", "promptbench list methods")
    listing.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    add_plugin(listing)

    describe = command(
        commands, "describe", describe_command, "one method, dataset or protocol in full", "promptbench describe maple"
    )
    describe.add_argument("name", metavar="NAME")
    add_plugin(describe)

    table = command(
        commands,
        "table",
        table_command,
        "the comparison table of stored results",
        "promptbench table --protocol base2new --format latex",
    )
    table.add_argument("--protocol", default="base2new", help="default: base2new")
    table.add_argument("--method", nargs="+", default=[], metavar="M", help="only these, in this order")
    table.add_argument("--dataset", nargs="+", default=[], metavar="D", help="only these, in this order")
    table.add_argument("--results", nargs="+", default=[OUTPUT], metavar="DIR", help=f"default: ./{OUTPUT}")
    table.add_argument("--format", default="md", metavar="F", help=f"{', '.join(FORMATS)}; default: md")
    return top


def command(commands: Any, name: str, function: Any, text: str, example: str) -> argparse.ArgumentParser:
    """A subcommand with its help and an example."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"Example: {example}"
    )
    sub.set_defaults(command=function)
    return sub


def add_plugin(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--plugin", nargs="+", default=[], metavar="FILE", help="files with methods of your own")


def add_what(sub: argparse.ArgumentParser) -> None:
    """The flags that say what to run."""
    sub.add_argument("--method", nargs="+", required=True, metavar="M", help="methods, method@preset, or all")
    sub.add_argument("--protocol", nargs="+", default=["base2new"], metavar="P", help="default: base2new")
    sub.add_argument("--suite", default="mini", metavar="S", help="a name or a YAML file; default: mini")
    sub.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        metavar="D",
        help="instead of the suite's: names, or folder:PATH for your own images",
    )
    sub.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: the suite's")
    sub.add_argument("--data-seed", type=int, metavar="N", help="draw the few-shot sample with N whatever the seed")
    sub.add_argument("--train-seed", type=int, metavar="N", help="initialise and shuffle with N whatever the seed")
    sub.add_argument("--shots", type=int, metavar="N", help="training images per class; default: the suite's")
    sub.add_argument("--set", nargs="+", default=[], metavar="M.FIELD=VALUE", help="a method's or its recipe's setting")
    sub.add_argument("--backbone", metavar="B", help="mini, or ARCHITECTURE:TAG_OR_FILE; default: the suite's")
    sub.add_argument(
        "--data-root",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders that hold the datasets; default: PROMPTBENCH_DATA",
    )
    sub.add_argument("--output", default=OUTPUT, metavar="DIR", help=f"default: ./{OUTPUT}")
    sub.add_argument("--threads", type=int, metavar="N", help="CPU threads of a run; default: the suite's")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add_plugin(sub)


def run_command(options: argparse.Namespace) -> int:
    from promptbench.listing import describe_runs
    from promptbench.planning import plan_runs
    from promptbench.results import check_writable, find, read_result

    suite, request = request_of(options)
    runs = plan_runs(request)
    output = Path(options.output)
    finished = [find(output, run.spec) is not None for run in runs]
    if options.dry_run:
        print(describe_runs(runs, finished))
        return 0
    failures = 0
    if not all(finished):
        from promptbench.dataset import data_roots
        from promptbench.progress import reporter
        from promptbench.runner import Bench, preflight, run_all

        check_writable(output)
        bench = Bench(suite, output, data_roots(options.data_root), request.device)
        todo = [run for run, done in zip(runs, finished, strict=True) if not done]
        preflight(bench, todo)
        with reporter(total=len(runs), skipped=sum(finished)) as listener:
            failures = run_all(bench, todo, listener)
    results = [read_result(path) for run in runs if (path := find(output, run.spec)) is not None]
    print_tables(results, {suite.name: suite}, request.methods)
    if failures:
        print(f"promptbench: {failures} of {len(runs)} runs failed; see *.failed.json in {output}", file=sys.stderr)
    return 1 if failures else 0


def show_config_command(options: argparse.Namespace) -> int:
    from promptbench.listing import show_settings
    from promptbench.planning import plan_runs

    _, request = request_of(options, companions=False)
    print("\n\n".join(dict.fromkeys(show_settings(run) for run in plan_runs(request))))
    return 0


def list_command(options: argparse.Namespace) -> int:
    from promptbench.listing import list_kind

    print(list_kind(options.kind, KINDS))
    return 0


def describe_command(options: argparse.Namespace) -> int:
    from promptbench.listing import describe

    print(describe(options.name))
    return 0


def table_command(options: argparse.Namespace) -> int:
    from promptbench.config import unknown
    from promptbench.registry import names
    from promptbench.results import read_results
    from promptbench.suite import load_suite, suite_names

    if options.protocol not in names("protocols"):
        raise unknown("protocol", options.protocol, names("protocols"))
    results = [result for result in read_results(*options.results) if result.spec.protocol == options.protocol]
    for wanted, kind in ((options.method, "label"), (options.dataset, "dataset")):
        present = {getattr(result.spec, kind) for result in results}
        for name in wanted:
            if name not in present:
                raise UsageError(f"There is no {options.protocol} result of '{name}' in {', '.join(options.results)}.")
        if wanted:
            results = [result for result in results if getattr(result.spec, kind) in wanted]
    if not results:
        raise UsageError(
            f"There are no {options.protocol} results in {', '.join(options.results)}; make some with "
            "`promptbench run`, or name another folder with --results."
        )
    suites = {name: load_suite(name) for name in suite_names()}
    print_tables(results, suites, options.method, options.dataset, options.format)
    return 0


def print_tables(
    results: Sequence[Result],
    suites: dict[str, Suite],
    methods: Sequence[str],
    datasets: Sequence[str] = (),
    fmt: str = "md",
) -> None:
    """One table per protocol."""
    from promptbench.listing import layout_of, order_of
    from promptbench.tables import render

    for protocol in dict.fromkeys(result.spec.protocol for result in results):
        chosen = [result for result in results if result.spec.protocol == protocol]
        known = [suite for name, suite in suites.items() if any(r.spec.suite == name for r in chosen)]
        order = datasets or order_of(known)
        companions = [label for suite in known for label in suite.companions]
        text = render(
            chosen,
            layout_of(protocol),
            fmt,
            notes={suite.name: suite.note for suite in known},
            ranked=all(suite.ranked for suite in known) and bool(known),
            methods=methods or companions,
            datasets=order,
        )
        print(text, end="")


def request_of(options: argparse.Namespace, companions: bool = True) -> tuple[Suite, Request]:
    """The suite as the command line changes it, and what is asked of it."""
    from dataclasses import replace

    from promptbench import registry
    from promptbench.planning import Request, labels
    from promptbench.suite import load_suite

    suite = load_suite(options.suite)
    protocols = [p for word in options.protocol for p in (registry.names("protocols") if word == "all" else (word,))]
    changes = {"shots": options.shots, "backbone": options.backbone, "threads": options.threads}
    suite = replace(suite, **{name: value for name, value in changes.items() if value is not None})
    for protocol in dict.fromkeys(protocols) if options.dataset else ():
        suite = suite.with_datasets(registry.load("protocols", protocol).role, options.dataset)
    suite, assignments = assign(suite, options.set)
    request = Request(
        suite=suite,
        methods=labels(suite if companions else replace(suite, companions=()), options.method),
        protocols=tuple(dict.fromkeys(protocols)),
        seeds=seed_pairs(options.seeds or suite.seeds, options.data_seed, options.train_seed),
        assignments=assignments,
        device=resolve_device(options.device),
    )
    return suite, request


def assign(suite: Suite, texts: Sequence[str]) -> tuple[Suite, dict[str, dict[str, Any]]]:
    """`--set` words by method; those that name a dataset of the suite change that dataset's options."""
    from dataclasses import replace

    by_method: dict[str, dict[str, Any]] = {}
    datasets = {entry.name for entry in suite.entries()}
    for text in texts:
        path, value = parse_assignment(text)
        if len(path) != 2:
            raise UsageError(f"--set {text}: write method.field=value, for instance coop.n_ctx=4.")
        owner, name = path
        if owner not in datasets:
            by_method.setdefault(owner, {})[name] = value
            continue
        roles = {
            role: tuple(
                replace(entry, options={**entry.options, name: value}) if entry.name == owner else entry
                for entry in entries
            )
            for role, entries in suite.roles.items()
        }
        suite = replace(suite, roles=roles)
    return suite, by_method


def seed_pairs(seeds: Sequence[int], data: int | None, train: int | None) -> tuple[tuple[int, int], ...]:
    """(data seed, training seed) of each run; a seed given on its own stays fixed."""
    if min(seeds) < 0 or (data or 0) < 0 or (train or 0) < 0:
        raise UsageError("Seeds are integers from 0 on.")
    return tuple(dict.fromkeys((seed if data is None else data, seed if train is None else train) for seed in seeds))


def resolve_device(wanted: str) -> str:
    """`cpu` or `cuda`."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here; use --device cpu.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
