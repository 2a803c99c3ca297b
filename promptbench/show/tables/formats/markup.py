"""Tables as text with markup: Markdown whose columns are aligned, and HTML.

Markdown reads in a terminal as well. HTML is one page that needs nothing else, all text escaped; a figure's tooltip
holds its seeds and runs.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import chain

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

MARKDOWN = Markup(lambda text: clean(text).replace("|", r"\|"), ("**{}**", "_{}_"))
HTML = Markup(lambda text: html.escape(clean(text)), ("<strong>{}</strong>", "<u>{}</u>"))
NAMES = 2  # columns on the left that hold names, in Markdown
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


def render_markdown(tables: Sequence[Table], style: Style) -> str:
    """Markdown: one section per table, and one for the papers' figures beside it."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    parts = laid_out(clean(heading(table)), texts(table, MARKDOWN))
    if table.comparisons:
        parts += ["", *laid_out("beside published figures", comparison_texts(table, MARKDOWN))]
    return "\n".join(parts) + "\n"


def laid_out(title: str, text: Texts, names: int = NAMES) -> list[str]:
    """The lines of a section in Markdown, its columns aligned; `names` columns on the left hold names."""
    rows = list(chain.from_iterable(text.body))
    widths = [max(2, *(len(row[place]) for row in [text.head, *rows])) for place in range(len(text.head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if place < names else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if place < names else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    below = list(chain.from_iterable(("", remark) for remark in text.remarks))
    return [f"### {title}", "", line(text.head), line(rule), *map(line, rows), *below]


def render_html(tables: Sequence[Table], style: Style) -> str:
    """HTML: all tables on one page."""
    return PAGE.format(html_sections(tables))


def html_sections(tables: Sequence[Table]) -> str:
    """HTML of the tables without a page around them."""
    return "\n".join(_html(table) for table in tables)


def _html(table: Table) -> str:
    tips = [[[_tip(line, column.key) for column in table.columns] for line in lines] for lines in table.groups]
    parts = [_table(heading(table), texts(table, HTML), tips)]
    if table.comparisons:
        parts.append(_table("Beside published figures", comparison_texts(table, HTML), []))
    return "\n".join(parts)


def _table(title: str, text: Texts, tips: Sequence[Sequence[Sequence[str]]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in text.head)
    lines = [f"<table>\n<caption>{HTML.escape(title)}</caption>", f"<thead><tr>{head}</tr></thead>"]
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
    return f' title="{HTML.escape("; ".join(said))}"' if said else ""
