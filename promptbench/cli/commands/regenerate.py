"""`promptbench regenerate`: tables, pictures and pages as the file `regenerate.yaml` of a folder of results lists them.

    tables:
      - {file: base2new.md, protocol: base2new}
    plots:
      - {file: plots/gain.png, kind: gain, column: new}
    pages:
      - {file: controls.md, page: controls}

Besides `file`, `kind` and `page` an entry has the flags of `promptbench table`, `plot` or `evidence`; `true` is a flag
without a value. Where `results` are not named they are those of the folder.
A picture is compared by its data, which are stored beside it; those that a model computes again, to the rounding of
another processor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptbench.cli.flags import Parser, add_asked, add_picture, add_tables, asked_of, picture_of, question_of
from promptbench.config import UsageError, load_yaml, path_of, text_of, unknown
from promptbench.show.plots.picture import (
    BEYOND_RESULTS,
    OF_A_MODEL,
    check_picture,
    data_path,
    module_of,
    to_text,
    write_picture,
)

HELP = "rebuild committed tables, plots and pages from the committed results"
EXAMPLE = "promptbench regenerate --check"
LIST = "regenerate.yaml"
DEFAULT = "results"
PATHS = ("results", "run", "image")  # flags that name files, from the folder on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench regenerate` to its parser."""
    parser.add_argument(
        "folders", nargs="*", metavar="DIR", help=f"have a {LIST}, or folders that do; default: results"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something differs")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench regenerate`; returns the exit code, 1 where `--check` finds a difference."""
    rebuild = check if options.check else write
    outcomes = []
    for listed in lists_in(options.folders or [DEFAULT]):
        for item in items_of(listed):
            outcomes.append(rebuild(item))
            print(f"{item.file}: {outcomes[-1]}")
    return int(DIFFERS in outcomes)


@dataclass(frozen=True)
class Item:
    """Something to build.

    Attributes:
        file: The table or picture.
        text: Makes the table's text, or the text of the picture's data.
        stored: Where that text is.
        picture: Whether `file` is drawn from it.
        from_results: Whether result files alone decide it.
        of_a_model: Whether a model computes it again.
    """

    file: Path
    text: Callable[[], str]
    stored: Path
    picture: bool = False
    from_results: bool = True
    of_a_model: bool = False


ROUNDING = 1e-4  # of cosines, which a picture shows as shades
SAME = "the same"
DIFFERS = "differs"
WRITTEN = "written"


def check(item: Item) -> str:
    """Whether the files are what the results give."""
    old = _read(item.stored)
    try:
        new = item.text()
    except NothingThere as gap:
        if old is None:
            return f"skipped. {gap}"
        return DIFFERS if item.from_results or not item.file.exists() else f"not checked. {gap}"
    if not item.file.exists() or old is None:
        return DIFFERS
    return SAME if old == new or (item.of_a_model and _equal_to_rounding(old, new)) else DIFFERS


def _equal_to_rounding(old: str, new: str) -> bool:
    """Whether two pictures' data are the same but for the last digits of their numbers."""
    import json

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return abs(a - b) <= ROUNDING
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(equal, a, b))
        return bool(a == b)

    try:
        return equal(json.loads(old), json.loads(new))
    except ValueError:  # what is stored is no data of a picture
        return False


def write(item: Item) -> str:
    """Write the files anew; a picture whose predictions are not here is drawn from its stored data."""
    import json

    old = _read(item.stored)
    try:
        new = item.text()
        outcome = SAME if old == new else WRITTEN
    except NothingThere as gap:
        if old is None or item.from_results:
            return f"skipped. {gap}"
        new, outcome = old, f"drawn from {item.stored.name}. {gap}"
    if old != new:
        try:
            item.stored.parent.mkdir(parents=True, exist_ok=True)
            item.stored.write_bytes(new.encode())
        except OSError as error:
            raise UsageError(f"{item.stored} cannot be written ({error.strerror}).") from error
    if item.picture:
        write_picture(json.loads(new), item.file)
    return outcome


class NothingThere(Exception):
    """There are no results for something; the sentence says which."""


def lists_in(folders: Sequence[str]) -> list[Path]:
    """The lists in folders and below them.

    Raises:
        UsageError: A folder has none.
    """
    found = []
    for folder in folders:
        below = sorted(path_of(folder).rglob(LIST))
        if not below:
            raise UsageError(
                f"There is no {LIST} in {folder} or below it; name a folder that has one, or run this in a checkout of "
                "promptbench."
            )
        found += below
    return list(dict.fromkeys(found))


def items_of(listed: Path) -> Iterator[Item]:
    """What a list says to build.

    Raises:
        UsageError: It is no such list, or an entry is not what `promptbench table`, `plot` or `evidence` takes.
    """
    import yaml

    try:
        raw = load_yaml(text_of(listed))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{listed} cannot be read: {reason}.") from error
    if not isinstance(raw, Mapping) or not all(isinstance(entries, list) for entries in raw.values()):
        raise UsageError(f"{listed} must have lists of mappings under 'tables', 'plots' and 'pages'.")
    for group, entries in raw.items():
        if group not in MAKERS:
            raise UsageError(f"{listed}: {unknown('key', group, MAKERS)}")
        for entry in entries:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("file"), str):
                raise UsageError(f"{listed}: an entry of '{group}' is a mapping with 'file', not {entry!r}.")
            try:
                check_inside(listed.parent, entry["file"])
                yield MAKERS[group](listed.parent, entry)
            except UsageError as error:
                raise UsageError(f"{listed}, {entry['file']}: {error}") from error


def check_inside(folder: Path, file: str) -> None:
    """Raises UsageError where a file to write lies outside of the folder of its list."""
    try:
        inside = folder.resolve() in (folder / file).resolve().parents
    except (OSError, ValueError, RuntimeError):  # no path at all, or links in a circle
        inside = False
    if not inside:
        raise UsageError("'file' must lie in the folder of the list; name it from there, without '..'.")


def _table(folder: Path, entry: Mapping[str, Any]) -> Item:
    protocol = entry.get("protocol")
    if not isinstance(protocol, str):
        raise UsageError(f"'protocol' must name one protocol, not {protocol!r}.")
    parser = Parser(prog="promptbench table")
    add_tables(parser)
    options = parser.parse_args(_words(folder, entry, ("file",)))

    def text() -> str:
        from promptbench.results.result import read_results
        from promptbench.show.tables.show import show, stored_tables

        _need_results(options.results)
        if protocol not in {result.spec.protocol for result in read_results(*options.results)}:
            raise NothingThere(f"There are no {protocol} results in {', '.join(options.results)}.")
        question = question_of(options)
        return show(stored_tables(question), question.view)

    return Item(folder / entry["file"], text, stored=folder / entry["file"])


def _plot(folder: Path, entry: Mapping[str, Any]) -> Item:
    file = folder / entry["file"]
    check_picture(file)
    kind = str(entry.get("kind", ""))
    module_of(kind)  # which there has to be
    parser = Parser(prog="promptbench plot")
    add_picture(parser)
    options = parser.parse_args(_words(folder, entry, ("file", "kind")), argparse.Namespace(kind=kind))

    def text() -> str:
        from promptbench.show.plots.source import NothingToShow

        _need_results(options.results)
        try:
            return to_text(picture_of(options))
        except NothingToShow as error:
            raise NothingThere(str(error)) from error

    from_results, of_a_model = kind not in BEYOND_RESULTS, kind in OF_A_MODEL
    return Item(file, text, data_path(file), picture=True, from_results=from_results, of_a_model=of_a_model)


def _page(folder: Path, entry: Mapping[str, Any]) -> Item:
    parser = Parser(prog="promptbench evidence")
    add_asked(parser)
    options = parser.parse_args(_words(folder, entry, ("file", "page")))

    def text() -> str:
        from promptbench.show.evidence.pages import page_of

        _need_results(options.results)
        return page_of(str(entry.get("page", "")), asked_of(options))

    return Item(folder / entry["file"], text, stored=folder / entry["file"])


MAKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Item]] = {"tables": _table, "plots": _plot, "pages": _page}


def _words(folder: Path, entry: Mapping[str, Any], apart: Sequence[str]) -> list[str]:
    """An entry as the words of a command line."""
    words = []
    for key, value in {"results": ".", **entry}.items():
        if value is True:
            words.append(f"--{key}")
        elif key not in apart and value is not False:
            values = [str(item) for item in (value if isinstance(value, list) else [value])]
            words += [f"--{key}", *(str(folder / item) if key in PATHS else item for item in values)]
    return words


def _need_results(places: Sequence[str]) -> None:
    """A folder without `results` is not read: the JSON files in it may be data of pictures."""
    for place in map(Path, places):
        if not place.exists() or (place.is_dir() and not (place / "results").is_dir()):
            raise NothingThere(f"There are no results in {place}.")


def _read(path: Path) -> str | None:
    return path.read_bytes().decode() if path.exists() else None
