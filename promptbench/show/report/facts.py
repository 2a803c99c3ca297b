"""What is known of a run, as facts that many runs share: section, name, value, and where the value came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from promptbench.results.result import DATA_MET, Result
from promptbench.results.spec import DATA, MACHINE, SOURCE, Spec, names_of
from promptbench.show.tables.formats.texts import clean, rounded, seeds_text

SECTIONS = {DATA: "Data", MACHINE: "Backbone and machine", SOURCE: "What it was made of"}
SECTION = {
    "config": "Settings of the method",
    "recipe": "Recipe",
    **dict.fromkeys(("sampler", *DATA_MET), SECTIONS[DATA]),
    **dict.fromkeys(("backbone", "transform"), SECTIONS[MACHINE]),
    **{name: section for role, section in SECTIONS.items() for name in names_of(Spec, role)},
}
"""Of a field of the spec or a condition; any other stands under `Run`."""
OPENED = ("config", "recipe")  # their items stand under a heading of their own and need no prefix


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
    found = [fact for name, value in known.items() for fact in _facts_of(name, value, sources)]
    found += [
        Fact("Run", name, _text(value)) for name, value in (("commit", result.commit), ("created", result.created))
    ]
    for section, values in (
        ("Cost", result.cost),
        ("Software", result.versions),
        ("Why figures are missing", result.notes),
        ("Diagnostics", result.diagnostics),
    ):
        found += [Fact(section, clean(name), _text(value)) for name, value in values.items()]
    found += [Fact("Figures", clean(name), rounded(value)) for name, value in result.metrics.items()]
    order = {
        name: place for place, name in enumerate(dict.fromkeys(["Run", *SECTION.values(), *(f.section for f in found)]))
    }
    return sorted(found, key=lambda fact: order[fact.section])


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
    """A text as it is, anything else, and no text at all, as JSON."""
    if value is None:
        return "none"
    return clean(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))
