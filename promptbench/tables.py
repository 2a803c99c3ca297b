"""Tables of results as Markdown, CSV and LaTeX: a pure function of the records, the same bytes every time."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from promptbench.averages import Cell, Line, Table, TableLayout, build_tables
from promptbench.config import unknown
from promptbench.protocol import Column
from promptbench.results import Result
from promptbench.rows import Seed

__all__ = ["FORMATS", "Column", "TableLayout", "build_tables", "render"]

MARKS = {
    "transferred": ("†", "recipe transferred from another protocol or backbone"),
    "ours": ("‡", "recipe chosen here, not by the method's authors"),
}
RECONSTRUCTED = (
    "§",
    "reconstructed without its authors' code; compare with the paper before citing, and with no published figure",
)
CSV_FACTS = ("protocol", "suite", "backbone", "kind", "dataset", "method", "settings", "shots", "seeds", "n")
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
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "§": r"\S{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def render(
    results: Iterable[Result],
    layout: TableLayout,
    fmt: str = "md",
    *,
    notes: Mapping[str, str] | None = None,
    ranked: bool = False,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> str:
    """The tables of one protocol's results, one per suite and backbone, as text that ends in a newline.

    Figures are in percent, with one decimal in Markdown and LaTeX, unrounded in CSV.

    Args:
        results: Of one protocol.
        layout: The protocol's columns.
        fmt: One of `FORMATS`.
        notes: A sentence to put under a suite's table, by suite.
        ranked: Whether the best figure of each group of lines is bold.
        methods: Their order; others follow by name.
        datasets: Their order; others follow by name.

    Raises:
        UsageError: If the format is unknown, there are no results, or of several protocols, or the same run twice.
    """
    if fmt not in FORMATS:
        raise unknown("format", fmt, FORMATS)
    built = build_tables(results, layout, notes=notes, methods=methods, datasets=datasets)
    return FORMATS[fmt](built, ranked)


def to_markdown(tables: Sequence[Table], ranked: bool) -> str:
    """Tables with aligned columns, which read in a terminal as well."""
    return "\n".join(_markdown(table, ranked) for table in tables)


def to_latex(tables: Sequence[Table], ranked: bool) -> str:
    """Floats for the booktabs package."""
    return "\n".join(_latex(table, ranked) for table in tables)


def to_csv(tables: Sequence[Table], ranked: bool) -> str:
    """All tables under one header, unrounded; every figure is followed by its standard deviation."""
    keys = list(dict.fromkeys(column.key for table in tables for column in table.columns))
    figures = [name for key in keys for name in (key, f"{key}/std")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*CSV_FACTS, *figures, "origin", "remark"])
    for table in tables:
        for line in table.lines:
            facts = [table.protocol, table.suite, table.backbone, line.kind, line.group, line.row.method]
            cells = [line.cells.get(key, Cell()) for key in keys]
            numbers = [number for cell in cells for number in (cell.mean, cell.std)]
            said = dict.fromkeys(text for cell in cells for text in (cell.gap.strip("–"), cell.reason) if text)
            over = [line.row.apart, _shots(line.shots), _seeds(line.seeds, " "), line.n]
            row = [*facts, *over, *numbers, " ".join(sorted(line.origins)), "; ".join(said)]
            writer.writerow([_clean(item) if isinstance(item, str) else item for item in row])
    return out.getvalue()


FORMATS: Mapping[str, Callable[[Sequence[Table], bool], str]] = {"md": to_markdown, "csv": to_csv, "latex": to_latex}


def _markdown(table: Table, ranked: bool) -> str:
    head, body, remarks = _texts(table, ranked, lambda text: _clean(text).replace("|", r"\|"), "**{}**")
    flat = [row for group in body for row in group]
    widths = [max(2, *(len(row[place]) for row in [head, *flat])) for place in range(len(head))]

    def laid_out(row: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if place < 2 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    lines = [f"### {_clean(_heading(table))}", "", laid_out(head), laid_out(rule), *map(laid_out, flat)]
    return "\n".join([*lines, *(line for remark in remarks for line in ("", remark))]) + "\n"


def _latex(table: Table, ranked: bool) -> str:
    head, body, remarks = _texts(table, ranked, _escape, r"\textbf{{{}}}")

    def laid_out(row: Sequence[str]) -> str:
        return "  " + " & ".join(row) + r" \\"

    groups = "\n  \\midrule\n".join("\n".join(map(laid_out, group)) for group in body)
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_escape(_heading(table))}}}",
        f"  \\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
        r"  \toprule",
        laid_out(head),
        r"  \midrule",
        groups,
        r"  \bottomrule",
        r"  \end{tabular}",
        *(f"  \\par\\footnotesize {remark}" for remark in remarks),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _texts(
    table: Table, ranked: bool, escape: Callable[[str], str], bold: str
) -> tuple[list[str], list[list[list[str]]], list[str]]:
    """Head, groups of rows of cells, and remarks, all as escaped text."""
    head = [table.blocks_are, "method", *(column.title for column in table.columns), "n"]
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in table.lines:
        groups[line.kind, line.group].append(line)
    footnotes: dict[str, int] = {}
    body = []
    for lines in groups.values():
        published = [line for line in lines if not line.row.reconstructed]
        best = {column.key: _best(published, column) if ranked else "" for column in table.columns}
        rows = []
        for line in lines:
            cells = [line.cells.get(column.key) for column in table.columns]
            texts = [escape(_figure(cell, footnotes)) for cell in cells]
            for place, (column, cell) in enumerate(zip(table.columns, cells, strict=True)):
                ranks = line in published and cell is not None and cell.mean is not None
                if ranks and _rounded(cell.mean) == best[column.key]:  # type: ignore[union-attr,arg-type]
                    texts[place] = bold.format(texts[place])
            name = escape(line.group) if line is lines[0] else ""
            rows.append([name, escape(line.row.label + _marks(line)), *texts, line.n])
        body.append(rows)
    legend = [
        f"{mark} {meaning}."
        for mark, meaning in (*MARKS.values(), RECONSTRUCTED)
        if any(mark in _marks(line) for line in table.lines)
    ]
    remarks = [*(f"[{number}] {reason}" for reason, number in footnotes.items()), *legend, *table.remarks]
    return [escape(title) for title in head], body, [escape(remark) for remark in remarks]


def _figure(cell: Cell | None, footnotes: dict[str, int]) -> str:
    """The text of a cell; a reason that is new gets the next number."""
    if cell is None:
        return ""
    if cell.mean is not None:
        return _rounded(cell.mean) + (f" ± {_rounded(cell.std)}" if cell.std is not None else "")
    return f"{cell.gap} [{footnotes.setdefault(cell.reason, len(footnotes) + 1)}]" if cell.reason else cell.gap


def _best(lines: Sequence[Line], column: Column) -> str:
    """The best figure as shown, so that what reads the same is marked the same."""
    means = [cell.mean for line in lines if (cell := line.cells.get(column.key)) and cell.mean is not None]
    best = min if column.lower else max
    return _rounded(best(means)) if len(lines) > 1 and means else ""


def _rounded(value: float) -> str:
    return f"{value:.1f}"


def _marks(line: Line) -> str:
    marks = [mark for origin, (mark, _) in MARKS.items() if origin in line.origins]
    return "".join([*marks, RECONSTRUCTED[0]] if line.row.reconstructed else marks)


def _heading(table: Table) -> str:
    word = "shot" if table.shots == (1,) else "shots"
    seeds = f"{'seed' if len(table.seeds) == 1 else 'seeds'} {_seeds(table.seeds, ', ')}"
    subject = f", {table.subject}" if table.subject else ""
    return (
        f"{table.protocol} on {table.suite}{subject}, backbone {table.backbone}, {_shots(table.shots)} {word}, {seeds}"
    )


def _shots(shots: Sequence[int | None]) -> str:
    return ", ".join("all" if number is None else str(number) for number in shots)


def _seeds(seeds: Sequence[Seed], between: str) -> str:
    """The seeds; data seed and training seed where they differ."""
    return between.join(str(data) if data == train else f"{data}/{train}" for data, train in seeds)


def _clean(text: str) -> str:
    """One line, and nothing that a terminal would act on."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _escape(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in _clean(text))
