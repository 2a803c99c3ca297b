"""HTML: one page that needs nothing else, all text escaped; a figure's tooltip holds its seeds and runs."""

from __future__ import annotations

import html
from collections.abc import Sequence

from promptbench.show.tables.formats.texts import (
    Markup,
    Style,
    Texts,
    clean,
    comparison_texts,
    heading,
    rounded,
    seeds_text,
    texts,
)
from promptbench.show.tables.table import Cell, Line, Table

MARKUP = Markup(lambda text: html.escape(clean(text)), ("<strong>{}</strong>", "<u>{}</u>"))
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>promptbench tables</title>
<style>
body {{ font-family: sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
caption {{ caption-side: top; text-align: left; font-weight: bold; padding: 0.3em 0; }}
th, td {{ padding: 0.15em 0.6em; text-align: right; white-space: nowrap; }}
th[scope], td.name {{ text-align: left; vertical-align: top; }}
thead {{ border-top: 2px solid; border-bottom: 1px solid; }}
tbody {{ border-bottom: 1px solid; }}
</style>
</head>
<body>
{}
</body>
</html>
"""
RUNS_SHOWN = 3  # in a tooltip; the JSON format names all


def render(tables: Sequence[Table], style: Style) -> str:
    """All tables on one page."""
    return PAGE.format(sections(tables))


def sections(tables: Sequence[Table]) -> str:
    """The tables without a page around them."""
    return "\n".join(_section(table) for table in tables)


def _section(table: Table) -> str:
    tips = [[[_tip(line, column.key) for column in table.columns] for line in lines] for lines in table.groups]
    parts = [_table(heading(table), texts(table, MARKUP), tips)]
    if table.comparisons:
        parts.append(_table("Beside published figures", comparison_texts(table, MARKUP), []))
    return "\n".join(parts)


def _table(title: str, text: Texts, tips: Sequence[Sequence[Sequence[str]]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in text.head)
    lines = [f"<table>\n<caption>{MARKUP.escape(title)}</caption>", f"<thead><tr>{head}</tr></thead>"]
    for place, group in enumerate(text.body):
        lines.append("<tbody>")
        for number, row in enumerate(group):
            of_row = tips[place][number] if tips else [""] * (len(row) - 2)
            cells = [f"<td{tip}>{cell}</td>" for cell, tip in zip(row[2:], [*of_row, ""], strict=False)]
            lines.append(f'<tr><th scope="row">{row[0]}</th><td class="name">{row[1]}</td>{"".join(cells)}</tr>')
        lines.append("</tbody>")
    return "\n".join([*lines, "</table>", *(f"<p>{remark}</p>" for remark in text.remarks)])


def _tip(line: Line, key: str) -> str:
    """The attribute with the figure of every seed and the first runs behind it."""
    cell = line.cells.get(key, Cell())
    values = [f"seed {seeds_text([seed], '')}: {rounded(value)}" for seed, value in cell.values.items()]
    more = [f"and {len(cell.runs) - RUNS_SHOWN} more"] * (len(cell.runs) > RUNS_SHOWN)
    said = [*values, *cell.runs[:RUNS_SHOWN], *more]
    return f' title="{MARKUP.escape("; ".join(said))}"' if said else ""
