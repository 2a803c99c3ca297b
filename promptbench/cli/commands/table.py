"""`promptbench table`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promptbench.cli.flags import add_tables, question_of
from promptbench.config import UsageError, path_of

HELP = "print the comparison tables of stored results"
EXAMPLE = "promptbench table --protocol base2new --format latex"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench table` to its parser."""
    add_tables(parser)
    again = "compute the metrics again from stored predictions, and say what differs; exit code 1 where something does"
    parser.add_argument("--from-predictions", action="store_true", help=again)


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench table`, from stored results alone; 1 where they do not follow from predictions."""
    from promptbench.show.tables.show import chosen_results, citations, show, tables_of
    from promptbench.suite import load_suite, suite_names

    question = question_of(options)
    suites = [load_suite(name) for name in suite_names()]
    results, again = chosen_results(question, suites), None
    if options.from_predictions:
        from promptbench.show.tables.recomputed import recomputed

        again = recomputed(results)
        results = list(again.results)
    tables = tables_of(results, suites, question.methods, question.datasets, question.view)
    if options.bib:
        _write_bib(path_of(options.bib), list(citations(tables).values()))
    print(show(tables, question.view), end="")
    if again is None:
        return 0
    beside = sys.stdout if question.view.format == "md" else sys.stderr  # whoever reads CSV or JSON reads nothing else
    print("", *again.said(), sep="\n", file=beside)
    return 1 if again.differences else 0


def _write_bib(path: Path, keys: Sequence[str]) -> None:
    from promptbench.results.papers import entries

    try:
        path.write_text(entries(keys), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The BibTeX file {path} cannot be written ({error.strerror}); name another one.") from error
