"""How methods look in plots: the same everywhere, and told apart in print without colour and by eyes that mix colours.

Deficient sight is simulated as in Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of
Color Vision Deficiency", 2009 (severity 1.0); distances are those of CIE 1976 L*a*b*.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from shared_paths import REPOSITORY

from promptbench import registry
from promptbench.show.plots.looks import KINDS, PLACES, kind_and_place, looks_of, style

SIGHT = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "grey": np.tile([[0.2126, 0.7152, 0.0722]], (3, 1)),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])
APART = 15  # of L*a*b*: a just noticeable difference is about 2


def seen(colour: str, sight: str) -> np.ndarray:
    """L*a*b* (3,) of a colour, `#rrggbb`."""
    rgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def built_in() -> dict[str, Mapping[str, object]]:
    names = [name for name in registry.names("methods") if registry.is_built_in("methods", name)]
    return {name: style(look) for name, look in looks_of([(name, name) for name in names]).items()}


@pytest.mark.parametrize("sight", SIGHT)
def test_two_methods_of_one_mark_differ_in_lightness_or_hue(sight: str) -> None:
    styles = built_in()
    assert len(styles) >= 22
    for (one, first), (other, second) in itertools.combinations(styles.items(), 2):
        if first["marker"] == second["marker"]:
            distance = np.linalg.norm(seen(str(first["color"]), sight) - seen(str(second["color"]), sight))
            assert distance >= APART, (one, other)


@pytest.mark.parametrize("sight", ["normal", "deuteranopia", "protanopia"])
def test_kinds_are_told_apart_by_their_colours(sight: str) -> None:
    for one, other in itertools.combinations(KINDS.values(), 2):
        distance = np.linalg.norm(seen(one.tones[0], sight) - seen(other.tones[0], sight))
        assert distance >= APART, (one.title, other.title)


def test_colours_are_dark_enough_for_white_paper() -> None:
    tones = itertools.chain.from_iterable(kind.tones for kind in KINDS.values())
    assert all(seen(tone, "normal")[0] < 75 for tone in tones)


def test_places_of_a_kind_differ_in_mark_or_tone() -> None:
    for kind in KINDS:
        looks = [style({"kind": kind, "place": place, "row": 0}) for place in range(PLACES)]
        assert len({(one["marker"], one["color"]) for one in looks}) == PLACES


def test_a_method_looks_the_same_alone_and_among_all() -> None:
    everywhere = built_in()
    for name, look in everywhere.items():
        assert style(looks_of([("Its title", name)])["Its title"]) == look


def test_rows_of_one_method_differ_in_what_fills_their_mark() -> None:
    plain, preset, other = looks_of([("A", "ivlp"), ("B", "ivlp@promptsrc"), ("C", "vpt")]).values()
    first, second = style(plain), style(preset)
    assert (first["color"], first["marker"]) == (second["color"], second["marker"])
    assert first["markerfacecolor"] != second["markerfacecolor"]
    assert style(other)["color"] != first["color"]
    assert style(plain, dimmed=True)["color"] != first["color"]


@pytest.mark.parametrize(("category", "kind"), [("text, of ours", "text"), ("adapter", "adapter"), ("sorcery", "")])
def test_a_plugin_has_the_colour_of_its_kind_whatever_else_is_there(
    category: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_files", {})
    before = {name: kind_and_place(name) for name in registry.names("methods")}
    places = []
    for name in ("aaa_first", "ours", "zzz_last"):
        path = tmp_path / f"{name}.py"
        path.write_text(
            f'"""X."""\nfrom promptbench.method import Method\n\n\nclass X(Method):\n    category = "{category}"\n'
        )
        registry.add_file(path)
        places.append(kind_and_place("ours") if "ours" in registry.names("methods") else None)
    assert places[0] is None and places[1] == places[2]
    assert places[2] is not None and places[2][0] == kind
    assert places[2] not in before.values()
    assert {name: kind_and_place(name) for name in before} == before


def test_a_method_that_is_not_here_has_a_look_too() -> None:
    assert kind_and_place("of_a_plugin_that_is_gone") == kind_and_place("of_a_plugin_that_is_gone")
    assert kind_and_place("of_a_plugin_that_is_gone")[0] == ""


def test_every_built_in_method_is_of_a_kind() -> None:
    assert all(kind_and_place(name)[0] for name in built_in())


def test_committed_plots_have_these_looks() -> None:
    paths = sorted((REPOSITORY / "results" / "mini" / "plots").glob("*.json"))
    stored = [json.loads(path.read_text()).get("looks", {}) for path in paths]
    assert any(stored)
    for looks in stored:
        rows = sorted(looks, key=lambda name: looks[name]["row"])
        assert looks_of([(name, looks[name]["method"]) for name in rows]) == looks
