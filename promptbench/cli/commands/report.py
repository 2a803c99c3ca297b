"""`promptbench report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from promptbench.cli.flags import OUTPUT, add_list
from promptbench.config import UsageError, unknown

HELP = "write tables, plots and the runs behind every figure as one HTML page"
EXAMPLE = "promptbench report -o report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_list(parser, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    add_list(parser, "--protocol", metavar="P", help="protocols; default: all")
    add_list(parser, "--method", metavar="M", help="only these, in this order, and the suite's companions")
    add_list(parser, "--dataset", metavar="D", help="only these, in this order")
    parser.add_argument("--with-published", action="store_true", help="papers' figures beside ours, and verdicts")
    parser.add_argument("--title", default="", metavar="TEXT", help="default: promptbench report")
    parser.add_argument("--force", action="store_true", help="replace a file that is no report")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="default: report.html")


def execute(options: argparse.Namespace) -> int:
    """`report`: of stored results alone."""
    from promptbench.cli.commands.table import _chosen
    from promptbench.show.report.page import NO_MATPLOTLIB, drawable, pictures, render
    from promptbench.show.tables.show import View, tables_of
    from promptbench.suite import load_suite, suite_names

    _check(options)
    options.protocol = options.protocol or ["all"]
    suites = [load_suite(name) for name in suite_names()]
    results = _chosen(options, suites)
    view = View(published=options.with_published)
    tables = tables_of(results, suites, options.method or (), options.dataset or (), view)
    drawn = {place: [*pictures(table, suites)] for place, table in enumerate(tables)} if drawable() else {}
    remark = "" if drawable() else NO_MATPLOTLIB
    _write(Path(options.output), render(tables, title=options.title, pictures=drawn, remark=remark))
    print(f"wrote {options.output}" + (f". {remark}" if remark else ""))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuses what is not known or not to be replaced, before anything is read."""
    from promptbench.registry import names
    from promptbench.show.report.page import is_report

    for protocol in options.protocol or ():
        if protocol not in (*names("protocols"), "all"):
            raise unknown("protocol", protocol, names("protocols"))
    path = Path(options.output)
    if path.is_dir():
        raise UsageError(f"The report {path} cannot be written, since that is a folder; name a file.")
    if path.exists() and not options.force and not is_report(path):
        raise UsageError(f"{path} exists and is no report; name another file, or replace it with --force.")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    except OSError as error:
        raise UsageError(f"The report {path} cannot be written ({error.strerror}); name another file.") from error
