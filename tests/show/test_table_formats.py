"""Formats of tables: LaTeX through a small parser, HTML through Python's, JSON and long CSV traced to their runs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from promptbench import registry
from promptbench.cli import main
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.result import Result, Spec, write_result
from promptbench.show.tables.rows import build_tables
from promptbench.show.tables.show import FORMATS, View, citations, layout_of, show, tables_of
from promptbench.suite import load_suite

HOSTILE = r"""a|b & 50% $x_1$ #{~^\} [1] <b>""" + "\n\x1b[31m,\"'"
ELEVEN = load_suite("clip11").datasets("base2new")
TARGETS = load_suite("clip11").datasets("targets")
TITLES = registry.titles("datasets", ELEVEN)


def make(dataset: str, method: str, seed: int, metrics: dict[str, float], **spec: Any) -> Result:
    facts: dict[str, Any] = {
        "suite": "clip11",
        "protocol": "base2new",
        "config": {"n_ctx": 2},
        "recipe": {"epochs": 5, "origin": "authors"},
        "shots": 16,
        "backbone": "ViT-B-16-quickgelu:openai",
        "threads": 1,
    }
    facts |= {"dataset": dataset, "method": method, "data_seed": seed, "train_seed": seed}
    conditions = spec.pop("conditions", {})
    return Result(
        spec=Spec(**{**facts, **spec}),
        conditions=conditions,
        metrics=metrics,
        versions={},
        commit="c0ffee",
        created="now",
    )


def base2new(base: float, new: float, dataset: str, method: str, seed: int = 1, **spec: Any) -> Result:
    metrics = {"base/accuracy": base, "new/accuracy": new, "h": harmonic_mean(base, new)}
    return make(dataset, method, seed, metrics, **spec)


def twelve(methods: Sequence[str] = ("coop", "maple", "vpt")) -> list[Result]:
    return [
        base2new(70 + 3 * m + seed, 60 + place + m, dataset, method, seed)
        for m, method in enumerate(methods)
        for place, dataset in enumerate(ELEVEN)
        for seed in (1, 2, 3)
    ]


def transfer(
    names: Sequence[str], method: str, seed: int, first: float, source: str = "imagenet", **spec: Any
) -> Result:
    metrics = {"source/accuracy": 71.0, **{f"{name}/accuracy": first + n for n, name in enumerate(names)}}
    metrics["average/accuracy"] = sum(metrics[f"{name}/accuracy"] for name in names) / len(names)
    facts: dict[str, Any] = {"protocol": "cross_dataset", "evaluated": {name: {} for name in names}, **spec}
    return make(source, method, seed, metrics, conditions={"images": dict.fromkeys(("source", *names), 9)}, **facts)


def shown(results: Sequence[Result], **view: Any) -> str:
    suites = [load_suite("clip11"), load_suite("mini")]
    wanted = View(**view)
    return show(tables_of(results, suites, (), (), wanted), wanted)


COMMANDS = {
    *("begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "cmidrule", "par", "footnotesize"),
    *(
        "textbf",
        "underline",
        "resizebox",
        "linewidth",
        "textwidth",
        "hfill",
        "mbox",
        "multicolumn",
        "rotatebox",
        "cite",
        "label",
        "addtocounter",
        "textit",
    ),
    *("small", "scriptsize", "tiny", "setlength", "tabcolsep", "smallskip", "medskip", "addlinespace"),
    *("pm", "dagger", "ddagger", "S", "P", "parallel", "Delta", "textbackslash", "textasciitilde", "textasciicircum"),
    *("textless", "textgreater", "textbar"),
}


def parse_latex(text: str) -> list[list[list[str]]]:
    """The rows of cells of every tabular; fails where TeX would."""
    text = re.sub(r"(?<!\\)%[^\n]*\n", "", text)
    bare = re.sub(r"\\[&%$#_{}\\]", "", text)
    assert set(re.findall(r"\\([A-Za-z]+)", bare)) <= COMMANDS
    assert not re.search(r"\\[^A-Za-z]", bare)
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    outside = "".join(bare.split("$")[::2])
    assert not set("#_^<>|±–−Δ†‡§¶‖") & set(outside)
    assert "~" not in outside.replace("~\\cite", "")
    stack: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{([a-z]+\*?)\}", bare):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    tabulars = re.findall(r"\\begin\{tabular\}\{([lcr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tabulars) == text.count("\\begin{tabular}") and "&" not in re.sub(
        r"\\begin\{tabular\}.*?\\end\{tabular\}|\\&", "", text, flags=re.DOTALL
    )
    return [[_cells(row, columns) for row in _rows(body)] for columns, body in tabulars]


def _rows(body: str) -> list[str]:
    lines = [
        re.sub(r"\\(toprule|midrule|bottomrule|addlinespace)|\\cmidrule\(lr\)\{\d+-\d+\}", "", line)
        for line in body.split("\n")
    ]
    lines = [line.strip() for line in lines if line.strip()]
    assert all(line.endswith(r"\\") and not line.startswith("[") for line in lines)
    return [line.removesuffix(r"\\") for line in lines]


def _cells(row: str, columns: str) -> list[str]:
    cells = [cell.strip() for cell in re.split(r"(?<!\\)&", row)]
    spans = [int(found[1]) if (found := re.match(r"\\multicolumn\{(\d+)\}", cell)) else 1 for cell in cells]
    assert sum(spans) == len(columns), row
    return cells


class TestLatex:
    def test_base_to_new_has_the_twelve_panels_of_the_papers(self) -> None:
        text = shown(twelve(), format="latex")
        panels = parse_latex(text)
        assert len(panels) == 12 and text.count(r"\begin{minipage}") == 12
        names = re.findall(r"\\textbf\{\((\w)\) (.*?)\}\\\\", text)
        assert [name.replace(r"\_", "_") for _, name in names] == ["Average over 11 datasets", *TITLES.values()]
        assert [letter for letter, _ in names] == list("abcdefghijkl")
        assert {tuple(panel[0]) for panel in panels} == {("", "Base", "New", "H")}
        assert {tuple(row[0] for row in panel[1:]) for panel in panels} == {("CoOp", "MaPLe", "VPT")}
        # coop: base 71, 72, 73, new 60 to 70 over the datasets; H of the averages 2 * 72 * 65 / 137
        assert panels[0][1][1:] == [r"72.0{\tiny$\pm$0.8}", r"65.0{\tiny$\pm$0.0}", r"68.3{\tiny$\pm$0.4}"]
        assert panels[0][3][1] == r"\textbf{78.0{\tiny$\pm$0.8}}"
        assert panels[0][2][1] == r"\underline{75.0{\tiny$\pm$0.8}}"
        assert text.count(r"\hfill") == 6 and "the mean of per-dataset" not in text
        assert "n = 3 seeds." in text

    def test_a_transfer_table_has_one_row_per_method_under_rotated_names(self) -> None:
        results = [transfer(TARGETS, method, seed, 50) for method in ("coop", "maple") for seed in (1, 2)]
        text = shown(results, format="latex", columns="two")
        (table,) = parse_latex(text)
        assert r"\begin{table*}" in text and "Trained on ImageNet." in text
        titles = registry.titles("datasets", TARGETS).values()
        rotated = [f"\\rotatebox{{90}}{{{name}}}" for name in ("source", *titles, "average")]
        assert table[0] == ["method", *rotated]
        assert [row[0] for row in table[1:]] == ["CoOp", "MaPLe"]
        assert table[1][1:3] == [r"71.0{\tiny$\pm$0.0}", r"50.0{\tiny$\pm$0.0}"]

    def test_several_sources_stay_apart(self) -> None:
        results = [transfer(TARGETS, "coop", 1, 50), transfer(TARGETS[:3], "coop", 1, 50, source="food101")]
        (table,) = parse_latex(shown(results, format="latex", columns="two"))
        names = [row[0] for row in table[1:]]
        assert names == [
            r"\multicolumn{13}{l}{\textit{Food101}}",
            "CoOp",
            r"\multicolumn{13}{l}{\textit{ImageNet}}",
            "CoOp",
        ]

    def test_the_plain_layout_is_one_tabular_with_every_line(self) -> None:
        (table,) = parse_latex(shown(twelve(), format="latex", plain=True))
        assert table[0] == ["dataset", "method", "selection", "text prior", "base", "new", "H", "n"]
        assert len(table) == 1 + 3 * 13

    @pytest.mark.parametrize("plain", [True, False])
    def test_odd_names_do_no_harm(self, plain: bool) -> None:
        results = [base2new(80, 60, dataset, HOSTILE, seed) for seed in (1, 2) for dataset in (HOSTILE, "b")]
        tables = build_tables(results, layout_of("base2new"), notes={"clip11": "100% & x_1"})
        text = show(tables, View(format="latex", plain=plain))
        assert parse_latex(text) and r"100\% \& x\_1" in text
        assert parse_latex(shown(results, format="latex", plain=plain, sort="new"))

    def test_methods_are_cited_with_keys_that_the_bibliography_has(self, tmp_path: Path) -> None:
        for result in twelve(("coop", "maple", "mine")):
            write_result(tmp_path, result)
        call = ["table", "--results", str(tmp_path), "--format", "latex", "--cite", "--bib", str(tmp_path / "x.bib")]
        assert main.main(call) == 0
        bib = (tmp_path / "x.bib").read_text(encoding="utf-8")
        assert set(re.findall(r"^@\w+\{(\w+),$", bib, re.MULTILINE)) == {"zhou2022coop", "khattak2023maple"}
        assert "promptbench" not in bib and bib.count("{") == bib.count("}")

    @pytest.mark.parametrize("plain", [True, False])
    def test_tests_against_one_row_are_a_float_of_their_own(self, plain: bool) -> None:
        text = shown(twelve(), format="latex", plain=plain, test="coop")
        tested = parse_latex(text)[-1]
        assert tested[0][:4] == ["compared", "method", "datasets", r"mean $\Delta$"]
        # eleven differences of one sign: 2/2^11 = 0.00098, twice that for two rows
        assert [row[1:3] + row[4:7] for row in tested[1:]] == [
            [method, "11", "11/0/0", "0.0010", "0.0020"] for method in ("MaPLe", "VPT")
        ]
        assert (
            r"\caption{From base to new classes on clip11: " in text
            and "seeds 1, 2, 3: each row against CoOp.}" in text
        )
        assert r"2/2\textasciicircum{}11 = 0.0010, corrected for 2 rows 0.0020." in text

    def test_a_method_without_a_paper_is_not_cited(self) -> None:
        text = shown(twelve(("coop", "mine")), format="latex", cite=True)
        rows = [row[0] for row in parse_latex(text)[0][1:]]
        assert rows == [r"CoOp~\cite{zhou2022coop}", "mine"]
        tables = tables_of(twelve(("coop", "mine")), [], (), (), View())
        assert citations(tables) == {"coop": "zhou2022coop"}

    def test_the_parser_notices_what_tex_would_not_take(self) -> None:
        good = shown(twelve(), format="latex").partition("\n")[2]
        for broken in (
            good.replace(r"\end{minipage}", "", 1),
            good.replace(" & Base", " Base", 1),
            good.replace("}", "", 1),
            good.replace("Base", "Base_1", 1),
            good.replace(r"\toprule", r"\topprule", 1),
        ):
            with pytest.raises((AssertionError, IndexError)):
                parse_latex(broken)


class Page(HTMLParser):
    """Cells by row, the tags that are open, and what stands outside of tables."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.titles: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]
        assert not {name for name, _ in attrs} - {"title", "scope", "class", "lang", "charset"}
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def parse_html(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    return page


class TestHtml:
    def test_a_page_holds_the_figures_and_their_runs(self) -> None:
        results = twelve()
        page = parse_html(shown(results, format="html"))
        assert page.rows[0] == ["dataset", "method", "selection", "text prior", "base", "new", "H", "n"]
        assert page.rows[1][:4] == ["ImageNet", "CoOp", "unknown", "unknown"]
        assert page.rows[1][4:] == ["72.0 ± 0.8", "60.0 ± 0.0", "65.5 ± 0.3", "3"]
        assert page.tags >= {"strong", "u"} and not page.tags & {"script", "link", "img"}
        first = [r.name for r in results if (r.spec.dataset, r.spec.method) == ("imagenet", "coop")]
        assert page.titles[0] == "; ".join(["seed 1: 71.0", "seed 2: 72.0", "seed 3: 73.0", *first])

    def test_tests_against_one_row_are_a_table_of_their_own(self) -> None:
        page = parse_html(shown(twelve(), format="html", test="coop"))
        start = page.rows.index(next(row for row in page.rows if row[0] == "compared"))
        assert [row[1:3] + row[4:7] for row in page.rows[start + 1 :]] == [
            [method, "11", "11/0/0", "0.0010", "0.0020"] for method in ("MaPLe", "VPT")
        ]
        assert len({len(row) for row in page.rows[start:]}) == 1

    def test_all_text_is_escaped(self) -> None:
        hostile = '<script>alert("1")</script>&'
        results = [base2new(80, 60, hostile, hostile, seed) for seed in (1, 2)]
        text = show(build_tables(results, layout_of("base2new"), notes={"clip11": "<b>"}), View(format="html"))
        page = parse_html(text)
        assert page.rows[1][:2] == [hostile, hostile] and not page.tags & {"script", "b"}


class TestJson:
    def test_every_figure_leads_to_the_runs_behind_it(self) -> None:
        results = twelve()
        by_name = {result.name: result for result in results}
        document = json.loads(shown(results, format="json"))
        (table,) = document["tables"]
        assert document["promptbench_tables"] == 1 and set(table["runs"]) == set(by_name)
        cell = table["lines"][0]["cells"]["base/accuracy"]
        assert (cell["mean"], cell["n"], cell["ddof"]) == (72.0, 3, 0)
        assert cell["std"] == pytest.approx((2 / 3) ** 0.5)
        assert [seed["value"] for seed in cell["seeds"]] == [71.0, 72.0, 73.0]
        assert [by_name[name].metrics["base/accuracy"] for name in cell["runs"]] == [71.0, 72.0, 73.0]
        for line in table["lines"]:
            for cell in line["cells"].values():
                assert len(cell["runs"]) == (3 if line["kind"] == "block" else 33)
        average = next(line for line in table["lines"] if line["kind"] == "average")["cells"]["h"]
        assert average["mean"] == pytest.approx(harmonic_mean(72, 65))
        assert table["runs"][cell["runs"][0]]["commit"] == "c0ffee"

    def test_runs_along_the_columns_are_told_apart(self) -> None:
        results = [
            make("dtd", "coop", 1, {"test/accuracy": 50.0 + k}, protocol="few_shot", shots=k) for k in (1, 2, 16)
        ]
        (table,) = json.loads(shown(results, format="json"))["tables"]
        cells = table["lines"][0]["cells"]
        assert {key: cell["runs"] for key, cell in cells.items()} == {
            f"{result.spec.shots}/accuracy": [result.name] for result in results
        }

    def test_unequal_seeds_have_no_single_n(self) -> None:
        results = [base2new(80, 60, "dtd", "coop", 1), base2new(82, 60, "dtd", "coop", 2)]
        results.append(base2new(70, 50, "ucf101", "coop", 1))
        lines = json.loads(shown(results, format="json"))["tables"][0]["lines"]
        cell = next(line for line in lines if line["kind"] == "average")["cells"]["base/accuracy"]
        assert (cell["mean"], cell["std"], cell["n"]) == (75.5, None, None) and len(cell["runs"]) == 3

    def test_a_gap_says_why(self) -> None:
        result = Result(
            spec=base2new(1, 1, "dtd", "coop").spec,
            conditions={},
            metrics={"base/accuracy": 80.0},
            notes={"new/accuracy": "cannot"},
            versions={},
            commit="",
            created="",
        )
        cell = json.loads(shown([result], format="json"))["tables"][0]["lines"][0]["cells"]["new/accuracy"]
        assert (cell["mean"], cell["gap"], cell["reason"], cell["runs"]) == (None, "–", "cannot", [])


def test_long_csv_has_every_metric_of_every_run() -> None:
    results = [*twelve(("coop",)), transfer(TARGETS, "maple", 4, 50.5, train_seed=5)]
    lines = list(csv.DictReader(io.StringIO(shown(results, format="csv-long"))))
    assert {(line["run"], line["metric"], float(line["value"])) for line in lines} == {
        (result.name, metric, value) for result in results for metric, value in result.metrics.items()
    }
    last = lines[-1]
    assert (last["protocol"], last["dataset"], last["method"]) == ("cross_dataset", "imagenet", "maple")
    assert (last["data_seed"], last["train_seed"], last["shots"], last["origin"]) == ("4", "5", "16", "authors")


def test_several_protocols_share_one_csv_header() -> None:
    results = [*twelve(("coop",)), transfer(TARGETS, "coop", 1, 50)]
    lines = list(csv.DictReader(io.StringIO(shown(results, format="csv"))))
    assert {line["protocol"] for line in lines} == {"base2new", "cross_dataset"}
    assert lines[-1]["dtd/accuracy"] == "57.0" and lines[-1]["h"] == ""


def test_the_command_offers_every_format() -> None:
    from promptbench.cli import flags

    assert set(flags.FORMATS) == set(FORMATS)


@pytest.mark.parametrize("fmt", sorted(FORMATS))
def test_a_format_does_not_depend_on_the_order_of_results(fmt: str) -> None:
    results = twelve()
    assert shown(results, format=fmt) == shown(results[::-1], format=fmt)
