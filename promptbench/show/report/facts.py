"""What is known of runs, for the page: facts section by section, the file, and the command that makes it again.

What runs share is stored once: a run holds the places of its facts, and of its command, in lists of all.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from promptbench.protocol import digits_of
from promptbench.results.command import command_of, evaluation_of
from promptbench.results.result import DATA_MET, Result
from promptbench.results.spec import DATA, MACHINE, SOURCE, Spec, fields_of
from promptbench.show.tables.formats.texts import clean, rounded, seeds_text

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


class Fact(NamedTuple):
    """One line of what is known of a run."""

    section: str
    name: str
    value: str
    source: str = ""


class Command(NamedTuple):
    """A command line in three parts, between which the names of datasets and the seeds stand.

    What differs from run to run is left out, so that several runs are made again by one line.

    Attributes:
        before: Up to the dataset.
        between: From there to the seed; all the rest where both seeds are given, each with its flag.
        behind: What follows the seed.
    """

    before: str
    between: str
    behind: str = ""


def pooled(results: Iterable[Result], page: Path | None = None) -> dict[str, Any]:
    """Every fact and command once, and per run what it is called, its seeds and the places of its facts and command.

    Args:
        results: In the order of the runs.
        page: The file that the page is written to, from where links to result files start; None for no links.
    """
    places: dict[Fact, int] = {}
    commands: dict[Command, int] = {}
    runs = []
    for result in results:
        line, dataset, seed = made_by(result)
        run = {
            "name": result.name,
            "dataset": clean(result.spec.dataset),
            "seeds": seeds_text([result.spec.seeds], ""),
            "facts": [places.setdefault(fact, len(places)) for fact in facts(result)],
            "command": [commands.setdefault(line, len(commands)), dataset, seed],
        }
        if page and result.path:
            run["file"] = address_of(result.path, page)
        runs.append(run)
    return {"facts": list(places), "commands": list(commands), "runs": runs}


def address_of(file: Path, page: Path) -> str:
    """A file as a page links it: relative, so that both may move together."""
    try:
        return quote(Path(os.path.relpath(file.absolute(), page.absolute().parent)).as_posix())
    except ValueError:  # another drive
        return file.absolute().as_uri()


def made_by(result: Result) -> tuple[Command, str, str]:
    """The command that makes a result again, and the dataset and the seed in it, as a shell takes them.

    What `promptbench eval` has made of a training has its command below that of the training.
    """
    words = command_of(result)
    evaluated = evaluation_of(result)
    below = f"\n{_shell(evaluated)}" if evaluated else ""
    dataset = words.index("--dataset") + 1
    before, behind = _shell(words[:dataset]), words[dataset + 1 :]
    named = shlex.quote(clean(words[dataset]))
    if "--seeds" not in behind:
        return Command(before, _shell(behind) + below), named, ""
    seed = behind.index("--seeds") + 1
    return Command(before, _shell(behind[:seed]), _shell(behind[seed + 1 :]) + below), named, behind[seed]


def _shell(words: Sequence[str]) -> str:
    return shlex.join(map(clean, words))


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
