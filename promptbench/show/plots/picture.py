"""Pictures of plot data: their kinds, how all of them look, and the files they are stored in.

A kind is a module of this package with

    PROTOCOL                 the protocol that it shows unless another is named
    STORED                   whether result files alone decide its data; otherwise predictions or weights do too
    data(source) -> dict     a pure function of what is stored: text, numbers, lists and dicts
    draw(data) -> Figure     the picture, which needs matplotlib

All are one column wide, in small clear type, told apart in grey by marks, lines and hatches.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (
    "shots",
    "base-new",
    "gain",
    "seeds",
    "cost",
    "critical-difference",
    "ood",
    "open-world",
    "reliability",
    "robustness",
    "ablation",
    "heatmap",
)
DIGITS = 6  # decimals of stored plot data: fewer than any machine gets right, more than any picture shows

WIDTH = 3.3  # inches: a column of a two-column paper
RECONSTRUCTED = "§"
LETTERS = 60  # of the smallest type, on a line
STUCK = "\N{NO-BREAK SPACE}"
DPI = 200
COLOURS = ("#000000", "#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#8c4a86")
MARKS = "os^DvPX*<>phd"  # 13, which shares no factor with the colours: looks come again late
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
LOOK: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 4.5,
    "errorbar.capsize": 1.5,
    "legend.frameon": False,
    "svg.hashsalt": "promptbench",
}

FORMATS = ("png", "svg", "pdf")


def module_of(kind: str) -> ModuleType:
    """The module that draws a kind of plot.

    Raises:
        UsageError: There is no such kind.
    """
    if kind not in KINDS:
        raise unknown("kind of plot", kind, KINDS)
    return import_module(f"promptbench.show.plots.{kind.replace('-', '_')}")


def to_text(data: Mapping[str, Any]) -> str:
    """Plot data as JSON: sorted keys, six decimals, the same bytes on every machine."""
    return json.dumps(rounded(data), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def rounded(value: Any) -> Any:
    """Plot data with every float rounded to `DIGITS` decimals; there is no minus zero."""
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def look() -> AbstractContextManager[None]:
    """A context in which matplotlib draws as all plots do.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("Plots need matplotlib; install it with `pip install 'promptbench-clip[plots]'`.") from error
    context: AbstractContextManager[None] = matplotlib.rc_context({**matplotlib.rcParamsDefault, **LOOK})
    return context


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure one column wide and its axes: one, or an array of several."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.05, hspace=0.02, wspace=0.03)
    figure = Figure(figsize=(WIDTH, height), layout=engine)
    return figure, figure.subplots(rows, columns, **options)


def style_of(name: str, names: Sequence[str]) -> dict[str, Any]:
    """How a series looks among all that there are: colour, mark, line; every second mark is hollow."""
    place = list(names).index(name)
    colour = COLOURS[place % len(COLOURS)]
    return {
        "color": colour,
        "marker": MARKS[place % len(MARKS)],
        "linestyle": LINES[place % len(LINES)],
        "markerfacecolor": "white" if place % 2 else colour,
    }


def finish(figure: Figure, data: Mapping[str, Any], *said: str, bars: bool = True) -> Figure:
    """The figure with a legend above, where there is something to tell apart, and the small print below.

    Args:
        figure: Drawn, one column wide; it grows by what is added.
        data: With what `about` says.
        said: Further sentences.
        bars: Whether it has bars of standard deviations.
    """
    handles, labels = figure.axes[0].get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]  # marks without their bars
    if len(labels) > 1:
        wrapped = [textwrap.fill(label, 40) for label in labels]
        longest = max(map(len, "\n".join(wrapped).splitlines()))
        columns = max(1, min(4, len(labels), (LETTERS + 6) // (longest + 6)))
        spacing = {"handlelength": 2.2, "columnspacing": 1.0, "handletextpad": 0.5, "labelspacing": 0.3}
        figure.legend(
            handles, wrapped, loc="outside upper center", ncols=columns, borderpad=0, borderaxespad=0.7, **spacing
        )
        lines = sum(label.count("\n") + 1 for label in wrapped) / columns
        figure.set_figheight(figure.get_figheight() + 0.1 + 0.14 * math.ceil(lines))
    text = small_print(data, said, bars)
    figure.supxlabel(text, fontsize=7, color="0.3", x=0.01, ha="left", linespacing=1.15)
    figure.set_figheight(figure.get_figheight() + 0.125 * (text.count("\n") + 1))
    return figure


def small_print(data: Mapping[str, Any], said: Sequence[str], bars: bool) -> str:
    """Suite, backbone, shots, seeds and what else a reader has to know, wrapped."""
    shots = ", ".join(map(str, data["shots"]))
    missing = data.get("left_out", [])
    counts = {series: count for series, count in data["n"].items() if series not in missing}
    facts = [
        f"{data['protocol']} on {data['suite']}, backbone {data['backbone']}, {shots} shots, {_seeds(counts)}.",
        *said,
    ]
    if bars and any(count != "1" for count in counts.values()):
        facts.append("Bars: population standard deviation over seeds.")
    if missing:
        facts.append(f"Not shown, without such a figure: {', '.join(missing)}.")
    if data["reconstructed"]:
        facts.append(f"{RECONSTRUCTED}{STUCK}reconstructed without its authors' code.")
    if data["note"]:
        facts.append(f"{data['note'][:1].upper()}{data['note'][1:]}.")
    return textwrap.fill(" ".join(facts), LETTERS)


def _seeds(counts: Mapping[str, str]) -> str:
    """How many seeds: the usual number, and that of every series with another."""
    most = Counter(counts.values()).most_common(1)[0][0]
    others = [f"{series} {count}" for series, count in counts.items() if count != most]
    return f"n{STUCK}={STUCK}{most} seed{'s' * (most != '1')}" + (f" ({', '.join(others)})" if others else "")


def data_path(picture: Path) -> Path:
    """Where the data of a picture are stored."""
    return picture.with_suffix(".json")


def write_picture(data: Mapping[str, Any], path: Path) -> None:
    """Draw plot data, as `to_text` stores them, to a file.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.
    """
    stored = json.loads(to_text(data))  # so that a picture does not depend on what the text leaves out
    save(module_of(stored["kind"]).draw, stored, path)


def save(draw: Callable[[Any], Figure], data: Mapping[str, Any], path: Path) -> None:
    """Draw data and write the picture, whose bytes hold no date.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.
    """
    check_picture(path)
    dated = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[path.suffix[1:]]
    with look():
        figure = draw(data)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=DPI, metadata={dated: None})
        except OSError as error:
            raise UsageError(f"The picture {path} cannot be written ({error.strerror}).") from error


def check_picture(path: Path) -> None:
    """Raises UsageError unless the file's name ends as one of `FORMATS`."""
    if path.suffix[1:] not in FORMATS:
        raise UsageError(f"The picture {path} cannot be written: its name must end in {', '.join(FORMATS)}.")
