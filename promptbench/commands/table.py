"""`promptbench table`."""

from __future__ import annotations

import argparse

from promptbench.config import UsageError, unknown
from promptbench.flags import OUTPUT, add_list

FORMATS = ("md", "csv", "latex")
HELP = "print the comparison table of stored results"
EXAMPLE = "promptbench table --protocol base2new --format latex"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument("--protocol", default="base2new", metavar="P", help="default: base2new")
    add_list(parser, "--method", metavar="M", help="only these, in this order, and the suite's companions")
    add_list(parser, "--dataset", metavar="D", help="only these, in this order")
    add_list(parser, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    parser.add_argument("--metric", default="", metavar="X", help="what to show, such as ece; default: the protocol's")
    parser.add_argument("--format", default="md", metavar="F", help=f"{', '.join(FORMATS)}; default: md")


def execute(options: argparse.Namespace) -> int:
    """`table`: of stored results alone."""
    from promptbench.registry import names
    from promptbench.results import read_results
    from promptbench.showing import print_tables
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
    print_tables(results, suites, options.method or (), options.dataset or (), options.format, options.metric)
    return 0
