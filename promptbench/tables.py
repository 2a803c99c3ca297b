"""Tables of results as text: a pure function of the records, the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from promptbench.config import unknown
from promptbench.formats import delimited, latex, markdown, page, records
from promptbench.formats.texts import MARKS, RECONSTRUCTED, Style
from promptbench.lines import Table, TableLayout
from promptbench.protocol import Column
from promptbench.results import Result
from promptbench.rows import build_tables

__all__ = ["FORMATS", "MARKS", "RECONSTRUCTED", "Column", "Style", "TableLayout", "build_tables", "render", "written"]

FORMATS: Mapping[str, Callable[[Sequence[Table], Style], str]] = {
    "md": markdown.render,
    "csv": delimited.render,
    "csv-long": delimited.render_long,
    "latex": latex.render,
    "html": page.render,
    "json": records.render,
}


def render(
    results: Iterable[Result],
    layout: TableLayout,
    fmt: str = "md",
    *,
    notes: Mapping[str, str] | None = None,
    ranked: Collection[str] = (),
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    style: Style | None = None,
) -> str:
    """The tables of one protocol's results, one per suite and backbone, as text that ends in a newline.

    Figures are in percent, with one decimal in Markdown, LaTeX and HTML, unrounded in CSV and JSON.

    Args:
        results: Of one protocol.
        layout: The protocol's columns.
        fmt: One of `FORMATS`.
        notes: A sentence to put under a suite's table, by suite.
        ranked: The suites whose best figure of each group of lines is bold, and the second best underlined.
        methods: Their order; others follow by name.
        datasets: Their order; others follow by name.
        style: What a reader may choose about a format.

    Raises:
        UsageError: If the format is unknown, there are no results, or of several protocols, or the same run twice.
    """
    tables = build_tables(results, layout, notes=notes, methods=methods, datasets=datasets, ranked=ranked)
    return written(tables, fmt, style)


def written(tables: Sequence[Table], fmt: str = "md", style: Style | None = None) -> str:
    """Tables of any protocols in one format.

    Raises:
        UsageError: If the format is unknown.
    """
    if fmt not in FORMATS:
        raise unknown("format", fmt, FORMATS)
    return FORMATS[fmt](tables, style or Style())
