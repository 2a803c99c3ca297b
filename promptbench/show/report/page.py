"""The page: tables that read as they are, plots of them, a script that makes them sortable, and the facts it shows.

Nothing on it comes from elsewhere, and a policy in its head forbids that: of scripts and styles it allows the page's
own by their digests, of pictures those that the page holds. The script writes what is stored as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib import resources
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from promptbench import __version__
from promptbench.config import UsageError
from promptbench.protocol import digits_of
from promptbench.results.result import DATA_MET, Result
from promptbench.results.spec import DATA, MACHINE, SOURCE, Spec, fields_of
from promptbench.show.plots.picture import KINDS, caption_of, look, module_of, to_text
from promptbench.show.plots.source import Source
from promptbench.show.tables.formats.records import render_json
from promptbench.show.tables.formats.texts import (
    HTML,
    NAMES,
    WORDS,
    Style,
    Texts,
    clean,
    comparison_texts,
    rounded,
    seeds_text,
    shots_text,
    texts,
)
from promptbench.show.tables.table import Line, Table
from promptbench.suite import Suite

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
<p>{summary}</p>
{remark}<noscript><p>Without JavaScript the tables are whole, but cannot be sorted, filtered or opened.</p></noscript>
<div id="tools" role="search" hidden>
<label>Filter by {filtered} <input id="filter" type="search" autocomplete="off" spellcheck="false"></label>
<label><input id="together" type="checkbox" checked> sort within each {filtered_block}</label>
<output id="count"></output>
<p>Sort by a column with its head. Open a figure for the runs behind it: click, or arrow keys and Enter.</p>
</div>
{contents}</header>
<main>
{sections}
</main>
<dialog id="panel" aria-labelledby="panel-title"></dialog>
<script id="data" type="application/json">{data}</script>
<script>{script}</script>
</body>
</html>
"""

SECTIONS = {DATA: "Data", MACHINE: "Backbone and machine", SOURCE: "What it was made of"}
SECTION = {
    "config": "Settings of the method",
    "recipe": "Recipe",
    **dict.fromkeys(("sampler", *DATA_MET), SECTIONS[DATA]),
    **dict.fromkeys(("backbone", "transform"), SECTIONS[MACHINE]),
    **{item.name: SECTIONS[item.metadata["role"]] for item in fields_of(Spec, *SECTIONS)},
}
"""Of a field of the spec or a condition; any other stands under `Run`."""
OPENED = ("config", "recipe")  # their items stand under a heading of their own and need no prefix

DRAWN = ("points", "rows", "series")  # what kinds call the data of what they draw
NO_MATPLOTLIB = "No plots: they need matplotlib, `pip install 'promptbench-clip[plots]'`."


class Picture(NamedTuple):
    """A plot of a report, drawn.

    Attributes:
        kind: As `promptbench plot` takes it.
        caption: What it shows.
        svg: The file.
    """

    kind: str
    caption: str
    svg: bytes

    @property
    def address(self) -> str:
        """The file itself as an address, so that names and styles in it meet no others on the page."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def render(
    tables: Sequence[Table],
    *,
    title: str = "",
    pictures: Mapping[int, Sequence[Picture]] | None = None,
    remark: str = "",
) -> str:
    """The report of some tables as one HTML page.

    Args:
        tables: Each is a section.
        title: "" for the usual one.
        pictures: The plots of a section, by its place.
        remark: A sentence for the head, or "".
    """
    style, script = _asset("page.css"), _asset("page.js")
    pictures = pictures or {}
    names = _names(tables)
    sections = [_section(place, table, names[place], pictures.get(place, ())) for place, table in enumerate(tables)]
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
        remark=f"<p>{HTML.escape(remark)}</p>\n" if remark else "",
        filtered=HTML.escape(_either(["method", *blocks])),
        filtered_block=HTML.escape(_either(blocks)),
        contents=_contents(names),
        sections="\n".join(sections),
        data=_data(tables, [*results.values()]),
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


def _data(tables: Sequence[Table], results: Sequence[Result]) -> str:
    """The tables as `--format json` gives them, and the facts of their runs, as JSON that ends no script element."""
    shown = json.loads(render_json(tables, Style()))["tables"]
    for table in shown:
        del table["runs"]
    document = json.dumps({"tables": shown, **pooled(results)}, separators=(",", ":"))
    return document.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class Fact(NamedTuple):
    """One line of what is known of a run."""

    section: str
    name: str
    value: str
    source: str = ""


def pooled(results: Iterable[Result]) -> dict[str, Any]:
    """Every fact once, and per run its seeds and the places of its facts, so that what runs share is stored once."""
    places: dict[Fact, int] = {}
    runs = {
        result.name: {
            "dataset": clean(result.spec.dataset),
            "seeds": seeds_text([result.spec.seeds], ""),
            "facts": [places.setdefault(fact, len(places)) for fact in facts(result)],
        }
        for result in results
    }
    return {"facts": list(places), "runs": runs}


def facts(result: Result) -> list[Fact]:
    """All that the result says, but for its losses, section by section."""
    spec = {item.name: getattr(result.spec, item.name) for item in fields(result.spec)}
    said = result.conditions.get("provenance")
    sources = said if isinstance(said, Mapping) else {}
    known = {**spec, **{name: value for name, value in result.conditions.items() if name != "provenance"}}
    found: list[Fact] = []
    for name, value in known.items():
        found += _facts_of(name, value, sources)
    found += [Fact("Run", "commit", _text(result.commit)), Fact("Run", "created", _text(result.created))]
    for section, values in (
        ("Cost", result.cost),
        ("Software", result.versions),
        ("Why figures are missing", result.notes),
        ("Diagnostics", result.diagnostics),
    ):
        found += [Fact(section, clean(name), _text(value)) for name, value in values.items()]
    found += [Fact("Figures", clean(name), rounded(value, digits_of(name))) for name, value in result.metrics.items()]
    sections = list(dict.fromkeys(["Run", *SECTION.values(), *(fact.section for fact in found)]))
    return sorted(found, key=lambda fact: sections.index(fact.section))


def _facts_of(name: str, value: Any, sources: Mapping[str, Any]) -> Iterator[Fact]:
    section = SECTION.get(name, "Run")
    if name == "shots":
        yield Fact(section, name, "all" if value is None else str(value))
    elif value not in ("", {}, None):  # at the top these say that there is no such thing
        for path, leaf in _leaves((name,), value):
            shown = path[1:] if name in OPENED else path
            yield Fact(section, clean(".".join(shown)), _text(leaf), clean(str(sources.get(".".join(path), ""))))


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item)
    else:
        yield path, value


def _text(value: Any) -> str:
    """A value of a fact in words: a text as it is, anything else, and no text at all, as JSON."""
    if value is None:
        return "none"
    return clean(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))


def drawable() -> bool:
    """Whether plots can be drawn: matplotlib is installed."""
    return find_spec("matplotlib") is not None


def pictures(table: Table, suites: Sequence[Suite]) -> Iterator[Picture]:
    """The plots of the results in a table; kinds that have nothing to show for them are left out."""
    source = _source(table, suites)
    for kind in KINDS:
        module = module_of(kind)
        if not module.STORED:
            continue
        try:
            data = json.loads(to_text(module.data(source)))
        except UsageError:
            continue
        if not any(data.get(name) for name in DRAWN):
            continue
        file = io.BytesIO()
        with look():
            module.draw(data).savefig(file, format="svg", metadata={"Date": None})
        what = (module.__doc__ or "").splitlines()[0]
        yield Picture(kind, f"{what} {caption_of(data)}", file.getvalue())


def _source(table: Table, suites: Sequence[Suite]) -> Source:
    suite = next((suite for suite in suites if suite.name == table.suite), None)
    blocks = [line.group for line in table.lines if line.kind == "block"]
    return Source(
        places=(),
        protocol=table.protocol,
        results=tuple(table.results.values()),
        methods=tuple(dict.fromkeys(row.method for row in table.rows)),
        datasets=tuple(dict.fromkeys([*blocks, *([entry.name for entry in suite.entries()] if suite else [])])),
        suite=suite,
    )


def _names(tables: Sequence[Table]) -> list[str]:
    """What the sections are called: protocol and suite, and the backbone where these are several times there."""
    short = [f"{table.protocol} on {table.suite}" for table in tables]
    return [
        f"{name}, {table.backbone}" if short.count(name) > 1 else name
        for name, table in zip(short, tables, strict=True)
    ]


def _summary(results: Sequence[Result]) -> str:
    """The sentence below the title: how many runs, made when, by which version and commit."""
    days = sorted({result.created[:10] for result in results} - {""})
    versions = sorted({result.versions.get("promptbench", "") for result in results} - {""})
    commits = sorted({result.commit[:10] + result.commit[40:] for result in results} - {""})
    said = f"{len(results)} run{'s' * (len(results) != 1)}"
    if days:
        said += f" made {' to '.join(dict.fromkeys([days[0], days[-1]]))}"
    if versions:
        said += f" by promptbench {', '.join(versions)}"
    if len(commits) > 5:
        said += f", {len(commits)} commits"
    elif commits:
        said += f", commit{'s' * (len(commits) > 1)} {', '.join(commits)}"
    return f"{said}."


def _either(words: Sequence[str]) -> str:
    *first, last = words or [""]
    return f"{', '.join(first)} or {last}" if first else last


def _contents(names: Sequence[str]) -> str:
    """Links to the sections, where there are several."""
    if len(names) < 2:
        return ""
    links = "".join(f'<li><a href="#table-{place}">{HTML.escape(name)}</a></li>' for place, name in enumerate(names))
    return f'<nav aria-label="Tables"><ul>{links}</ul></nav>\n'


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
    parts = [
        f'<section id="table-{place}" aria-labelledby="name-{place}">',
        f'<h2 id="name-{place}">{HTML.escape(name)}</h2>',
        f"<dl>{conditions}</dl>",
        f'<div class="box">{_figures(place, table, text)}</div>',
        _remarks(text),
    ]
    if table.comparisons:
        beside = comparison_texts(table, HTML)
        parts += ["<h3>Beside published figures</h3>", f'<div class="box">{_plain(beside)}</div>', _remarks(beside)]
    if pictures:
        parts += ['<div class="plots">', *(_picture(picture) for picture in pictures), "</div>"]
    return "\n".join([*parts, "</section>"])


def _figures(place: int, table: Table, text: Texts) -> str:
    """The table, whose script finds in `data-line` and in the column's place what is stored of a figure."""
    lines = {id(line): number for number, line in enumerate(table.lines)}
    words = ["ascending"] * (NAMES + len(WORDS))
    first = [*words, *("ascending" if c.lower else "descending" for c in table.columns), "ascending"]
    heads = "".join(
        f'<th scope="col" data-first="{way}">{name}</th>' for name, way in zip(text.head, first, strict=True)
    )
    parts = [f'<table class="figures" data-table="{place}" aria-labelledby="name-{place}">']
    parts.append(f"<thead><tr>{heads}</tr></thead>")
    for group, rows in zip(table.parts, text.body, strict=True):
        parts.append(f'<tbody class="{group[0].kind}">')
        block = rows[0][0]
        for line, row in zip(group, rows, strict=True):
            named = [f'<th scope="row">{block}</th><th scope="row">{row[1]}</th>']
            named += [f"<td>{word}</td>" for word in row[NAMES : len(words)]]
            figures = zip(table.columns, row[len(words) :], strict=False)
            cells = [_cell(line, column.key, cell) for column, cell in figures]
            kind = ' class="published"' if line.published else ""
            parts.append(
                f'<tr data-line="{lines[id(line)]}"{kind}>{"".join(named)}{"".join(cells)}<td>{row[-1]}</td></tr>'
            )
        parts.append("</tbody>")
    return "\n".join([*parts, "</table>"])


def _cell(line: Line, key: str, text: str) -> str:
    cell = line.cells.get(key)
    if cell is None:
        return "<td></td>"
    value = "" if cell.mean is None else f' data-value="{cell.mean!r}"'
    return f'<td class="figure"{value}>{text}</td>'


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
