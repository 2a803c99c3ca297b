"""Tables as text: figures, marks, the best and the second best, what is said below; Markdown and HTML made of them.

Markdown has aligned columns and reads in a terminal as well. HTML is one page that needs nothing else, all text
escaped; a figure's tooltip holds its seeds and runs.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import NamedTuple

from promptbench.metrics.statistics import LEVEL, Interval, paired_interval
from promptbench.protocol import Column, digits_of
from promptbench.recipe import Recipe
from promptbench.results.knowledge import SELECTIONS, TEXT_PRIORS
from promptbench.results.result import Result
from promptbench.results.spec import Spec
from promptbench.show.tables.table import Cell, Comparison, Line, Seed, Table, Test

MARKS = {
    "transferred": ("†", "recipe transferred from another protocol or backbone"),
    "ours": ("‡", "recipe chosen here, not by the method's authors"),
}
RECONSTRUCTED = (
    "§",
    "reconstructed without its authors' code; compare with the paper before citing, and with no published figure",
)
SAMPLER = ("¶", "few-shot images drawn by the sampler {}, not by CoOp's; ranked only among rows of that sampler")
DENSE = ("‖", "dense features as CLIP's frozen value path gives them; not the authors' score")
OUTLIER = (
    "!",
    "a seed lies farther from the median than 3 sigma (1.4826 MAD) and 3 points, 10 among three or four seeds",
)
TESTED = "mean Δ", "won/tied/lost", "p", "p (Holm)", "seeds", "Δ over seeds [95 %]", "seeds for 1 point"
PUBLISHED = "published: a paper's figures, not measured here; in no average, and never ranked with ours."
DENSE_SCORES = ("GL-MCM", "L-MCM")  # blocks whose scores read patches

EMPHASIS = (
    "Bold: the best, and what the paired test does not separate from it, the 95 % interval by Student's t of the "
    "differences over common seeds holding 0; underlined: the second best where one is best alone. Nothing is bold "
    "where no row is separated from the best, or with fewer than two common seeds."
)
RECIPE = ("epochs", "lr", "batch", "optimizer", "weight decay", "origin")
"""What an appendix says of a training, besides how it was chosen."""

NAMES = 2  # columns on the left that hold names, in Markdown
WORDS = ("selection", "text prior")  # columns behind the names, which say what a row knew
MANY = 4  # columns that are not named one by one
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
FILES_NAMED = 8  # in a comment; of more, their number and a digest
RUNS_SHOWN = 3  # in a tooltip; the JSON format names all


@dataclass(frozen=True)
class Style:
    r"""What a reader may choose about a format.

    Attributes:
        plain: In LaTeX, one tabular as in other formats, instead of the layout that papers have.
        cite: BibTeX key by method, for `\cite` in LaTeX.
        columns: Of the page that LaTeX is for, `one` or `two`.
        appendix: Whether the recipe of every row is told.
        trace: Whether a comment in Markdown names the result files.
    """

    plain: bool = False
    cite: Mapping[str, str] = field(default_factory=dict)
    columns: str = "one"
    appendix: bool = False
    trace: bool = False


class Markup(NamedTuple):
    """How a format writes text and emphasis."""

    escape: Callable[[str], str]
    emphasis: tuple[str, str]  # of the best and of the second best


@dataclass(frozen=True)
class Texts:
    """A table as escaped text: head, the parts of it with their rows of cells, and remarks."""

    head: list[str]
    body: list[list[list[str]]]
    remarks: list[str]


def texts(table: Table, markup: Markup, suffix: Callable[[Line], str] = lambda line: "") -> Texts:
    """The table as text.

    Args:
        table: Any.
        markup: The format's.
        suffix: What follows the name of a line, as it stands in the output.
    """
    footnotes: dict[str, int] = {}
    competes = competition(table)
    body = []
    for lines in table.parts:
        rivals = [line for line in lines if competes(line)]
        ranks = {column.key: places_of(rivals, column) for column in table.columns}
        rows = []
        for line in lines:
            cells = [markup.escape(word) for word in (str(line.selection), line.text_prior)]
            for column in table.columns:
                cell = line.cells.get(column.key)
                text = markup.escape(figure(line, cell, footnotes, column.digits))
                place = ranks[column.key].get(id(line))
                cells.append(text if place is None else markup.emphasis[place].format(text))
            group = markup.escape(table.title(line.group)) if line is lines[0] else ""
            rows.append([group, markup.escape(line.label + marks(line)) + suffix(line), *cells, markup.escape(line.n)])
        body.append(rows)
    titles = [column.title for column in table.columns]
    head = [table.blocks_are, "method", *WORDS, *titles, "seed" if table.per_seed else "n"]
    said = [*(f"[{number}] {reason}" for reason, number in footnotes.items()), *remarks(table)]
    return Texts([markup.escape(title) for title in head], body, [markup.escape(remark) for remark in said])


def remarks(table: Table) -> list[str]:
    """What the marks of the table mean, and what else has to be said of it."""
    used = set(chain.from_iterable(map(marks, table.lines)))
    samplers = sorted(set(chain.from_iterable(line.samplers for line in table.lines)) - {Spec.sampler})
    sampler = SAMPLER[0], SAMPLER[1].format(", ".join(samplers))
    legend = (*MARKS.values(), RECONSTRUCTED, sampler, DENSE)
    said = [f"{mark} {meaning}." for mark, meaning in legend if mark in used]
    outlying = []
    for line, column in product(table.lines, table.columns):
        cell = line.cells.get(column.key, Cell())
        if cell.outliers:
            seeds = [f"seed {seeds_text([seed], '')} {rounded(cell.values[seed])}" for seed in cell.outliers]
            outlying.append(f"{line.label} on {table.title(line.group)}, {column.title}: {', '.join(seeds)}")
    if outlying:
        said.append(f"{OUTLIER[0]} {OUTLIER[1]}: {'; '.join(outlying)}.")
    sources: dict[str, dict[str, None]] = {}
    for line in table.lines:
        for published in line.published.values():
            sources.setdefault(published.source, {})[line.row.method] = None
    if sources:
        read = "; ".join(f"{', '.join(names)}: {source}" for source, names in sources.items())
        said.append(f"{PUBLISHED} {read}.")
    if table.ranked:
        said.append(EMPHASIS)
    return [*said, *legends(table), *table.remarks]


def legends(table: Table) -> list[str]:
    """What the words of a table mean, as far as they occur, and unit, range and direction of its figures."""
    choices = {line.selection for line in table.lines}
    kinds = [
        f"{kind} = {meaning}" for kind, meaning in SELECTIONS.items() if kind in {choice.kind for choice in choices}
    ]
    shown = " ".join(map(str, choices))
    marks = ["? where nobody says"] * ("?" in shown) + ["each: anew for every dataset"] * ("each" in shown)
    trials = f", and how many were tried{' (' * bool(marks)}{', '.join(marks)}{')' * bool(marks)}" * ("(" in shown)
    told = {line.text_prior for line in table.lines}
    priors = [f"{prior} = {meaning}" for prior, meaning in TEXT_PRIORS.items() if prior in told]
    return [
        f"selection: on which images settings were chosen{trials}: {'; '.join(kinds)}.",
        f"text prior: words told besides class names (rows are ranked and judged within one): {'; '.join(priors)}.",
        column_legend(table.columns),
        f"shots: images of each class that are trained on{'' if table.per_seed else '; n: number of seeds'}.",
    ]


def column_legend(columns: Sequence[Column]) -> str:
    """Unit, range and direction of the figures, those of many columns without their names."""
    alike: dict[str, list[str]] = {}
    for column in columns:
        said = ", ".join(filter(None, (column.unit, column.range, column.direction)))
        alike.setdefault(said, []).append(column.title)
    parts = []
    for said, titles in alike.items():
        many = len(titles) > MANY and len(titles) == max(map(len, alike.values()))
        names = ("other figures" if len(alike) > 1 else "figures") if many else ", ".join(titles)
        parts.append((many, f"{names}: {said}"))
    return f"{'; '.join(text for _, text in sorted(parts, key=lambda part: part[0]))}."


def marks(line: Line) -> str:
    """The marks of remarks behind a line's name; a difference has none of its own."""
    if line.versus:
        return ""
    found = [mark for origin, (mark, _) in MARKS.items() if origin in line.origins]
    found += [RECONSTRUCTED[0]] if line.row.reconstructed else []
    found += [SAMPLER[0]] if line.samplers - {Spec.sampler} else []
    dense = line.group in DENSE_SCORES and any(r.conditions.get("dense_scores") is False for r in line.results)
    return "".join([*found, DENSE[0]] if dense else found)


def competition(table: Table) -> Callable[[Line], bool]:
    """Which lines are ranked: of a suite that is, no reconstruction, no paper, and training images drawn as usual."""
    usual = any(Spec.sampler in line.samplers for line in table.lines)

    def competes(line: Line) -> bool:
        apart = line.row.reconstructed or line.published or line.versus or (usual and line.samplers - {Spec.sampler})
        return table.ranked and not apart

    return competes


def places_of(rivals: Sequence[Line], column: Column) -> dict[int, int]:
    """Which lines are the best in a column, 0, and which is the second best, 1, by their `id`.

    Best are the best figure and all that the paired test does not separate from it; where it separates none, no line
    is. There is a second best where one line alone is best, among three or more.
    """
    cells = {id(line): cell for line in rivals if (cell := line.cells.get(column.key)) and cell.mean is not None}
    if not column.ranked or not cells:
        return {}
    order = sorted(cells, key=lambda line: cells[line].mean or 0.0, reverse=not column.lower)
    first = cells[order[0]]
    best = [line for line in order if line == order[0] or not _separated(first, cells[line], column)]
    if len(best) == len(order):
        return {}
    second = {order[1]: 1} if len(best) == 1 and len(order) > 2 else {}
    return dict.fromkeys(best, 0) | second


def _separated(one: Cell, other: Cell, column: Column) -> bool:
    """Whether the interval of the differences over common seeds leaves 0 out; what reads the same is never so."""
    by_seed = [value - other.values[seed] for seed, value in one.values.items() if seed in other.values]
    same = rounded(one.mean or 0.0, column.digits) == rounded(other.mean or 0.0, column.digits)
    if same or len(by_seed) < 2:
        return False
    found = paired_interval(by_seed)
    return not found.low <= 0 <= found.high


def figure(line: Line, cell: Cell | None, footnotes: dict[str, int], digits: int = 1) -> str:
    """The text of a cell; a reason that is new gets the next number."""
    if cell is None:
        return ""
    if cell.mean is None:
        return f"{cell.gap} [{footnotes.setdefault(cell.reason, len(footnotes) + 1)}]" if cell.reason else cell.gap
    mean = signed(cell.mean, digits) if line.versus else rounded(cell.mean, digits)
    spread = f" ± {rounded(cell.std, digits)}" if cell.std is not None else ""
    return mean + spread + OUTLIER[0] * bool(cell.outliers)


def heading(table: Table) -> str:
    """The title of a table: protocol, suite, backbone, shots and seeds."""
    word = "shot" if table.shots == (1,) else "shots"
    seeds = f"{'seed' if len(table.seeds) == 1 else 'seeds'} {seeds_text(table.seeds, ', ')}"
    subject = f", {table.subject}" if table.subject else ""
    about = f"{table.protocol} on {table.suite}{subject}, backbone {table.backbone}"
    return f"{about}, {shots_text(table.shots)} {word}, {seeds}"


def comparison_texts(table: Table, markup: Markup) -> Texts:
    """The papers' figures beside ours, and what their verdicts mean."""
    footnotes: dict[str, int] = {}
    rows = [[*map(markup.escape, _compared(table, item, footnotes))] for item in table.comparisons]
    head = [table.blocks_are, "method", "figure", "paper", "ours", "n", "gap", "verdict", "paper's line"]
    said = [f"[{number}] {reason}" for reason, number in footnotes.items()]
    said.append(
        "Gap: ours minus the paper's, with the 90 % confidence interval of the difference. Reproduced: the interval "
        "lies within 0.2 points for zero-shot, 0.5 for averages and ImageNet, 1.5 for other datasets; differs: outside."
    )
    return Texts([*map(markup.escape, head)], [rows], [*map(markup.escape, said)])


def recipe_of(line: Line) -> dict[str, list[str]]:
    """What a line was trained with, each of `RECIPE` with all values that its runs have; none where nothing is."""
    found: dict[str, dict[str, None]] = {name: {} for name in RECIPE}
    for result in line.own:
        recipe = {"optimizer": Recipe.optimizer, **result.spec.recipe}
        for name in RECIPE if result.spec.recipe else ():
            value = recipe.get(name.replace(" ", "_"), "?")
            if name == "epochs" and value == 0:
                value = f"{recipe.get('steps', '?')} steps"
            found[name][value if isinstance(value, str) else f"{value:g}"] = None
    return {name: list(values) for name, values in found.items()}


def settings_said(line: Line) -> str:
    """The method's settings of a line, those that differ between its runs with all their values."""
    found: dict[str, dict[str, None]] = {}
    for result in line.own:
        for name, value in result.spec.config.items():
            found.setdefault(name, {})["none" if value is None else str(value) or "''"] = None
    return ", ".join(f"{name}={' / '.join(values)}" for name, values in found.items())


def trained_lines(table: Table) -> list[Line]:
    """A line of each row that was measured here, over most of its runs."""
    found: dict[int, Line] = {}
    for line in table.lines:
        if not (line.published or line.versus):
            found[id(line.row)] = replace(line, results=line.row.results)
    return [found[id(row)] for row in table.rows if id(row) in found]


def appendix_texts(table: Table, markup: Markup) -> Texts:
    """The recipe of every row, how it was chosen, and the method's settings."""
    rows, said = [], []
    for line in trained_lines(table):
        recipe = [" / ".join(values) or "–" for values in recipe_of(line).values()]
        choice = line.selection
        words = [choice.kind + " (anew for every dataset)" * choice.by_dataset, str(choice.trials or "?")]
        if choice.kind in ("none", "unknown"):
            words[1] = "–"
        rows.append([line.label + marks(line), *recipe, *words, line.text_prior])
        if settings := settings_said(line):
            said.append(f"{line.label}: {settings}.")
    said = [f"Settings of {line}" for line in said]
    said.append(
        "epochs: passes over the training images, or steps; lr: the largest learning rate; batch: images of a step; "
        "several values: of different datasets or shots. origin: paper, authors (their code), transferred (theirs, for "
        "another protocol or backbone), ours. selection: on which images settings were chosen; trials: how many "
        "settings were tried, ? where nobody says."
    )
    head = ["method", *RECIPE, "selection", "trials", "text prior"]
    escaped = [[*map(markup.escape, row)] for row in rows]
    return Texts([*map(markup.escape, head)], [escaped], [*map(markup.escape, said)])


def appendix_heading(table: Table) -> str:
    """The title of the recipes of a table."""
    return f"Recipes: {heading(table)}"


def test_texts(table: Table, markup: Markup) -> Texts:
    """One row against all others, and what the columns mean."""
    footnotes: dict[str, int] = {}
    body = []
    for test in table.tests:
        cells = [_tested(test, place, footnotes) for place in range(len(test.rows))]
        body.append([[*map(markup.escape, row)] for row in cells])
    said = [f"[{number}] {reason}" for reason, number in footnotes.items()]
    said += _about_tests(table.tests)
    head = ["compared", "method", "datasets", *TESTED]
    return Texts([*map(markup.escape, head)], body, [*map(markup.escape, said)])


def test_heading(table: Table) -> str:
    """The title of the tests of a table."""
    return f"each row against {table.tests[0].against}"


def _tested(test: Test, place: int, footnotes: dict[str, int]) -> list[str]:
    """The cells of one row; a reason that is new gets the next number."""
    one = test.rows[place]
    names = ["" if place else test.title, one.line.label]
    over_seeds = [
        str(one.seeds),
        interval(one.interval) if one.interval else "–",
        "–" if one.needed is None else str(one.needed),
    ]
    if one.difference is None or one.p is None or one.holm is None:
        number = footnotes.setdefault(one.why, len(footnotes) + 1)
        return [*names, f"– [{number}]", "–", "–", "–", "–", *over_seeds]
    counts = f"{one.won}/{one.tied}/{one.lost}"
    tested = [str(len(test.datasets)), signed(one.difference), counts, probability(one.p), probability(one.holm)]
    return [*names, *tested, *over_seeds]


def _about_tests(tests: Sequence[Test]) -> Iterator[str]:
    """What the columns of tests against one row mean, and the smallest p that there can be."""
    better = "less" if tests[0].column.lower else "more"
    yield (
        f"mean Δ: the row's figure minus that of {tests[0].against}, averaged over seeds, then over datasets; in "
        f"points, from −100 to 100, {better} is better. Won, tied and lost count datasets."
    )
    yield (
        "p: exact two-sided Wilcoxon signed-rank test, datasets are the pairs, zero differences left out; from 0 to 1, "
        "less is stronger evidence. p (Holm): corrected for the rows tested"
        f"{', block by block' if len(tests) > 1 else ''}."
    )
    yield from dict.fromkeys(map(_smallest, tests))
    yield (
        "Δ over seeds: the difference of what sums both rows up, the average of the table, seed by seed: its mean and "
        "interval by Student's t (ddof 1), in points. Seeds for 1 point: ceil((2.8 s / 1 point)^2), s the standard "
        "deviation of those differences; less is better."
    )


def _smallest(test: Test) -> str:
    """The smallest p that a test can give, before and after Holm's correction."""
    n, least = len(test.datasets), min(1.0, test.family * test.smallest)
    sets, rows = f"{n} dataset{'s' * (n != 1)}", f"{test.family} row{'s' * (test.family != 1)}"
    said = f"The smallest p that {sets} can give is 2/2^{n} = {probability(test.smallest)}"
    if not test.family:
        return f"{said}."
    none = f": none can fall below {LEVEL}; with fewer rows or more datasets it could" if least >= LEVEL else ""
    return f"{said}, corrected for {rows} {probability(least)}{none}."


def interval(found: Interval) -> str:
    """A mean with its interval, with the minus signs of tables."""
    return str(found).replace("-", "−")


def probability(p: float) -> str:
    """A p with four decimals."""
    return f"{p:.4f}" if p >= 0.00005 else "< 0.0001"


def shots_text(shots: Sequence[int | None]) -> str:
    """The numbers of shots, separated by commas; None is all images."""
    return ", ".join("all" if number is None else str(number) for number in shots)


def seeds_text(seeds: Collection[Seed], between: str) -> str:
    """The seeds; data seed and training seed where they differ."""
    return between.join(str(data) if data == train else f"{data}/{train}" for data, train in seeds)


def rounded(value: float, digits: int = 1) -> str:
    """A figure as tables show it, with one decimal if nothing else is said."""
    return f"{value:,.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign."""
    return f"{value:+,.{digits}f}".replace("-", "−")


def clean(text: str) -> str:
    """The text on one line, without anything that a terminal would act on."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _compared(table: Table, item: Comparison, footnotes: dict[str, int]) -> list[str]:
    """The cells of one figure beside a paper's; a reason that is new gets the next number."""
    cell = item.line.cells[item.column.key]
    gap = "–" if item.gap is None else signed(item.gap)
    if item.interval:
        gap += f" ({signed(item.interval[0])} to {signed(item.interval[1])})"
    number = f" [{footnotes.setdefault(item.why, len(footnotes) + 1)}]" if item.why else ""
    ours = figure(item.line, cell, {}).rstrip(OUTLIER[0])
    names = [table.title(item.line.group), item.line.label, item.column.title]
    return [*names, item.paper, ours, item.line.n, gap, item.verdict + number, item.origin]


MARKDOWN = Markup(lambda text: clean(text).replace("|", r"\|"), ("**{}**", "_{}_"))
HTML = Markup(lambda text: html.escape(clean(text)), ("<strong>{}</strong>", "<u>{}</u>"))


def render_markdown(tables: Sequence[Table], style: Style) -> str:
    """Markdown: one section per table, and one for the papers' figures beside it."""
    return "\n".join(_markdown(table, style) for table in tables)


def _markdown(table: Table, style: Style) -> str:
    parts = laid_out(clean(heading(table)), texts(table, MARKDOWN), NAMES + len(WORDS))
    if table.comparisons:
        parts += ["", *laid_out("beside published figures", comparison_texts(table, MARKDOWN))]
    if table.tests:
        parts += ["", *laid_out(test_heading(table), test_texts(table, MARKDOWN))]
    if style.appendix:
        parts += ["", *laid_out(clean(appendix_heading(table)), appendix_texts(table, MARKDOWN), 1)]
    if style.trace:
        parts += ["", f"<!-- {files_behind(table.results)} -->"]
    return "\n".join(parts) + "\n"


def files_behind(results: Mapping[str, Result]) -> str:
    """The result files of a table, below the folder of results: their paths, or of many a count and a digest."""
    paths = [f"results/{name}.json" for name in sorted(results)]
    if len(paths) <= FILES_NAMED:
        return f"made of {', '.join(paths)}"
    found = hashlib.sha256()
    for name in sorted(results):
        found.update(json.dumps([name, results[name].metrics], sort_keys=True).encode())
    folders = sorted({path.split("/")[1] for path in paths})
    where = ", ".join(f"results/{folder}/*/*.json" for folder in folders)
    return f"made of {len(paths)} files in {where}; sha256 of their sorted names and metrics {found.hexdigest()[:16]}"


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
    return PAGE.format(html_sections(tables, appendix=style.appendix))


def html_sections(tables: Sequence[Table], *, appendix: bool = False) -> str:
    """HTML of the tables without a page around them, and with `appendix` of the recipes of their rows."""
    return "\n".join(_html(table, appendix) for table in tables)


def _html(table: Table, appendix: bool) -> str:
    tips = [[[_tip(line, column.key) for column in table.columns] for line in lines] for lines in table.parts]
    parts = [_table(heading(table), texts(table, HTML), tips, NAMES + len(WORDS))]
    if table.comparisons:
        parts.append(_table("Beside published figures", comparison_texts(table, HTML), []))
    if table.tests:
        parts.append(_table(f"E{test_heading(table)[1:]}", test_texts(table, HTML), []))
    if appendix:
        parts.append(_table(appendix_heading(table), appendix_texts(table, HTML), [], 1))
    return "\n".join(parts)


def _table(title: str, text: Texts, tips: Sequence[Sequence[Sequence[str]]], names: int = NAMES) -> str:
    head = "".join(f"<th>{name}</th>" for name in text.head)
    lines = [f"<table>\n<caption>{HTML.escape(title)}</caption>", f"<thead><tr>{head}</tr></thead>"]
    for place, group in enumerate(text.body):
        lines.append("<tbody>")
        for number, row in enumerate(group):
            of_row = tips[place][number] if tips else [""] * (len(row) - names)
            words = "".join(f'<td class="name">{word}</td>' for word in row[1:names])
            cells = [f"<td{tip}>{cell}</td>" for cell, tip in zip(row[names:], [*of_row, ""], strict=False)]
            lines.append(f'<tr><th scope="row">{row[0]}</th>{words}{"".join(cells)}</tr>')
        lines.append("</tbody>")
    return "\n".join([*lines, "</table>", *(f"<p>{remark}</p>" for remark in text.remarks)])


def _tip(line: Line, key: str) -> str:
    """The attribute with the figure of every seed and the first runs behind it."""
    cell = line.cells.get(key, Cell())
    digits = digits_of(key)
    values = [f"seed {seeds_text([seed], '')}: {rounded(value, digits)}" for seed, value in cell.values.items()]
    more = [f"and {len(cell.runs) - RUNS_SHOWN} more"] * (len(cell.runs) > RUNS_SHOWN)
    said = [*values, *cell.runs[:RUNS_SHOWN], *more]
    return f' title="{HTML.escape("; ".join(said))}"' if said else ""
