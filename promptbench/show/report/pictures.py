"""The plots of a report: every kind that stored results alone decide, where it has something to show."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from promptbench.config import UsageError
from promptbench.show.plots.picture import KINDS, look, module_of, to_text
from promptbench.show.plots.source import Source
from promptbench.show.tables.table import Table
from promptbench.suite import Suite

DRAWN = ("points", "rows", "series")  # what kinds call the data of what they draw
NO_MATPLOTLIB = "No plots: they need matplotlib, `pip install 'promptbench-clip[plots]'`."


class Picture(NamedTuple):
    """A plot.

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
    """Whether matplotlib is there."""
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
        yield Picture(kind, (module.__doc__ or "").splitlines()[0], file.getvalue())


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
