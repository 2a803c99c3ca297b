"""`promptbench table`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promptbench.cli.flags import add_tables, question_of
from promptbench.config import UsageError, path_of

HELP = "print the comparison tables of stored results"
EXAMPLE = "promptbench table --protocol base2new --format latex"


add_arguments = add_tables


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench table`, from stored results alone."""
    from promptbench.show.tables.show import citations, show, stored_tables

    question = question_of(options)
    tables = stored_tables(question)
    if options.bib:
        _write_bib(path_of(options.bib), list(citations(tables).values()))
    print(show(tables, question.view), end="")
    return 0


def _write_bib(path: Path, keys: Sequence[str]) -> None:
    from promptbench.results.papers import entries

    try:
        path.write_text(entries(keys), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The BibTeX file {path} cannot be written ({error.strerror}); name another one.") from error
