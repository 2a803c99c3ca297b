"""LaTeX floats for the packages booktabs and graphicx, in the layouts that papers have, as wide as a page's text.

Base-to-new tables become small panels, one for the average and one per dataset; others one row per method, in tabulars
below each other where one is too wide. Letters get smaller before that. A table longer than a page becomes several
floats with one number. If the style is plain, a table is one tabular, however wide.

Widths are estimated from the letters of Computer Modern, rounded up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

from promptbench import registry
from promptbench.show.tables.formats.texts import (
    NAMES,
    WORDS,
    Markup,
    Style,
    Texts,
    appendix_texts,
    clean,
    comparison_texts,
    seeds_text,
    shots_text,
    test_heading,
    test_texts,
    texts,
)
from promptbench.show.tables.table import Line, Table, parts_of
from promptbench.show.tables.views import without_means

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "Δ": r"$\Delta$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "§": r"\S{}",
    "¶": r"\P{}",
    "‖": r"$\parallel$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
PACKAGES = "% needs \\usepackage{booktabs,graphicx}\n"
PANELS_IN_ROW = 3
SPACE = r"\addlinespace"  # between rows that are not ranked among each other
NAMED = NAMES + len(WORDS)  # columns before the figures


def render(tables: Sequence[Table], style: Style) -> str:
    """LaTeX: one float per table, and one for the papers' figures beside it."""
    return PACKAGES + "\n".join(chain.from_iterable(_floats(table, style) for table in tables))


def escape(text: str) -> str:
    """The text as LaTeX shows it."""
    return "".join(LATEX.get(letter, letter) for letter in clean(text))


MARKUP = Markup(escape, (r"\textbf{{{}}}", r"\underline{{{}}}"))


def _floats(table: Table, style: Style) -> list[str]:
    def cited(line: Line) -> str:
        key = "" if line.versus else style.cite.get(line.row.method, "")
        return f"~\\cite{{{key}}}" if key else ""

    page = PAGES[style.columns]
    panels = table.averaged and len(table.groups) > 1 and any(column.derived for column in table.columns)
    if style.plain or table.per_seed:
        floats = ["\n".join(_plain(table, cited))]
    elif panels:
        floats = _panels(table, cited, page)
    else:
        floats = _stacked(table, cited, page)
    if table.comparisons:
        text = comparison_texts(table, MARKUP)
        floats.append(_beside(text, 3, _part(table, "beside published figures"), f"{label(table)}-papers", page))
    if table.tests:
        text = test_texts(table, MARKUP)
        title = test_heading(table)
        floats.append(_beside(text, 2, _part(table, title), f"{label(table)}-tests", page))
    if style.appendix:
        text = appendix_texts(table, MARKUP)
        floats.append(_beside(text, 1, _part(table, "recipes"), f"{label(table)}-recipes", page))
    return [f"{one}\n" for one in floats]


def caption(table: Table) -> str:
    """What a table shows, in the words of papers."""
    protocol = registry.titles("protocols", [table.protocol])[table.protocol]
    shots = f"{shots_text(table.shots)} {'shot' if table.shots == (1,) else 'shots'}"
    seeds = f"{'seed' if len(table.seeds) == 1 else 'seeds'} {seeds_text(table.seeds, ', ')}"
    subject = f", {table.subject}" if table.subject else ""
    return f"{protocol} on {table.suite}{subject}: backbone {table.backbone}, {shots}, {seeds}."


def _part(table: Table, what: str) -> str:
    """The caption of a float beside that of the table."""
    return f"{caption(table).rstrip('.')}: {what}."


def label(table: Table) -> str:
    r"""What `\ref` calls a table: protocol, suite, backbone and, where there are several, the source."""
    words = [table.protocol, table.suite, table.backbone.partition(":")[0], table.subject]
    return "tab:" + "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)))


def _plain(table: Table, cited: Callable[[Line], str]) -> list[str]:
    text = texts(table, MARKUP, cited)
    columns = f"{'l' * NAMED}{'r' * (len(text.head) - NAMED)}"
    return _float("table", caption(table), label(table), _tabular(text, columns), text.remarks)


def _stacked(table: Table, cited: Callable[[Line], str], page: Page) -> list[str]:
    """A row per method and a column per figure, in as many tabulars above each other as the page's width takes.

    Blocks have their names above their rows. What a row knew, and how many seeds it has, is said in notes.
    """
    text = texts(table, MARKUP, cited)
    body: list[list[list[str]]] = []
    parts = iter(text.body)
    for group in table.groups:
        own: list[list[str]] = []
        for part in islice(parts, len(parts_of(group))):
            own += [*([[SPACE]] if own else []), *map(_figures, part)]
        title = escape(table.title(group[0].group))
        body.append([[f"\\textit{{{title}}}"], *own] if len(table.groups) > 1 else own)
    head = [text.head[1], *text.head[NAMED:-1]]
    notes = [*text.remarks, *_words(table), *_counts(table)]
    source = (
        [] if table.averaged or len(table.groups) > 1 else [f"Trained on {escape(table.title(table.lines[0].group))}."]
    )
    kind, font, chunks = _fitting(head, list(chain.from_iterable(body)), page)
    inner: list[list[str]] = []
    for lines in _pages(body, len(chunks)):
        drawn: list[str] = []
        for chunk in chunks:
            drawn += [*_chunk(head, lines, chunk), r"  \par\smallskip"]
        inner.append(drawn[:-1])
    return _numbered(kind, table, font, inner, [*source, *notes])


def _chunk(head: Sequence[str], body: Sequence[Sequence[Sequence[str]]], chunk: Sequence[int]) -> list[str]:
    """A tabular of the methods and some of the figures."""
    kept = (0, *chunk)
    upright = _rotated(head, list(chain.from_iterable(body)))
    titles = [f"\\rotatebox{{90}}{{{head[place]}}}" if upright and place else head[place] for place in kept]
    cut: list[list[list[str]]] = []
    for part in body:
        rows = []
        for row in part:
            if len(row) > 1:
                rows.append([row[place] for place in kept])
            else:  # a block's name, or a space
                rows.append([SPACE if row[0] == SPACE else f"\\multicolumn{{{len(kept)}}}{{l}}{{{row[0]}}}"])
        cut.append(rows)
    return _tabular(Texts(titles, cut, []), f"l{'c' * len(chunk)}")


def _panels(table: Table, cited: Callable[[Line], str], page: Page) -> list[str]:
    """The average first, then a panel per dataset, as many in a row as the page's width takes; the mean of per-dataset
    H is in the plain layout."""
    last = max(place for place, column in enumerate(table.columns) if column.derived)
    kept = without_means(table)
    averages = [line for line in kept.lines if line.kind == "average"]
    lines = (*averages, *(line for line in kept.lines if line.kind != "average"))
    shown = replace(kept, columns=table.columns[: last + 1], lines=lines)
    text = texts(shown, MARKUP, cited)
    head = ["", *(title[:1].upper() + title[1:] for title in text.head[NAMED:-1])]
    everything = list(map(_figures, chain.from_iterable(text.body)))
    font, in_row = _panels_in_row(head, everything, page)
    panels: list[list[str]] = []
    parts = iter(text.body)
    for place, group in enumerate(shown.groups):
        body = [list(map(_figures, part)) for part in islice(parts, len(parts_of(group)))]
        average = group[0].kind == "average"
        name = f"Average over {len(shown.groups) - 1} datasets" if average else escape(table.title(group[0].group))
        letter = chr(ord("a") + place) if place < 26 else str(place + 1)
        tabular = _tabular(Texts(head, body, []), f"l{'c' * (len(head) - 1)}")
        if _width(head, everything, font, range(1, len(head))) > page.text:
            tabular = _shrunk(tabular)  # names longer than the page is wide
        panels.append(
            [
                f"  \\begin{{minipage}}[t]{{{0.98 / in_row:.2f}\\textwidth}}",
                r"  \centering",
                f"  \\textbf{{({letter}) {name}}}\\\\[2pt]",
                *tabular,
                r"  \end{minipage}",
            ]
        )
    most = max(1, LINES // (max(len(group) for group in shown.groups) + 4))  # rows of panels on a page
    rows = [panels[start : start + in_row] for start in range(0, len(panels), in_row)]
    inner = [_side_by_side(rows[start : start + most], in_row) for start in range(0, len(rows), most)]
    kind = "table*" if page.column < page.text else "table"
    return _numbered(kind, table, font, inner, [*text.remarks, *_words(table), *_counts(table)])


def _side_by_side(rows: Sequence[Sequence[Sequence[str]]], in_row: int) -> list[str]:
    """Rows of panels below each other, the last one filled up."""
    drawn: list[str] = []
    for number, row in enumerate(rows):
        for place, panel in enumerate(row):
            ends = place == in_row - 1 or place == len(row) - 1
            drawn += [*panel[:-1], panel[-1] + ("" if ends else r"\hfill")]
        drawn += [r"  \mbox{}"] * (1 < len(row) < in_row)
        drawn += [r"  \par\medskip"] * (number < len(rows) - 1)
    return drawn


def _figures(row: Sequence[str]) -> list[str]:
    """Method and figures of a row, spreads in small letters."""
    figures = [re.sub(r" \$\\pm\$ ([\d.,]+)", r"{\\tiny$\\pm$\1}", cell) for cell in row[NAMED:-1]]
    return [row[1], *figures]


class Font(NamedTuple):
    """A size of letters in LaTeX."""

    command: str
    size: float  # points
    wider: float  # its letters beside those of 10 points, scaled to its size


class Page(NamedTuple):
    """Widths in points of what LaTeX's class `article` has at 10 points; of two columns on A4, the narrower paper."""

    column: float
    text: float


PAGES: Mapping[str, Page] = {"one": Page(345.0, 345.0), "two": Page(221.0, 452.0)}
FONTS = (Font("small", 9, 1.03), Font("footnotesize", 8, 1.06), Font("scriptsize", 7, 1.14))
TINY = Font("tiny", 5, 1.36)
GAP = 2.0  # points on each side of a column, \tabcolsep
SLACK = 4.0  # points that an estimate may be wrong by
LINES = 44  # rows of a table on one page, notes apart
NARROW, MIDDLE, WIDE, WIDEST = 0.31, 0.45, 0.79, 1.03
WIDTHS = {
    **dict.fromkeys("ijl.,:;'|!", NARROW),
    **dict.fromkeys("frst-()/ I[]", MIDDLE),
    **dict.fromkeys("ABCDEFGHJKLNOPQRSTUVXYZw%+=±", WIDE),
    **dict.fromkeys("MWm", WIDEST),
}
"""Of letters of Computer Modern at 10 points, in em, rounded up; others, digits among them, have `OTHERS`."""
OTHERS = 0.56


def letters_width(text: str, font: Font) -> float:
    """The width of a LaTeX text in points, estimated: commands have none, bold letters a sixth more."""
    small = sum(letters_width(found, TINY) for found in re.findall(r"\{\\tiny(.*?)\}", text))
    rest = re.sub(r"\{\\tiny.*?\}", "", text)
    bold = 1.17 if r"\textbf" in rest else 1.0
    cited = len(re.findall(r"~\\cite\{", rest)) * 4  # as "[12]"
    rest = re.sub(r"~\\cite\{[^}]*\}", "", rest)
    rest = rest.replace(r"$\pm$", "±").replace(r"$-$", "+").replace(r"$\Delta$", "D")
    rest = re.sub(r"\$\^\\d?dagger\$|\\[SP]\{\}|\$\\parallel\$", "s", rest)
    plain = re.sub(r"\\[A-Za-z]+|[{}\\$]", "", rest)
    ems = sum(WIDTHS.get(letter, 0.51 if letter.isdigit() else OTHERS) for letter in plain)
    return small + font.size * font.wider * (ems * bold + cited * 0.45)


def _width(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    font: Font,
    figures: Iterable[int],
    upright: bool = True,
) -> float:
    """The width of a tabular of the names and some columns of figures, in points.

    Args:
        upright: Whether titles stand upright where that is narrower.
    """
    rotated = upright and _rotated(head, rows)
    total = 0.0
    for place in (0, *figures):
        texts = [row[place] for row in rows if len(row) > 1]
        title = font.size * 1.3 if rotated and place else letters_width(head[place], font)
        total += max([title, *(letters_width(one, font) for one in texts)]) + 2 * GAP
    return total + SLACK


def _rotated(head: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether titles stand upright: where there are many, and one is wider than its figures."""
    if len(head) < 6:
        return False
    font = FONTS[0]
    for place in range(1, len(head)):
        figures = [letters_width(row[place], font) for row in rows if len(row) > 1]
        if letters_width(head[place], font) > max(figures, default=0.0):
            return True
    return False


def _fitting(head: Sequence[str], rows: Sequence[Sequence[str]], page: Page) -> tuple[str, Font, list[list[int]]]:
    """The float, its letters, and which columns of figures stand in which of the tabulars below each other."""
    places = list(range(1, len(head)))
    floats = {"table": page.column, "table*": page.text} if page.column < page.text else {"table": page.text}
    for kind, room in floats.items():
        for font in FONTS:
            if _width(head, rows, font, places) <= room:
                return kind, font, [places]
    kind, room = list(floats.items())[-1]
    font = FONTS[1]
    for number in range(2, len(places) + 1):
        size = -(-len(places) // number)
        chunks = [places[start : start + size] for start in range(0, len(places), size)]
        if all(_width(head, rows, font, chunk) <= room for chunk in chunks):
            return kind, font, chunks
    return kind, FONTS[-1], [[place] for place in places]


def _panels_in_row(head: Sequence[str], rows: Sequence[Sequence[str]], page: Page) -> tuple[Font, int]:
    """The letters of panels, and how many of them stand side by side: as many as can, then as large as can."""
    for number in range(PANELS_IN_ROW, 1, -1):
        for font in FONTS:
            if _width(head, rows, font, range(1, len(head))) <= 0.98 * page.text / number:
                return font, number
    wide = [font for font in FONTS if _width(head, rows, font, range(1, len(head))) <= page.text]
    return (wide or FONTS[-1:])[0], 1


def _pages(body: Sequence[list[list[str]]], times: int) -> list[list[list[list[str]]]]:
    """The blocks of a table, those together that fit on a page where each row is there so many times."""
    found: list[list[list[list[str]]]] = [[]]
    for part in body:
        used = sum(len(one) for one in found[-1])
        if found[-1] and times * (used + len(part)) > LINES:
            found.append([])
        found[-1].append(part)
    return found


def _numbered(kind: str, table: Table, font: Font, inner: Sequence[Sequence[str]], remarks: Sequence[str]) -> list[str]:
    """The floats of a table that may need several pages; the first has the label, the last the notes."""
    floats = []
    set_up = [f"  \\{font.command}", f"  \\setlength{{\\tabcolsep}}{{{GAP:g}pt}}"]
    for number, drawn in enumerate(inner):
        again = number > 0
        title = f"{caption(table).rstrip('.')} (continued)." if again else caption(table)
        notes = remarks if number == len(inner) - 1 else ()
        lines = _float(kind, title, "" if again else label(table), [*set_up, *drawn], notes)
        if again:  # as the same table
            lines.insert(1, r"  \addtocounter{table}{-1}")
        floats.append("\n".join(lines))
    return floats


def _beside(text: Texts, names: int, title: str, key: str, page: Page) -> str:
    """A float of what stands beside a table, shrunk where it is wider than the page."""
    rows = list(chain.from_iterable(text.body))
    room, places = page.text, range(1, len(text.head))
    fonts = [font for font in FONTS if _width(text.head, rows, font, places, upright=False) <= room]
    tabular = _tabular(text, f"{'l' * names}{'r' * (len(text.head) - names)}")
    inner = tabular if fonts else _shrunk(tabular)
    font = fonts[0] if fonts else FONTS[-1]
    set_up = [f"  \\{font.command}", f"  \\setlength{{\\tabcolsep}}{{{GAP:g}pt}}"]
    kind = "table*" if page.column < page.text else "table"
    return "\n".join(_float(kind, title, key, [*set_up, *inner], text.remarks))


def _float(kind: str, title: str, key: str, inner: Sequence[str], remarks: Sequence[str]) -> list[str]:
    return [
        f"\\begin{{{kind}}}",
        r"  \centering",
        f"  \\caption{{{escape(title)}}}",
        *([f"  \\label{{{key}}}"] if key else []),
        *inner,
        *(f"  \\par\\footnotesize {remark}" for remark in remarks),
        f"\\end{{{kind}}}",
    ]


def _tabular(text: Texts, columns: str, above: Sequence[str] = ()) -> list[str]:
    groups = "\n  \\midrule\n".join("\n".join(map(_row, group)) for group in text.body)
    head = [*above, _row(text.head)]
    begin = [f"  \\begin{{tabular}}{{{columns}}}", r"  \toprule"]
    return [*begin, *head, r"  \midrule", groups, r"  \bottomrule", r"  \end{tabular}"]


def _shrunk(tabular: Sequence[str]) -> list[str]:
    """A tabular that nothing else makes narrow enough, as wide as the line."""
    return [r"  \resizebox{\linewidth}{!}{%", *tabular, "  }"]


def _row(cells: Sequence[str]) -> str:
    if list(cells) == [SPACE]:
        return f"  {SPACE}"
    return f"  {' & '.join(cells)} \\\\"


def _counts(table: Table) -> list[str]:
    """How many seeds stand behind the lines, where the layout has no column for it."""
    by_n: dict[str, list[str]] = {}
    for line in table.lines:
        if line.label not in by_n.setdefault(line.n, []):
            by_n[line.n].append(line.label)
    if len(by_n) == 1:
        return [f"n = {escape(next(iter(by_n)))} seeds."]
    said = [f"n = {n} for {', '.join(names)}" for n, names in by_n.items()]
    return [f"Seeds: {escape('; '.join(said))}."]


def _words(table: Table) -> list[str]:
    """What the layout has no columns for: how settings were chosen, and what was told of the text."""
    said: dict[str, dict[str, list[str]]] = {name: {} for name in WORDS}
    for line in table.lines:
        for name, word in zip(WORDS, (str(line.selection), line.text_prior), strict=True):
            labels = said[name].setdefault(word, [])
            if line.label not in labels:
                labels.append(line.label)
    notes = {
        name: "; ".join(f"{word}: {', '.join(labels)}" for word, labels in of.items()) for name, of in said.items()
    }
    return [f"{escape(name)}: {escape(note)}." for name, note in notes.items()]
