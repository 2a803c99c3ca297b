"""A part of what is checked on a GPU: rows, each of which holds or not, written down as they come."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptbench.storage.atomic import write_atomically

NEEDS_CUDA = "needs CUDA"
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where and how much is checked.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        short: Whether a few cases of each part do, as on a CPU.
    """

    device: str
    short: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Part:
    """What is checked in a process of its own.

    Attributes:
        about: What it shows, half a sentence.
        seconds: It may take on a GPU, with the start of its process; then it is ended.
        rows: Yields what it finds, row by row: `what`, whether it `passed`, and figures.
        judged: Whether the exit code depends on it.
    """

    about: str
    seconds: int
    rows: Callable[[Setting], Iterator[Row]]
    judged: bool = True


def case(what: str, check: Callable[[], Row]) -> Row:
    """The row of one case; an error in it is a row that did not pass, and the next case follows."""
    began = time.perf_counter()
    try:
        row = {"passed": True, **check()}
    except Exception as error:
        first = first_of(error)
        last = traceback.extract_tb(first.__traceback__)[-1]
        row = {"passed": False, "error": said_of(first), "at": f"{Path(last.filename).name}:{last.lineno}"}
    return {"what": what, **row, "seconds": round(time.perf_counter() - began, 3)}


def first_of(error: BaseException) -> BaseException:
    """The error during whose handling the others came: a GPU that failed fails in what cleans up after it, too."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def said_of(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def left_out(what: str, reason: str = NEEDS_CUDA) -> Row:
    """The row of a case that was not tried."""
    return {"what": what, "passed": None, "left_out": reason}


def carry_out(part: Part, setting: Setting, path: Path) -> None:
    """Check a part in this process; the file is written anew after each row, so that an end by force leaves it."""
    rows: list[Row] = []
    record: dict[str, Any] = {"ended": False, "rows": rows}
    for row in part.rows(setting):
        rows.append(row)
        write_json(path, record)
    write_json(path, {**record, "ended": True})


def write_json(path: Path, record: Any) -> None:
    """Writes a file of the report."""
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def passed(record: dict[str, Any]) -> bool:
    """Whether a part came to its end without an error and none of its rows failed."""
    ended = bool(record["ended"]) and not record.get("error")
    return ended and all(row["passed"] is not False for row in record["rows"])
