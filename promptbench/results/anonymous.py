"""Results without a trace of who made them where, for a blind review.

Left out are the commit, the time of the day, host names, home folders and, of every path, all but its last part. What
a figure depends on stays: settings, seeds, versions of libraries, digests of images and of weights. The name of a run
follows from its settings, so that one whose settings name a path gets another.
"""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptbench.config import UsageError, path_of
from promptbench.results.result import Result, check_writable, read_results, write_result
from promptbench.results.spec import Spec, to_plain

_PATH = re.compile(
    r"(?:file://)?(?<![\w.:/])(?:[A-Za-z]:[\\/]|~[\w.-]*/|\\\\|/)[^\s'\"`,;()\[\]{}]*[^\s'\"`,;:.()\[\]{}]"
)
_PART = re.compile(r"[\\/]")
_SHORTEST = 3  # letters of a name that is looked for: shorter ones are words
PERSON, HOST = "someone", "somewhere"


def anonymous(result: Result) -> Result:
    """A copy of a result that does not say who made it where.

    Its `path` is not kept, and its time is the day alone.
    """
    document = {name: to_plain(getattr(result, name)) for name in ("spec", "conditions", "notes", "versions")}
    cleared: dict[str, Any] = _cleared(document)
    return replace(
        result,
        spec=Spec.stored(cleared["spec"]),
        conditions=cleared["conditions"],
        notes=cleared["notes"],
        versions=cleared["versions"],
        commit="",
        created=f"{result.created[:10]}T00:00:00+00:00" if re.match(r"\d{4}-\d\d-\d\dT", result.created) else "",
    )


def write_anonymous(places: Iterable[Path | str], output: Path | str) -> list[Path]:
    """Copies results, without predictions and trainings, into a folder and says nothing of who made them where.

    Args:
        places: Folders that `run` wrote to, or result files.
        output: A folder; files that are there stay.

    Raises:
        UsageError: There are no results, or the folder cannot be written.
    """
    places = list(places)
    output = path_of(output)
    results = read_results(*places)
    if not results:
        raise UsageError(f"There are no results in {', '.join(map(str, places))}; name folders that `run` wrote to.")
    check_writable(output)
    return [write_result(output, anonymous(result)) for result in results]


def _cleared(value: Any) -> Any:
    """JSON without paths and names of machines and people, its keys included."""
    if isinstance(value, Mapping):
        return {_text(str(key)): _cleared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleared(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    said = _PATH.sub(lambda found: _PART.split(found[0])[-1], _after_colons(text))
    for name, instead in _names().items():
        said = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", instead, said)
    return said


def _after_colons(text: str) -> str:
    """The text with the path behind a colon cut, `ViT-B-16:/data/weights.pt` or `file:/data/sample.json`."""
    return re.sub(r"(?<=[\w.-]):(?!//)(~?[\\/][^\s'\"`,;]*)", lambda found: f":{_PART.split(found[1])[-1]}", text)


def _names() -> dict[str, str]:
    """The names of this machine and of who is at work here, and what stands in their place."""
    host = socket.gethostname()
    found = {host: HOST, host.partition(".")[0]: HOST, str(Path.home()): PERSON, _user(): PERSON}
    common = {"root", "user", "admin", "localhost", "home"}  # which name nobody
    return {name: instead for name, instead in found.items() if len(name) >= _SHORTEST and name not in common}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # nobody that this machine knows
        return ""
