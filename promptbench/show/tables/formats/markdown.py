"""Markdown with aligned columns, which reads in a terminal as well."""

from __future__ import annotations

from collections.abc import Sequence

from promptbench.show.tables.formats.texts import Markup, Style, Texts, clean, comparison_texts, heading, texts
from promptbench.show.tables.table import Table

MARKUP = Markup(lambda text: clean(text).replace("|", r"\|"), ("**{}**", "_{}_"))
NAMES = 2  # columns on the left that hold names


def render(tables: Sequence[Table], style: Style) -> str:
    """One section per table, and one for the papers' figures beside it."""
    return "\n".join(_section(table) for table in tables)


def _section(table: Table) -> str:
    parts = laid_out(clean(heading(table)), texts(table, MARKUP))
    if table.comparisons:
        parts += ["", *laid_out("beside published figures", comparison_texts(table, MARKUP))]
    return "\n".join(parts) + "\n"


def laid_out(title: str, text: Texts, names: int = NAMES) -> list[str]:
    """The lines of a section; `names` columns on the left hold names."""
    rows = [row for group in text.body for row in group]
    widths = [max(2, *(len(row[place]) for row in [text.head, *rows])) for place in range(len(text.head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if place < names else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if place < names else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    below = [line for remark in text.remarks for line in ("", remark)]
    return [f"### {title}", "", line(text.head), line(rule), *map(line, rows), *below]
