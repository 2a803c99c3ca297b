"""The plots on the page: what there is to show of a table, drawn so that its colours follow a dark screen."""

from __future__ import annotations

import base64
import colorsys
import io
import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from promptbench.config import UsageError
from promptbench.show.plots.picture import BEYOND_RESULTS, KINDS, caption_of, look, module_of, to_text
from promptbench.show.plots.source import Source
from promptbench.show.tables.table import Table
from promptbench.suite import Suite

DRAWN = ("points", "rows", "series")  # what kinds call the data of what they draw
NO_MATPLOTLIB = "No plots: they need matplotlib, `pip install 'promptbench-clip[plots]'`."


COLOUR = re.compile(r"(?<=fill: |roke: |olor: )#([0-9a-f]{6})\b")  # in matplotlib's SVG: fill, stroke, stop-color
PLACE = re.compile(r'(?<= [dxy]=")[^"]*|(?<=translate\()[^)]*')
LONG = re.compile(r"(\.\d\d)\d+")
UNSEEN = re.compile(r"<!--.*?-->|(?<=>)\s+(?=<)|<metadata>.*?</metadata>", flags=re.DOTALL)
INK, PAPER = 0.9, 0.086  # lightness of what is black and of what is white, on a dark screen; page.css has the same


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


def drawable() -> bool:
    """Whether plots can be drawn: matplotlib is installed."""
    return find_spec("matplotlib") is not None


def pictures(table: Table, suites: Sequence[Suite]) -> Iterator[Picture]:
    """The plots of the results in a table; kinds that have nothing to show for them are left out."""
    source = _source(table, suites)
    for kind in KINDS:
        if kind in BEYOND_RESULTS:  # these import torch
            continue
        module = module_of(kind)
        try:
            data = json.loads(to_text(module.data(source)))
        except UsageError:
            continue
        if not any(data.get(name) for name in DRAWN):
            continue
        file = io.BytesIO()
        with look():
            module.draw(data).savefig(file, format="svg", metadata={"Date": None})
        svg = following(shorter(file.getvalue().decode())).encode()
        what = (module.__doc__ or "").splitlines()[0]
        yield Picture(kind, f"{what} {caption_of(data)}", svg)


def following(svg: str) -> str:
    """A picture of matplotlib's whose colours are variables, with other values on a dark screen, but not on paper."""
    start, opening, rest = svg.partition("<svg ")
    tag, end, body = rest.partition(">")
    found = sorted({"000000", *COLOUR.findall(body)})  # what says nothing is black
    light = "".join(f"--c{colour}:#{colour};" for colour in found)
    dark = "".join(f"--c{colour}:#{on_dark(colour)};" for colour in found)
    screen = "@media screen and (prefers-color-scheme:dark)"
    style = f"<style>svg{{fill:var(--c000000);{light}}}{screen}{{svg{{{dark}}}}}</style>"
    return start + opening + tag + end + style + COLOUR.sub(r"var(--c\1)", body)


def on_dark(colour: str) -> str:
    """The same hue with light and dark exchanged: black becomes `INK`, white `PAPER`.

    Args:
        colour: Six hex digits.
    """
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    exchanged = colorsys.hls_to_rgb(hue, INK - light * (INK - PAPER), saturation)
    return "".join(f"{round(part * 255):02x}" for part in exchanged)


def shorter(svg: str) -> str:
    """A picture of matplotlib's with two decimals of a point, which is all that anyone sees, and without remarks."""
    return UNSEEN.sub("", PLACE.sub(lambda place: LONG.sub(r"\1", place[0]).replace("\n", ""), svg))


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
