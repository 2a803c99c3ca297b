"""The page: tables that read as they are, plots of them, a script that makes them sortable, and the facts it shows.

Nothing on it comes from elsewhere, and a policy in its head forbids that: of scripts and styles it allows the page's
own by their digests, of pictures those that the page holds. The script writes what is stored as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from pathlib import Path

from promptbench import __version__, registry
from promptbench.results.knowledge import TEXT_PRIORS
from promptbench.results.result import Result
from promptbench.results.spec import Spec
from promptbench.show.plots.source import overall
from promptbench.show.report.facts import pooled
from promptbench.show.report.pictures import Picture
from promptbench.show.tables.formats.records import render_json
from promptbench.show.tables.formats.texts import (
    HTML,
    NAMES,
    OUTLIER,
    WORDS,
    Style,
    Texts,
    clean,
    column_legend,
    comparison_texts,
    legends,
    marks,
    remarks,
    seeds_text,
    shots_text,
    texts,
)
from promptbench.show.tables.table import Line, Table

MADE_BY = '<meta name="generator" content="promptbench report'
TITLE = "promptbench report"
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{made_by} {version}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">{summary}</p>
{remarks}<noscript><p>Without JavaScript the tables are whole, but cannot be sorted, filtered or opened.</p></noscript>
{contents}</header>
<div id="tools" role="search" hidden>
<label>Filter by {filtered} <input id="filter" type="search" autocomplete="off" spellcheck="false"></label>
<button type="button" id="clear" hidden>Clear</button>
<label><input id="together" type="checkbox" checked> sort within each {filtered_block}</label>
<output id="count"></output>
</div>
<main>
<div id="none" hidden>
<p>Nothing on this page matches <q id="sought"></q>. A line is shown that has every word of the filter in its names.</p>
<button type="button" id="all">Clear the filter and show everything</button>
</div>
{sections}
</main>
<dialog id="panel" aria-labelledby="panel-title"></dialog>
<script id="data" type="application/json">{data}</script>
<script>{script}</script>
</body>
</html>
"""
USE = "Open a figure for the runs behind it and the command that makes them again: click, or arrow keys and Enter."
MANY_COMMITS = 5  # beyond, their number is said
HINT = "Wider than the screen: scroll it sideways."
FIRST = ("average", "mean", "block")  # the kinds of lines, what sums up before what it sums up


def render(
    tables: Sequence[Table],
    *,
    title: str = "",
    pictures: Mapping[int, Sequence[Picture]] | None = None,
    remark: str = "",
    path: Path | None = None,
) -> str:
    """The report of some tables as one HTML page.

    Args:
        tables: Each is a section.
        title: "" for the usual one.
        pictures: The plots of a section, by its place.
        remark: A sentence for the head, or "".
        path: The file that the page is written to, from where it links to result files; None for no links.
    """
    style, script = _asset("page.css"), _asset("page.js")
    pictures = pictures or {}
    names = _names(tables)
    sections = [overview(tables, names)] if len(tables) > 1 else []
    sections += [_section(place, table, names[place], pictures.get(place, ())) for place, table in enumerate(tables)]
    results: dict[str, Result] = {}
    for table in tables:
        results |= table.results
    blocks = list(dict.fromkeys(table.blocks_are for table in tables))
    return PAGE.format(
        made_by=MADE_BY,
        version=__version__,
        policy=_policy(style, script),
        title=HTML.escape(title or TITLE),
        style=style,
        summary=HTML.escape(_summary([*results.values()])),
        remarks="".join(f"<p>{HTML.escape(said)}</p>\n" for said in (_commits([*results.values()]), remark) if said),
        filtered=HTML.escape(_either(["method", *blocks])),
        filtered_block=HTML.escape(_either(blocks)),
        contents=_contents(names),
        sections="\n".join(sections),
        data=_data(tables, names, [*results.values()], path),
        script=script,
    )


def is_report(path: Path) -> bool:
    """Whether a file is a page that this module made."""
    try:
        with path.open("rb") as file:
            return MADE_BY.encode() in file.read(1000)
    except OSError:
        return False


def _asset(name: str) -> str:
    return resources.files("promptbench.show.report").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What a browser may load and run for the page: its own style and script, and pictures within it."""
    own = {}
    for name, text in (("style", style), ("script", script)):
        own[name] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    allowed = f"style-src 'sha256-{own['style']}'; script-src 'sha256-{own['script']}'; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _data(tables: Sequence[Table], names: Sequence[str], results: Sequence[Result], path: Path | None) -> str:
    """The tables as `--format json` gives them, runs by their place, and what is known of runs, as JSON that ends no
    script element."""
    shown = json.loads(render_json(tables, Style()))["tables"]
    places = {result.name: place for place, result in enumerate(results)}
    for table, name, source in zip(shown, names, tables, strict=True):
        del table["runs"]
        table["name"] = clean(name)
        for line in table["lines"]:
            line["group"] = clean(source.title(line["group"]))
            for cell in line["cells"].values():
                cell["runs"] = [places[run] for run in cell["runs"]]
    document = json.dumps({"tables": shown, **pooled(results, path)}, separators=(",", ":"))
    return document.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def words_of(protocol: str) -> tuple[str, str]:
    """What a protocol is called in words, and what it does: the halves of the first line of its docstring."""
    if protocol not in registry.names("protocols"):
        return protocol, ""
    summary = registry.facts("protocols", protocol).summary
    name, colon, does = summary.partition(": ")
    return (name, does[:1].upper() + does[1:]) if colon else (protocol, summary)


def _names(tables: Sequence[Table]) -> list[str]:
    """What sections are called: protocols in words; suite, backbone and dataset where a name would be there twice."""
    names = [words_of(table.protocol)[0] for table in tables]
    for fact in (lambda table: f"on {table.suite}", lambda table: table.backbone, _trained_on):
        facts: dict[str, set[str]] = {}
        for name, table in zip(names, tables, strict=True):
            facts.setdefault(name, set()).add(fact(table))
        names = [
            f"{name}, {fact(table)}" if len(facts[name]) > 1 else name
            for name, table in zip(names, tables, strict=True)
        ]
    return names


def _trained_on(table: Table) -> str:
    return ", ".join(dict.fromkeys(result.spec.dataset for result in table.results.values()))


def _summary(results: Sequence[Result]) -> str:
    """The opening sentences: what the page compares, in how many runs, made when and by which version."""
    specs = [result.spec for result in results]
    datasets = {spec.dataset for spec in specs}.union(*(spec.evaluated for spec in specs))
    days = sorted({result.created[:10] for result in results} - {""})
    versions = sorted({result.versions.get("promptbench", "") for result in results} - {""})
    said = (
        f"This page compares {_count({spec.method for spec in specs}, 'method')} on {_count(datasets, 'dataset')} in "
    )
    said += f"{_count(specs, 'run')}: {_listed('suite', [spec.suite for spec in specs])}, "
    said += f"{_listed('backbone', [spec.backbone for spec in specs])}, "
    said += _listed("seed", [seeds_text([spec.seeds], "") for spec in specs])
    if days:
        said += f", made {' to '.join(dict.fromkeys([days[0], days[-1]]))}"
    if versions:
        said += f" by promptbench {', '.join(versions)}"
    return f"{said}. {USE}"


def _commits(results: Sequence[Result]) -> str:
    """What the runs were made of; "" where none says it."""
    commits = {result.commit[:10] + result.commit[40:] for result in results} - {""}
    if len(commits) > MANY_COMMITS:
        return f"The runs are of {len(commits)} commits of promptbench."
    return f"The runs are of {_listed('commit', commits)} of promptbench." if commits else ""


def _count(things: Collection[object], word: str) -> str:
    return f"{len(things)} {word}{'s' * (len(things) != 1)}"


def _listed(word: str, names: Iterable[str]) -> str:
    """`seeds 1, 2, 3`, numbers by size."""
    found = sorted(set(names), key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    return f"{word}{'s' * (len(found) > 1)} {', '.join(found)}"


def _either(words: Sequence[str]) -> str:
    *first, last = words or [""]
    return f"{', '.join(first)} or {last}" if first else last


def _contents(names: Sequence[str]) -> str:
    """Links to the sections, where there are several."""
    if len(names) < 2:
        return ""
    links = ['<li><a href="#averages">Averages</a></li>']
    links += [f'<li><a href="#table-{place}">{HTML.escape(name)}</a></li>' for place, name in enumerate(names)]
    return f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>\n'


def overview(tables: Sequence[Table], names: Sequence[str]) -> str:
    """The section that sums up all tables: a line per method, and of each table the column that stands for it.

    Methods are apart by what they were told, as in the tables: their figures compare within one part.
    """
    shown = [_Summed.of(place, table, name) for place, (table, name) in enumerate(zip(tables, names, strict=True))]
    parts: dict[str, dict[str, str]] = {prior: {} for prior in TEXT_PRIORS}
    for one in shown:
        for (prior, label), number in one.lines.items():
            parts[prior].setdefault(label, one.table.lines[number].row.method)
    heads = "".join(one.head for one in shown)
    rows = [
        f'<table class="figures" aria-labelledby="averages"><thead><tr><th scope="col">method</th>{heads}</tr></thead>'
    ]
    for prior, labels in parts.items():
        if not labels:
            continue
        rows.append(f'<tbody class="block">{_group(f"text prior: {prior}", len(shown) + 1)}')
        for label, method in labels.items():
            cells = "".join(one.cell(prior, label) for one in shown)
            marked = "".join(dict.fromkeys("".join(one.marks.get((prior, label), "") for one in shown)))
            named = _head_of_row(HTML.escape(label + marked), HTML.escape(prior))
            rows.append(f'<tr data-typed="{HTML.escape(method)}">{named}{cells}</tr>')
        rows.append("</tbody>")
    rows.append("</table>")
    said = "".join(f"<li>{HTML.escape(remark)}</li>" for remark in _said_of(shown))
    return "\n".join(
        [
            '<section id="summed" aria-labelledby="averages">',
            '<h2 id="averages">Averages</h2>',
            '<p class="about">One figure of each table below: the one that sums it up.</p>',
            _scrolling("\n".join(rows)),
            f'<ul class="remarks">{said}</ul>',
            "</section>",
        ]
    )


def _said_of(shown: Sequence[_Summed]) -> list[str]:
    """What marks and words of the overview mean, and what is said of all tables alike."""
    every = [remarks(one.table) for one in shown]
    used = set("".join(chain.from_iterable(one.marks.values() for one in shown)))
    said = [remark for remark in chain.from_iterable(every) if remark[0] in used]
    figures = chain.from_iterable(one.figures.values() for one in shown)
    if any(OUTLIER[0] in text for text in figures):
        said.append(f"{OUTLIER[0]} {OUTLIER[1]}.")
    lines = chain.from_iterable(one.lines for one in shown)
    told = {prior for prior, _ in lines}
    priors = [f"{prior} = {meaning}" for prior, meaning in TEXT_PRIORS.items() if prior in told]
    said.append(f"text prior: words told besides class names (figures compare within one): {'; '.join(priors)}.")
    said.append(column_legend(list(dict.fromkeys(one.table.columns[one.column] for one in shown))))
    known = {*said, *chain.from_iterable(legends(one.table) for one in shown)}
    common = set(every[0]).intersection(*every) - known
    said += [remark for remark in every[0] if remark in common]
    return list(dict.fromkeys(said))


@dataclass(frozen=True)
class _Summed:
    """What sums up a table, for the overview.

    Attributes:
        place: Of the table on the page.
        table: The table.
        head: The head of its column.
        column: Its column's place in the table.
        lines: The lines shown, by text prior and label.
        figures: Their figures as HTML.
        marks: The marks behind their names.
    """

    place: int
    table: Table
    head: str
    column: int
    lines: Mapping[tuple[str, str], int]
    figures: Mapping[tuple[str, str], str]
    marks: Mapping[tuple[str, str], str]

    @classmethod
    def of(cls, place: int, table: Table, name: str) -> _Summed:
        """That of a table."""
        column = table.main_column
        at = table.columns.index(column)
        numbers = {id(line): number for number, line in enumerate(table.lines)}
        chosen = {id(line) for line in overall(table) if not line.published}
        lines: dict[tuple[str, str], int] = {}
        figures: dict[tuple[str, str], str] = {}
        found: dict[tuple[str, str], str] = {}
        for group, rows in zip(table.parts, texts(table, HTML).body, strict=True):
            for line, row in zip(group, rows, strict=True):
                if id(line) in chosen:
                    key = line.text_prior, line.label
                    lines[key] = numbers[id(line)]
                    figures[key] = row[NAMES + len(WORDS) + at]
                    found[key] = marks(line)
        said = f"{column.title}, {_over(table)}"
        way = "ascending" if column.lower else "descending"
        title = f"{HTML.escape(name)}<br><small>{HTML.escape(said)}</small>"
        head = f'<th scope="col" data-figure data-first="{way}">{title}</th>'
        return cls(place, table, head, at, lines, figures, found)

    def cell(self, prior: str, label: str) -> str:
        """The figure of a line as a cell that opens."""
        number = self.lines.get((prior, label))
        if number is None:
            return "<td></td>"
        where = f' data-table="{self.place}" data-line="{number}" data-column="{self.column}"'
        text = self.figures[prior, label].partition(" [")[0]  # the remark that it points to stands below its table
        return _cell(self.table.lines[number], self.table.columns[self.column].key, text, where)


def _over(table: Table) -> str:
    """What the figures that sum a table up are averaged over, or belong to."""
    if any(line.kind == "average" for line in table.lines):
        return f"mean of {_count({line.group for line in table.lines if line.kind == 'block'}, table.blocks_are)}"
    return f"{table.blocks_are} {table.title(table.lines[0].group)}"


def _section(place: int, table: Table, name: str, pictures: Sequence[Picture]) -> str:
    about = {
        "suite": table.suite,
        "backbone": table.backbone,
        "shots": shots_text(table.shots),
        "seeds": seeds_text(table.seeds, ", "),
        **({"shown": table.subject} if table.subject else {}),
    }
    conditions = "".join(f"<div><dt>{key}</dt><dd>{HTML.escape(value)}</dd></div>" for key, value in about.items())
    text = texts(table, HTML)
    does = words_of(table.protocol)[1]
    parts = [
        f'<section id="table-{place}" aria-labelledby="name-{place}">',
        f'<h2 id="name-{place}">{HTML.escape(name)}</h2>',
        *([f'<p class="about">{HTML.escape(does)}</p>'] if does else []),
        f"<dl>{conditions}</dl>",
        _scrolling(_figures(place, table, text)),
        _remarks(text),
    ]
    if table.comparisons:
        beside = comparison_texts(table, HTML)
        parts += ["<h3>Beside published figures</h3>", _scrolling(_plain(beside)), _remarks(beside)]
    if pictures:
        parts += ['<div class="plots">', *(_picture(picture) for picture in pictures), "</div>"]
    return "\n".join([*parts, "</section>"])


def _scrolling(table: str) -> str:
    """A table in a box that scrolls within the page where it does not fit, and then says so."""
    return f'<div class="wide"><p class="hint" hidden>{HINT}</p><div class="box">{table}</div></div>'


def _figures(place: int, table: Table, text: Texts) -> str:
    """The table, whose script finds in `data-line` and in the column's place what is stored of a figure.

    Unlike in other formats, what lines have in common stands above them, so that the first column, which stays, is that
    of methods; the words of a line stand behind its figures.
    """
    numbers = {id(line): number for number, line in enumerate(table.lines)}
    words = len(WORDS)
    ways = ["ascending" if column.lower else "descending" for column in table.columns]
    titles = [text.head[1], *_figures_first(text.head)]
    first = ["ascending", *ways, *["ascending"] * (words + 1)]
    marked = ["", *[" data-figure"] * len(table.columns), "", *[" class=word"] * words]
    heads = [
        f'<th scope="col" data-first="{way}"{mark}>{name}</th>'
        for name, way, mark in zip(titles, first, marked, strict=True)
    ]
    parts = [f'<table class="figures" data-table="{place}" aria-labelledby="name-{place}">']
    parts.append(f"<thead><tr>{''.join(heads)}</tr></thead>")
    shown = sorted(zip(table.parts, text.body, strict=True), key=lambda part: FIRST.index(part[0][0].kind))
    names = _part_names(table, [lines for lines, _ in shown])
    for (lines, rows), name in zip(shown, names, strict=True):
        parts.append(f'<tbody class="{lines[0].kind}">{_group(HTML.escape(name), len(titles))}')
        for line, row in zip(lines, rows, strict=True):
            *figures, n, selection, prior = _figures_first(row)
            typed = HTML.escape(f"{line.row.method} {line.group}")  # as on the command line, for the filter
            cells = [_cell(line, column.key, cell) for column, cell in zip(table.columns, figures, strict=True)]
            kind = ' class="published"' if line.published else ""
            parts.append(
                f'<tr data-line="{numbers[id(line)]}" data-typed="{typed}"{kind}>'
                f"{_head_of_row(row[1], HTML.escape(table.title(line.group)))}"
                f"{''.join(cells)}<td>{n}</td><td class=word>{selection}</td><td class=word>{prior}</td></tr>"
            )
        parts.append("</tbody>")
    return "\n".join([*parts, "</table>"])


def _figures_first(row: Sequence[str]) -> list[str]:
    """The cells of a row behind its names, with the words of it last."""
    figures = NAMES + len(WORDS)
    return [*row[figures:], *row[NAMES:figures]]


def _part_names(table: Table, parts: Sequence[Sequence[Line]]) -> list[str]:
    """What stands above the lines of each part: their block, and what sets parts of one block apart."""
    blocks = [(lines[0].kind, lines[0].group) for lines in parts]
    names = []
    for lines, block in zip(parts, blocks, strict=True):
        first = lines[0]
        apart = blocks.count(block) > 1
        halves = f", split {first.row.split}" if first.row.split != Spec.split else ""
        names.append(f"{table.title(first.group)}{f', text prior: {first.text_prior}' if apart else ''}{halves}")
    return names


def _group(name: str, columns: int) -> str:
    return f'<tr class="group"><th colspan="{columns}" scope="rowgroup"><span>{name}</span></th></tr>\n'


def _head_of_row(name: str, group: str) -> str:
    """The method, which may break at a preset or a setting; and what it stands under, for lines sorted across that."""
    breaking = name.replace("@", "<wbr>@").replace("=", "=<wbr>")
    return f'<th scope="row"><bdi>{breaking}</bdi><span class="of"> {group}</span></th>'


def _cell(line: Line, key: str, text: str, where: str = "") -> str:
    cell = line.cells.get(key)
    if cell is None:
        return "<td></td>"
    value = "" if cell.mean is None else f' data-value="{cell.mean!r}"'
    return f'<td class="figure"{value}{where}>{text}</td>'


def _plain(text: Texts) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in text.head)
    cells = ["".join(f"<td>{cell}</td>" for cell in row) for row in chain.from_iterable(text.body)]
    rows = "".join(f"<tr>{row}</tr>\n" for row in cells)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"


def _remarks(text: Texts) -> str:
    return f'<ul class="remarks">{"".join(f"<li>{remark}</li>" for remark in text.remarks)}</ul>'


def _picture(picture: Picture) -> str:
    said = html.escape(picture.caption)
    image = f'<img src="{picture.address}" alt="{picture.kind}: {said}">'
    return f"<figure>{image}<figcaption>{said}</figcaption></figure>"
