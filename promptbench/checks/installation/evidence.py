"""What the results of an output folder say, for the page of `promptbench verify`: tables, an audit, pages of evidence.

All of it is made of the stored results alone, as the commands `table`, `audit` and `evidence` print it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from promptbench.config import UsageError
from promptbench.results.result import read_results
from promptbench.show.audit import audit
from promptbench.show.evidence.pages import PAGES, page_of
from promptbench.show.tables.show import ALL, Question, View, show, stored_tables

_HEADING = re.compile(r"^(#+ )", re.MULTILINE)
_UNREAD = ("sensitivity",)  # pages of what `verify` never makes


def evidence_of(folder: Path) -> str:
    """The sections as Markdown; "" where the folder has no results."""
    if not folder.is_dir() or not read_results(folder):
        return ""
    return "\n".join(_sections(folder))


def _sections(folder: Path) -> Iterator[str]:
    view = View(published=True, cost=True)
    tables = show(stored_tables(Question(places=[folder], protocols=[ALL], view=view)), view)
    yield f"## Results in the output folder\n\n{_deeper(tables, 0)}"
    checks = [f"* {check.what}: {check.state}; {check.said}" for check in audit(folder)]
    yield "## Do they compare like with like?\n\n" + "\n".join(checks) + "\n"
    for name in PAGES:
        if name in _UNREAD:
            continue
        try:
            page = page_of(name, Question(places=[folder], protocols=()))
        except UsageError:  # the folder lacks what it is about
            continue
        yield _deeper(page, 1)


def _deeper(text: str, levels: int) -> str:
    """A page whose headings stand so many levels deeper."""
    return _HEADING.sub("#" * levels + r"\1", text)
