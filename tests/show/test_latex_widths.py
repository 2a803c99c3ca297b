"""LaTeX is as wide as the page: by the widths of Computer Modern's letters, and by TeX itself where there is one."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import promptbench as pb
from promptbench.results.result import Result, read_results
from promptbench.show.tables.show import PAGE_COLUMNS, View, show, tables_of
from promptbench.suite import load_suite

RESULTS = Path(__file__).parents[2] / "results" / "mini"
PROTOCOLS = ("base2new", "cross_dataset", "domain_generalization", "few_shot", "ood")
SIZES = {"small": 9.0, "footnotesize": 8.0, "scriptsize": 7.0, "tiny": 5.0}
WIDER = {9.0: 1.03, 8.0: 1.0625, 7.0: 1.139, 5.0: 1.361}  # cmr9 to cmr5's digit beside cmr10's, at the same size
TEXT = {"one": 345.0, "two": 452.0}  # \textwidth of article at 10 points; of two columns on A4
COLUMN = {"one": 345.0, "two": 221.0}


@functools.cache
def stored(protocol: str) -> tuple[Result, ...]:
    return tuple(read_results(*sorted((RESULTS / "results" / protocol).rglob("*.json"))))


def latex(protocol: str, columns: str = "one", **more: object) -> str:
    view = View(format="latex", columns=columns, **more)  # type: ignore[arg-type]
    return show(tables_of(stored(protocol), [load_suite("mini")], (), (), view), view)


@functools.cache
def letters() -> dict[str, float]:
    """Widths of the letters of cmr10, in em, as its maker measured them; those of bold ones."""
    from matplotlib import get_data_path
    from matplotlib._afm import AFM

    with open(Path(get_data_path()) / "fonts" / "afm" / "cmr10.afm", "rb") as file:
        font = AFM(file)
    return {chr(code): metrics.width / 1000 for code, metrics in font._metrics.items() if code > 0} | {" ": 0.333}


def width(cell: str, size: float) -> float:
    """A cell's width in points."""
    small = sum(width(found, SIZES["tiny"]) for found in re.findall(r"\{\\tiny(.*?)\}", cell))
    rest = re.sub(r"\{\\tiny.*?\}", "", cell)
    bold = 1.15 if r"\textbf" in rest else 1.0
    rest = re.sub(r"\\rotatebox\{90\}\{.*\}", "m", rest)  # as wide as a line is high
    rest = rest.replace(r"$\pm$", "+").replace("$-$", "+")
    rest = re.sub(r"\$\^\\d?dagger\$", ".", rest).replace(r"\S{}", "s").replace(r"$\parallel$", "n")
    rest = re.sub(r"\\[A-Za-z]+|[{}$\\]", "", rest)
    return small + bold * size * WIDER[size] * sum(letters().get(letter, 0.8) for letter in rest)


def tabulars(text: str) -> Iterator[tuple[float, float]]:
    """The width of every tabular, and that of the float or the box that it stands in as a share of the text."""
    for found in re.finditer(r"\\begin\{(table\*?)\}(.*?)\\end\{\1\}", text, re.DOTALL):
        size = SIZES[re.search(r"^  \\(small|footnotesize|scriptsize)$", found[2], re.MULTILINE)[1]]  # type: ignore[index]
        gap = float(re.search(r"\\tabcolsep\}\{([\d.]+)pt\}", found[2])[1])  # type: ignore[index]
        share = min([float(one) for one in re.findall(r"\[t\]\{([\d.]+)\\textwidth\}", found[2])], default=1.0)
        for body in re.findall(r"\\begin\{tabular\}\{[lcr]+\}(.*?)\\end\{tabular\}", found[2], re.DOTALL):
            rows = [line.strip().removesuffix(r"\\").split("&") for line in body.splitlines() if "&" in line]
            columns = []
            for column in zip(*rows, strict=True):
                columns.append(max(width(cell.strip(), size) for cell in column))
            yield sum(columns) + 2 * gap * len(columns), share * (0.0 if found[1] == "table" else 1.0) or -share


def check(text: str, columns: str) -> int:
    count = 0
    for wide, share in tabulars(text):
        room = TEXT[columns] * share if share > 0 else COLUMN[columns] * -share
        assert wide <= room, f"{wide:.0f} of {room:.0f} points"
        count += 1
    return count


@pytest.mark.parametrize("columns", PAGE_COLUMNS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_table_of_mini_is_as_wide_as_the_page(protocol: str, columns: str) -> None:
    text = latex(protocol, columns)
    assert check(text, columns) and "resizebox" not in text
    assert re.search(rf"\\label\{{tab:{protocol.replace('_', '-')}-mini-mini", text)


def test_the_measure_finds_what_is_too_wide() -> None:
    text = latex("ood", "two").replace(
        "Zero-shot CLIP", "Zero-shot CLIP and more than fits beside all those figures of it"
    )
    with pytest.raises(AssertionError, match="points"):
        check(text, "two")


def test_long_tables_become_floats_of_one_number_and_no_row_is_lost() -> None:
    text = latex("ood")
    floats = text.count(r"\begin{table}")
    assert floats > 1 and text.count(r"\addtocounter{table}{-1}") == floats - 1 == text.count("(continued)")
    assert text.count(r"\label{") == 1
    (table,) = pb.table(stored("ood")).tables
    methods = len(table.rows)
    chunks = len(re.findall(r"\\begin\{tabular\}", text)) // floats
    for part in re.findall(r"\\begin\{table\}(.*?)\\end\{table\}", text, re.DOTALL):
        assert len(re.findall(r"^  .* & .* \\\\$", part, re.MULTILINE)) <= 50
    assert text.count(r"Linear probe") >= chunks * len(table.groups) and methods * len(table.groups) == len(table.lines)


PAPER = r"""\documentclass[10pt%s]{article}
\usepackage{booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex on the PATH")
@pytest.mark.parametrize("columns", PAGE_COLUMNS)
def test_tex_sets_every_table_without_one_that_is_too_wide(columns: str, tmp_path: Path) -> None:
    tables = "\n\\clearpage\n".join(latex(protocol, columns, appendix=True) for protocol in PROTOCOLS)
    paper = "a4paper,twocolumn" if columns == "two" else "letterpaper"
    (tmp_path / "paper.tex").write_text(PAPER % (f",{paper}", tables), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert [
        float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout) if float(points) > 1
    ] == []
