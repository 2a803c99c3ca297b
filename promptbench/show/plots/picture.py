"""Pictures of plot data: their kinds, how all of them look, and the files they are stored in.

A kind is a module of this package with

    PROTOCOL                 the protocol that it shows unless another is named
    data(source) -> dict     a pure function of what is stored: text, numbers, lists and dicts
    draw(data) -> Figure     the picture, which needs matplotlib
    said(data) -> [str]      what its caption says besides suite, backbone, shots and seeds

All are as wide as a column or a page of a paper, in small clear type. Methods look as `looks` says. How a picture is
asked for, such as its width and what is highlighted, stands in the data under `drawn`, so that data and picture belong
together.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError, text_of, unknown
from promptbench.show.plots.looks import GREY, LINES, MARKS, in_order, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {  # what it shows; what it needs
    "shots": "accuracy over images a class; few_shot with several --shots",
    "base-new": "accuracy on base classes against that on new ones; base2new",
    "gain": "gain over --baseline, dataset by dataset; any protocol, with results of the baseline",
    "seeds": "every seed beside the mean; any protocol",
    "cost": "figure against parameters, seconds and memory; any protocol",
    "critical-difference": "mean ranks after Friedman's test; 10 datasets or more, 3 to 10 rows",
    "ood": "histograms of --score; ood run with --save-predictions, at most 3 rows",
    "open-world": "the trade-off behind OpenworldAUC; base2new run with --save-predictions",
    "reliability": "accuracy by confidence; base2new run with --save-predictions, at most 3 rows",
    "robustness": "accuracy over corruptions and their severity; robustness",
    "ablation": "accuracy over a setting; base2new at several values of --field",
    "heatmap": "similarity of patches to a class; the --run of a training that is kept",
}
BEYOND_RESULTS = ("ood", "open-world", "reliability", "heatmap")  # kinds whose data take predictions or weights too
OF_A_MODEL = ("heatmap",)  # kinds that a model computes anew, with other last digits on another processor
DIGITS = 6  # decimals of stored plot data: fewer than any machine gets right, more than any picture shows

WIDTHS = {"column": 3.3, "page": 6.9}  # inches, of a two-column paper
NARROWEST, WIDEST = 2.5, 12.0
WIDTH = WIDTHS["column"]
WIDE = 5.0  # inches, from which on panels stand beside each other
RECONSTRUCTED = "§"
TERMINAL = 78  # letters of a caption, on a line of a terminal
LONG = 6  # entries of a legend, from which on one column of them is too high
SMALL = 7  # points, the smallest type
LETTERS = 60  # of the smallest type, on a line of a column
LINE = 0.117  # inches, of the smallest type
ASLANT = 16  # letters of a title that is written aslant, on a line
LABEL = 24  # letters of a row's name, on a line
STUCK = "\N{NO-BREAK SPACE}"
DPI = 200
COLOURS = ("#000000", "#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#8c4a86")
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
    "lines.markeredgewidth": 0.8,
    "errorbar.capsize": 1.5,
    "legend.frameon": False,
    "svg.hashsalt": "promptbench",
    "pdf.fonttype": 42,  # embedded whole, as publishers ask for
    "ps.fonttype": 42,
    "pgf.rcfonts": False,  # the fonts of the paper that it is put into
}

FORMATS = ("png", "svg", "pdf", "pgf")
LATEX = ("pdflatex", "xelatex", "lualatex")  # one of which measures the text of a .pgf


def module_of(kind: str) -> ModuleType:
    """The module that draws a kind of plot.

    Raises:
        UsageError: There is no such kind.
    """
    if kind not in KINDS:
        raise unknown("kind of plot", kind, KINDS)
    return import_module(f"promptbench.show.plots.{kind.replace('-', '_')}")


def to_text(data: Mapping[str, Any]) -> str:
    """Plot data and their caption as JSON: sorted keys, six decimals, the same bytes on every machine."""
    plain = rounded(data)
    if plain.get("kind") in KINDS:
        plain["caption"] = caption_of(plain)
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def rounded(value: Any) -> Any:
    """Plot data with every float rounded to `DIGITS` decimals; there is no minus zero."""
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def read_data(path: Path, kind: str) -> dict[str, Any]:
    """The data of a picture that were stored as text.

    Raises:
        UsageError: The file cannot be read, or is of no picture of this kind.
    """
    module_of(kind)
    try:
        data = json.loads(text_of(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"--from {path} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(data, dict) or data.get("kind") != kind:
        found = data["kind"] if isinstance(data, dict) and data.get("kind") in KINDS else "none"
        raise UsageError(
            f"--from {path} must hold the data of the kind {kind}, and its kind is {found}; name the .json beside such "
            "a picture."
        )
    if kind != "heatmap" and "looks" not in data:
        raise UsageError(f"--from {path} was written by an earlier version; draw the picture from its results.")
    return data


def with_look(
    data: Mapping[str, Any], width: float | None = None, highlight: Sequence[str] = (), caption: bool = False
) -> dict[str, Any]:
    """Data with how the picture is asked for, over what they say of it already.

    Args:
        data: Those of a picture.
        width: In inches.
        highlight: Methods, with or without `@preset`, or names as the plot shows them.
        caption: Whether it is drawn.

    Raises:
        UsageError: A method to highlight is not in the plot.
    """
    drawn = dict(data.get("drawn", {}))
    if width is not None:
        drawn["width"] = width
    if caption:
        drawn["caption"] = True
    if highlight:
        drawn["highlight"] = list(dict.fromkeys(chain.from_iterable(_rows_of(data, one) for one in highlight)))
    return {**data, **({"drawn": drawn} if drawn else {})}


def _rows_of(data: Mapping[str, Any], wanted: str) -> list[str]:
    """The rows of a plot that a name means: all of a method, those of a preset, or one."""
    looks = data.get("looks", {})
    labels = {name: look["method"] for name, look in looks.items()}
    found = [name for name, label in labels.items() if wanted in (name, label, label.partition("@")[0])]
    if not found:
        raise unknown("method of the plot to highlight", wanted, dict.fromkeys(labels.values()))
    return found


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


def width_of(data: Mapping[str, Any]) -> float:
    """The width of a picture, in inches."""
    return float(data.get("drawn", {}).get("width", WIDTH))


def new_figure(
    height: float, rows: int = 1, columns: int = 1, *, width: float = WIDTH, **options: Any
) -> tuple[Figure, Any]:
    """A figure, a column wide unless told otherwise, and its axes: one, or an array of several."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.05, hspace=0.02, wspace=0.03)
    figure = Figure(figsize=(width, height), layout=engine)
    return figure, figure.subplots(rows, columns, **options)


def panel_grid(panels: int, high: float, width: float, *, least: float, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many panels, each `high` and at least `least` inches wide, as an array (rows, columns) of axes.

    Those of the last row that are not needed are not drawn.
    """
    columns = max(1, min(panels, int(width / least)))
    rows = math.ceil(panels / columns)
    columns = math.ceil(panels / rows)
    figure, grid = new_figure(high * rows, rows, columns, width=width, squeeze=False, **options)
    for place in range(panels, rows * columns):
        grid.flat[place].set_axis_off()
        if rows > 1:  # the panel above is the lowest of its column
            grid.flat[place - columns].tick_params(labelbottom=True)
    return figure, grid


def style_of(name: str, names: Sequence[str]) -> dict[str, Any]:
    """How a series that is no method looks among all that there are: colour, mark, line; every second is hollow."""
    place = list(names).index(name)
    colour = COLOURS[place % len(COLOURS)]
    return {
        "color": colour,
        "marker": MARKS[place % len(MARKS)],
        "linestyle": LINES[place % len(LINES)],
        "markerfacecolor": "white" if place % 2 else colour,
    }


def style_in(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """How a row of a plot looks, which is that of its method in every plot, or grey where others are highlighted."""
    return style(data["looks"][name], dimmed=is_dimmed(data, name))


def is_dimmed(data: Mapping[str, Any], name: str) -> bool:
    """Whether others are highlighted."""
    highlighted = data.get("drawn", {}).get("highlight", [])
    return bool(highlighted) and name not in highlighted


def label_below(grid: Any, panels: int, text: str) -> None:
    """Write what all of some panels show along their x axes below the middle of them.

    It belongs to a panel of the last row, for the place below the figure is the caption's.
    """
    columns = len(grid[0])
    last = panels - columns * (len(grid) - 1)  # panels of the last row
    place = min((columns - 1) // 2, last - 1)
    grid[-1][place].set_xlabel(text, x=(columns / 2 - place) * 1.05 - 0.025)


def title_panels(panels: Sequence[Any], titles: Sequence[str], room: float) -> float:
    """Write titles above panels, aslant where a word is wider than the room that each has; all in inches.

    Returns:
        The height that they take.
    """
    letters = max(6, int(room / text_width("n")))
    straight = [broken(title, letters) for title in titles]
    if max(map(text_width, straight)) <= room:
        for axes, title in zip(panels, straight, strict=True):
            axes.set_title(title, fontsize=SMALL, pad=3)
        return LINE * max(title.count("\n") + 1 for title in straight)
    aslant = [shortened(broken(title, ASLANT)) for title in titles]
    for axes, title in zip(panels, aslant, strict=True):
        axes.set_title(title, fontsize=SMALL, pad=3, loc="left", rotation=35, ha="left", rotation_mode="anchor")
    return max(map(text_width, aslant)) * math.sin(math.radians(35)) + 2 * LINE


def broken(text: str, letters: int) -> str:
    """A text in lines of so many letters, that break at spaces, underscores and hyphens alone."""
    lines = [""]
    for part in re.findall(r"[^ _-]*[ _-]?", text):
        if lines[-1] and len(lines[-1] + part.rstrip()) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip(" ") for line in lines)


def shortened(text: str) -> str:
    """The first two lines of a text, each as far as there is room aslant."""
    lines = [line if len(line) <= ASLANT else f"{line[: ASLANT - 1]}…" for line in text.split("\n")]
    return "\n".join(lines) if len(lines) < 3 else f"{lines[0]}\n{lines[1]}…"


def name_rows(axes: Any, places: Sequence[float], names: Sequence[str], data: Mapping[str, Any]) -> None:
    """Write the names of rows beside their places, in grey where others are highlighted."""
    axes.set_yticks(places, [textwrap.fill(name, LABEL) for name in names])
    axes.tick_params(axis="y", length=0)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color("0.6" if is_dimmed(data, name) else "black")


def finish(
    figure: Figure, data: Mapping[str, Any], *, legend: bool = True, behind: Mapping[str, str] | None = None
) -> Figure:
    """The figure with a legend above, where there is something to tell apart, and the caption below if asked for.

    Args:
        figure: Drawn; it grows by what is added.
        data: With what `about` says.
        legend: Whether there is one.
        behind: What stands behind the names in the legend, by name.
    """
    if legend:
        _add_legend(figure, data, behind or {})
    if data.get("drawn", {}).get("caption"):
        text = textwrap.fill(caption_of(data), int(LETTERS * width_of(data) / WIDTH))
        figure.supxlabel(text, fontsize=7, color="0.3", x=0.01, ha="left", linespacing=1.15)
        figure.set_figheight(figure.get_figheight() + 0.125 * (text.count("\n") + 1))
    return figure


def _add_legend(figure: Figure, data: Mapping[str, Any], behind: Mapping[str, str]) -> None:
    """What the figure's axes label, each once, kind by kind; of dimmed rows one stands for all."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle[0] if isinstance(handle, tuple) else handle)  # marks without their bars
    looks = data.get("looks", {})
    order = [*(name for name in in_order(looks) if name in entries), *(name for name in entries if name not in looks)]
    dimmed = [name for name in order if name in looks and is_dimmed(data, name)]
    shown = {name: entries[name] for name in order if name not in dimmed}
    if len(entries) < 2:
        return
    if dimmed:
        from matplotlib.lines import Line2D

        marks = all(str(entries[name].get_linestyle()) == "None" for name in dimmed)
        shown["others"] = Line2D([], [], color=GREY, marker="o" if marks else "", linestyle="none" if marks else "-")
    labels = [f"{name} {behind[name]}" if name in behind else name for name in shown]
    wrapped = [textwrap.fill(label, 2 * LABEL) for label in labels]
    lined = any(str(getattr(handle, "get_linestyle", str)()) not in ("None", "") for handle in shown.values())
    mark = (4.2 if lined else 3.0) * SMALL / 72  # inches of a mark and of the space around it
    columns = _columns([text_width(label) + mark for label in wrapped], width_of(data) - 0.15)
    if columns == 1 and len(wrapped) > LONG:
        wrapped = [textwrap.fill(label, LABEL) for label in labels]
        columns = _columns([text_width(label) + mark for label in wrapped], width_of(data) - 0.15)
    how = {"handlelength": 2.2 if lined else 1.0, "columnspacing": 1.0, "handletextpad": 0.5, "labelspacing": 0.3}
    handles = list(shown.values())
    figure.legend(handles, wrapped, loc="outside upper center", ncols=columns, borderpad=0, borderaxespad=0.7, **how)
    lines = max(sum(label.count("\n") + 1 for label in part) for part in _parts(wrapped, columns))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.14 * lines)


def text_width(text: str) -> float:
    """The width of the longest line of a text in the smallest type, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=LOOK["font.family"], size=SMALL)
    widths = [text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in text.splitlines()]
    return float(max(widths, default=0.0) / 72)


def _columns(widths: Sequence[float], room: float) -> int:
    """As many columns as fit, of entries so many inches wide, that are set column by column."""
    for columns in range(min(6, len(widths)), 1, -1):
        if sum(map(max, _parts(widths, columns))) <= room:
            return columns
    return 1


def _parts(entries: Sequence[Any], columns: int) -> list[Sequence[Any]]:
    """The columns of a legend, as matplotlib sets them: the first ones are one entry longer."""
    least, longer = divmod(len(entries), columns)
    parts, start = [], 0
    for column in range(columns):
        end = start + least + (column < longer)
        parts.append(entries[start:end])
        start = end
    return parts


def caption_of(data: Mapping[str, Any]) -> str:
    """The caption of a picture: what a reader has to know of its figures, in whole sentences."""
    module = module_of(data["kind"])
    return small_print(data, module.said(data))


def paragraph(caption: str) -> str:
    """A caption as a terminal shows it, in lines that break at spaces alone."""
    return textwrap.fill(caption, TERMINAL, break_on_hyphens=False)


def small_print(data: Mapping[str, Any], said: Sequence[str]) -> str:
    """Suite, backbone, shots, seeds and what else a reader has to know."""
    shots = ", ".join(map(str, data["shots"]))
    missing = data.get("left_out", [])
    counts = counted(data)
    facts = [
        f"{data['protocol']} on {data['suite']}, backbone {data['backbone']}, {shots} shots, {_seeds(counts)}.",
        *said,
    ]
    if missing:
        facts.append(f"Not shown, without such a figure: {', '.join(missing)}.")
    if data["reconstructed"]:
        facts.append(f"{RECONSTRUCTED}{STUCK}reconstructed without its authors' code.")
    if data["note"]:
        facts.append(f"{data['note'][:1].upper()}{data['note'][1:]}.")
    return " ".join(facts)


def counted(data: Mapping[str, Any]) -> dict[str, str]:
    """How many seeds each row that is shown has."""
    missing = data.get("left_out", [])
    return {series: count for series, count in data["n"].items() if series not in missing}


def bars_are(data: Mapping[str, Any]) -> list[str]:
    """What bars are, where any row has several seeds."""
    several = any(count != "1" for count in counted(data).values())
    return ["Bars: population standard deviation over seeds."] if several else []


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
        UsageError: matplotlib is missing, a .pgf has no LaTeX to measure its text, or the file cannot be written.
    """
    check_picture(path)
    form = path.suffix[1:]
    dated = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
    with look():
        if form == "pgf":
            _use_latex(path)
        figure = draw(data)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            undated: dict[str, Any] = {"metadata": {dated[form]: None}} if form in dated else {}
            figure.savefig(path, dpi=DPI, **undated)
        except OSError as error:
            raise UsageError(f"The picture {path} cannot be written ({error.strerror}).") from error


def _use_latex(path: Path) -> None:
    """Let matplotlib measure text with the LaTeX that is installed.

    Raises:
        UsageError: There is none.
    """
    import matplotlib

    found = next((name for name in LATEX if shutil.which(name)), "")
    if not found:
        raise UsageError(
            f"The picture {path} needs {', '.join(LATEX[:-1])} or {LATEX[-1]} to measure its text, and none is "
            "installed; install one, or write a .pdf."
        )
    matplotlib.rcParams["pgf.texsystem"] = found


def check_picture(path: Path) -> None:
    """Raises UsageError unless the file's name ends as one of `FORMATS`."""
    if path.suffix[1:] not in FORMATS:
        raise UsageError(f"The picture {path} cannot be written: its name must end in {', '.join(FORMATS)}.")
