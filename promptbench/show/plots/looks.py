"""How methods look, the same in every plot: the colour of their kind, and a mark, a tone and a line of their own.

The kind is what a method's category says before the first comma. Within a kind the methods of the package stand in the
order of their names, and one of somebody else has a place behind them that its name alone decides; so neither what else
is drawn nor which other plugins there are changes a look. In grey, or to eyes that tell red from green badly, methods
differ by mark, and two with one mark by how light they are.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from promptbench import registry
from promptbench.config import UsageError

MARKS = "os^DvPX*<>phd"


class Kind(NamedTuple):
    """A kind of methods.

    Attributes:
        title: In the plural, as a panel is called.
        tones: Two colours of one hue, which the methods have in turn.
        marks: Those of the first methods; the others follow.
    """

    title: str
    tones: tuple[str, str]
    marks: str


KINDS = {
    "baseline": Kind("baselines", ("#000000", "#3d3d3d"), "so"),
    "text": Kind("text prompts", ("#0072b2", "#004468"), "o^svDPX"),
    "visual": Kind("visual prompts", ("#009e73", "#00634a"), "d"),
    "multi-modal": Kind("multi-modal prompts", ("#d55e00", "#8f3500"), "*p<>hd"),
    "adapter": Kind("adapters", ("#d98cb3", "#b0588d"), "o^svD"),
    "cache": Kind("caches", ("#e69f00", "#b98a2e"), "*p"),
    "": Kind("others", ("#96904a", "#5e5623"), "hXP"),
}
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
FILLS = ("full", "none", "left", "bottom", "right", "top")  # of the rows of one method, the plain one first
PLACES = 2 * len(MARKS)  # marks and tones have no common factor, so that so many differ
GREY = "0.78"  # of what is not highlighted


def looks_of(rows: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """How the rows of a plot look, as plain data.

    Args:
        rows: Of each row what it is called in the plot, and its method, with `@preset` if any.
    """
    found: dict[str, dict[str, Any]] = {}
    drawn: dict[str, int] = {}  # rows by method
    for name, label in rows:
        if name not in found:
            method = label.partition("@")[0]
            kind, place = kind_and_place(method)
            found[name] = {"method": label, "kind": kind, "place": place, "row": drawn.get(method, 0)}
            drawn[method] = drawn.get(method, 0) + 1
    return found


def kind_and_place(method: str) -> tuple[str, int]:
    """The kind of a method and its place there, the same whatever else is drawn; "" is the kind of unknown ones."""
    places = _built_in()
    if method in places:
        return places[method]
    try:
        kind = _kind_of(method)
    except UsageError:  # its results are here, and its plugin is not
        kind = ""
    taken = sum(other == kind for other, _ in places.values())
    free = max(1, PLACES - taken)
    return kind, taken + int(hashlib.sha256(method.encode()).hexdigest(), 16) % free


@functools.cache
def _built_in() -> Mapping[str, tuple[str, int]]:
    """Kind and place of the methods of the package."""
    found: dict[str, tuple[str, int]] = {}
    counts = dict.fromkeys(KINDS, 0)
    for name in registry.names("methods"):
        if registry.is_built_in("methods", name):
            kind = _kind_of(name)
            found[name] = (kind, counts[kind])
            counts[kind] += 1
    return found


def _kind_of(method: str) -> str:
    category = str(registry.facts("methods", method).attributes.get("category", ""))
    kind = category.partition(",")[0].strip()
    return kind if kind in KINDS else ""


def style(look: Mapping[str, Any], dimmed: bool = False) -> dict[str, Any]:
    """What matplotlib draws a line and its marks with.

    Args:
        look: One of those that `looks_of` gives.
        dimmed: In grey, behind others.
    """
    kind = KINDS[look["kind"]]
    marks = kind.marks + "".join(mark for mark in MARKS if mark not in kind.marks)
    colour = GREY if dimmed else kind.tones[look["place"] % 2]
    fill = FILLS[look["row"] % len(FILLS)]
    return {
        "color": colour,
        "marker": marks[look["place"] % len(marks)],
        "linestyle": LINES[(look["place"] + look["row"]) % len(LINES)],
        "fillstyle": "full" if fill == "none" else fill,
        "markerfacecolor": "white" if fill == "none" else colour,
        "markerfacecoloralt": "white",
        "zorder": 2 if dimmed else 3,
    }


def in_order(looks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The rows of a plot, kind by kind."""
    kinds = list(KINDS)
    return sorted(looks, key=lambda name: (kinds.index(looks[name]["kind"]), looks[name]["place"], looks[name]["row"]))
