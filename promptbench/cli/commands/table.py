"""`promptbench table`."""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.cli.flags import OUTPUT, add_list
from promptbench.config import UsageError, unknown

if TYPE_CHECKING:
    from promptbench.results.result import Result
    from promptbench.suite import Suite

FORMATS = ("md", "csv", "csv-long", "latex", "html", "json")
LAYOUTS = ("paper", "plain")
HELP = "print the comparison tables of stored results"
EXAMPLE = "promptbench table --protocol base2new --format latex"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_list(parser, "--protocol", metavar="P", help="protocols, or all; default: base2new")
    parser.add_argument(
        *("--method", "--methods"),
        nargs="+",
        action="extend",
        metavar="M",
        help="only these, in this order, and the suite's companions",
    )
    parser.add_argument(
        *("--dataset", "--datasets"), nargs="+", action="extend", metavar="D", help="only these, in this order"
    )
    add_list(parser, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    parser.add_argument("--metric", default="", metavar="X", help="what to show, such as ece; default: the protocol's")
    parser.add_argument(
        "--group-by", default="", metavar="SETTING", help="a row for each of its values: maple.depth, epochs"
    )
    parser.add_argument("--sort", default="", metavar="COLUMN", help="methods by a column, best first")
    parser.add_argument("--delta", default="", metavar="ROW", help="add the differences to this method or row")
    parser.add_argument("--per-seed", action="store_true", help="a line per seed instead of the mean")
    parser.add_argument("--with-published", action="store_true", help="papers' figures beside ours, and verdicts")
    parser.add_argument("--format", default="md", metavar="F", help=f"{', '.join(FORMATS)}; default: md")
    parser.add_argument(
        "--layout", default=LAYOUTS[0], metavar="L", help="of LaTeX: paper (panels, wide rows) or plain; default: paper"
    )
    parser.add_argument("--cite", action="store_true", help="LaTeX: cite the methods' papers")
    parser.add_argument("--bib", metavar="FILE", help="write the BibTeX entries of the methods shown")


def execute(options: argparse.Namespace) -> int:
    """`table`: of stored results alone."""
    from promptbench.show.tables.show import View, citations, show, tables_of
    from promptbench.suite import load_suite, suite_names

    _check(options)
    suites = [load_suite(name) for name in suite_names()]
    with _uncollected():
        results = _chosen(options, suites)
    view = View(
        format=options.format,
        metric=options.metric,
        group_by=options.group_by,
        per_seed=options.per_seed,
        sort=options.sort,
        delta=options.delta,
        published=options.with_published,
        plain=options.layout == "plain",
        cite=options.cite,
    )
    tables = tables_of(results, suites, options.method or (), options.dataset or (), view)
    if options.bib:
        _write_bib(Path(options.bib), list(citations(tables).values()))
    print(show(tables, view), end="")
    return 0


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which would walk over thousands of records again and again and find no garbage."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _check(options: argparse.Namespace) -> None:
    """Refuses names that are not known, before anything is read."""
    from promptbench.registry import names

    for protocol in options.protocol or ():
        if protocol not in (*names("protocols"), "all"):
            raise unknown("protocol", protocol, names("protocols"))
    if options.format not in FORMATS:
        raise unknown("format", options.format, FORMATS)
    if options.layout not in LAYOUTS:
        raise unknown("layout", options.layout, LAYOUTS)
    if options.cite and options.format != "latex":
        raise UsageError(f"--cite is for --format latex, not {options.format}; --bib goes with every format.")


def _chosen(options: argparse.Namespace, suites: Sequence[Suite]) -> list[Result]:
    """The stored results that the flags choose."""
    from promptbench.registry import names
    from promptbench.results.result import read_results

    places = options.results or [OUTPUT]
    asked = list(dict.fromkeys(options.protocol or ["base2new"]))
    protocols = list(names("protocols")) if "all" in asked else asked
    said = "stored" if "all" in asked else " or ".join(asked)
    companions = {(suite.name, label) for suite in suites for label in suite.companions}
    stored = read_results(*places)
    results = [result for name in protocols for result in stored if result.spec.protocol == name]
    for wanted, kind in ((options.method or (), "label"), (options.dataset or (), "dataset")):
        present = {getattr(result.spec, kind) for result in results}
        for name in wanted:
            if name not in present:
                raise UsageError(f"There is no {said} result of '{name}' in {', '.join(places)}.")
        results = [
            result
            for result in results
            if not wanted
            or getattr(result.spec, kind) in wanted
            or (kind == "label" and (result.spec.suite, result.spec.label) in companions)
        ]
    there = {result.spec.protocol for result in results}
    if not results or ("all" not in asked and set(asked) - there):
        none = said if "all" in asked else " or ".join(name for name in asked if name not in there)
        raise UsageError(
            f"There are no {none} results in {', '.join(places)}; make some with "
            "`promptbench run`, or name another folder with --results."
        )
    return results


def _write_bib(path: Path, keys: Sequence[str]) -> None:
    from promptbench.results.papers import entries

    try:
        path.write_text(entries(keys), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The BibTeX file {path} cannot be written ({error.strerror}); name another one.") from error
