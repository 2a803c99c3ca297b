"""`promptbench report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from promptbench.cli.flags import OUTPUT, add_anonymous, add_list
from promptbench.config import UsageError, path_of

HELP = "write tables, plots and the runs behind every figure as one HTML page"
EXAMPLE = "promptbench report -o report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench report` to its parser."""
    add_list(parser, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    add_list(parser, "--protocol", metavar="P", help="protocols; default: all")
    add_list(parser, "--method", metavar="M", help="only these, in this order, and the suite's companions")
    add_list(parser, "--dataset", metavar="D", help="only these, in this order")
    parser.add_argument("--with-published", action="store_true", help="papers' figures beside ours, and verdicts")
    add_anonymous(parser)
    parser.add_argument("--title", default="", metavar="TEXT", help="default: promptbench report")
    parser.add_argument("--force", action="store_true", help="replace a file that is no report")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="default: report.html")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench report`, from stored results alone."""
    from promptbench.show.report import pictures
    from promptbench.show.report.page import render
    from promptbench.show.tables.show import ALL, Question, View, stored_tables
    from promptbench.suite import load_suite, suite_names

    question = Question(
        places=options.results or [OUTPUT],
        protocols=options.protocol or [ALL],
        methods=options.method or (),
        datasets=options.dataset or (),
        view=View(published=options.with_published, anonymous=options.anonymous),
    )
    path = path_of(options.output)
    _check(path, options.force)
    tables = stored_tables(question)
    suites = [load_suite(name) for name in suite_names()]
    drawn, remark = {}, ""
    if pictures.drawable():
        drawn = {place: [*pictures.pictures(table, suites)] for place, table in enumerate(tables)}
    else:
        remark = pictures.NO_MATPLOTLIB
    _write(path, render(tables, title=options.title, pictures=drawn, remark=remark, path=path))
    print(f"wrote {options.output}" + (f". {remark}" if remark else ""))
    return 0


def _check(path: Path, force: bool) -> None:
    """Refuses what is not to be replaced, before anything is read."""
    from promptbench.show.report.page import is_report

    if path.is_dir():
        raise UsageError(f"The report {path} cannot be written, since that is a folder; name a file.")
    if path.exists() and not force and not is_report(path):
        raise UsageError(f"{path} exists and is no report; name another file, or replace it with --force.")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    except OSError as error:
        raise UsageError(f"The report {path} cannot be written ({error.strerror}); name another file.") from error
