"""LaTeX floats for the packages booktabs and graphicx, in the layouts that papers have.

Base-to-new tables become small panels, one for the average and one per dataset, three in a row; tables of one training
evaluated elsewhere become one row per method under rotated names. Others, and all if the style is plain, are one
tabular.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice

from promptbench.show.tables.formats.texts import (
    NAMES,
    WORDS,
    Markup,
    Style,
    Texts,
    clean,
    comparison_texts,
    heading,
    test_heading,
    test_texts,
    texts,
)
from promptbench.show.tables.rows import MEANS_APART
from promptbench.show.tables.table import Line, Table, parts_of

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

    layout: Callable[[Table, Callable[[Line], str]], list[str]] = _plain
    if not style.plain and not table.per_seed:
        if table.averaged and len(table.groups) > 1 and any(column.derived for column in table.columns):
            layout = _panels
        elif not table.averaged and table.blocks_are == "dataset":
            layout = _wide
    floats = ["\n".join(layout(table, cited)) + "\n"]
    if table.comparisons:
        text = comparison_texts(table, MARKUP)
        caption = f"Beside published figures: {heading(table)}"
        floats.append("\n".join(_float("table*", caption, _fitted(_tabular(text, "lllrrrrll")), text.remarks)) + "\n")
    if table.tests:
        text = test_texts(table, MARKUP)
        caption = f"E{test_heading(table)[1:]}: {heading(table)}"
        floats.append("\n".join(_float("table*", caption, _fitted(_tabular(text, "llrrrrrrrr")), text.remarks)) + "\n")
    return floats


def _plain(table: Table, cited: Callable[[Line], str]) -> list[str]:
    text = texts(table, MARKUP, cited)
    return _float(
        "table", heading(table), _tabular(text, f"{'l' * NAMED}{'r' * (len(text.head) - NAMED)}"), text.remarks
    )


def _wide(table: Table, cited: Callable[[Line], str]) -> list[str]:
    """One row per method; where there is one source, its name stands over its column."""
    text = texts(table, MARKUP, cited)
    several = len(table.groups) > 1
    first, *names = [escape(column.title) for column in table.columns]
    rotated = [f"\\rotatebox{{90}}{{{name}}}" for name in names]
    source = first if several else escape(table.title(table.lines[0].group))
    left = text.head[0 if several else 1 : NAMED]
    over = [*([""] * len(left)), escape("source"), f"\\multicolumn{{{len(names)}}}{{c}}{{target}}"]
    at = len(left) + 1
    rules = [f"\\cmidrule(lr){{{at}-{at}}} \\cmidrule(lr){{{at + 1}-{at + len(names)}}}"] if names else []
    body = [[row[:-1] if several else row[1:-1] for row in group] for group in text.body]
    head = [*left, f"\\rotatebox{{90}}{{{source}}}", *rotated]
    above = [_row(over), *(f"  {rule}" for rule in rules)] if names else []
    columns = f"{'l' * len(left)}{'c' * (1 + len(names))}"
    inner = _tabular(Texts(head, body, []), columns, above)
    return _float("table*", heading(table), _fitted(inner), [*text.remarks, *_counts(table)])


def _panels(table: Table, cited: Callable[[Line], str]) -> list[str]:
    """The average first, then a panel per dataset; the mean of per-dataset H is in the plain layout."""
    last = max(place for place, column in enumerate(table.columns) if column.derived)
    kept = [line for line in table.lines if line.kind != "mean"]
    lines = (*(line for line in kept if line.kind == "average"), *(line for line in kept if line.kind != "average"))
    remarks = tuple(_without_means(remark) for remark in table.remarks)
    shown = replace(table, columns=table.columns[: last + 1], lines=lines, remarks=remarks)
    text = texts(shown, MARKUP, cited)
    inner, parts = [], iter(text.body)
    for place, group in enumerate(shown.groups):
        body = list(islice(parts, len(parts_of(group))))
        name = f"Average over {len(shown.groups) - 1} datasets" if group[0].kind == "average" else body[0][0][0]
        label = chr(ord("a") + place) if place < 26 else str(place + 1)
        panel = Texts(["", *(title[:1].upper() + title[1:] for title in text.head[NAMED:-1])], [], [])
        panel.body.extend([[row[1], *row[NAMED:-1]] for row in part] for part in body)
        inner += [
            r"  \begin{minipage}[t]{0.32\textwidth}",
            r"  \centering",
            f"  \\textbf{{({label}) {name}}}\\\\[2pt]",
            *_fitted(_tabular(panel, f"l{'c' * (len(panel.head) - 1)}")),
            r"  \end{minipage}" + (r"\hfill" if (place + 1) % PANELS_IN_ROW else r"\\[6pt]"),
        ]
    if len(shown.groups) % PANELS_IN_ROW:
        inner.append(r"  \mbox{}")
    return _float("table*", heading(table), inner, [*text.remarks, *_words(table), *_counts(table)])


def _float(kind: str, caption: str, inner: Sequence[str], remarks: Sequence[str]) -> list[str]:
    return [
        f"\\begin{{{kind}}}",
        r"  \centering",
        f"  \\caption{{{escape(caption)}}}",
        *inner,
        *(f"  \\par\\footnotesize {remark}" for remark in remarks),
        f"\\end{{{kind}}}",
    ]


def _tabular(text: Texts, columns: str, above: Sequence[str] = ()) -> list[str]:
    groups = "\n  \\midrule\n".join("\n".join(map(_row, group)) for group in text.body)
    head = [*above, _row(text.head)]
    begin = [f"  \\begin{{tabular}}{{{columns}}}", r"  \toprule"]
    return [*begin, *head, r"  \midrule", groups, r"  \bottomrule", r"  \end{tabular}"]


def _fitted(tabular: Sequence[str]) -> list[str]:
    """A tabular, made as wide as the line."""
    return [r"  \resizebox{\linewidth}{!}{%", *tabular, "  }"]


def _row(cells: Sequence[str]) -> str:
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


def _without_means(remark: str) -> str:
    start, apart, _ = remark.partition(MEANS_APART)
    return f"{start}." if apart else remark
