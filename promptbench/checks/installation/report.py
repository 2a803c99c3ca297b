"""What `promptbench verify` finds: checks, and a JSON and a Markdown file of them that can be attached to an issue.

Of paths on the user's machine nothing but last parts is written.
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from promptbench.config import UsageError
from promptbench.runs.plan import available_cores
from promptbench.runs.session import Session
from promptbench.storage.atomic import write_atomically
from promptbench.storage.versions import git_commit, library_versions, utc_now

PASS, FAIL, COULD_NOT = "pass", "FAIL", "could not"

Value = float | str | None


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one comparison of a measured value with a known one found.

    Attributes:
        part: What it belongs to: `parity`, `data`, `sample`, `zero-shot` or `training`.
        what: What is checked.
        outcome: `PASS`, `FAIL` or `COULD_NOT`.
        measured: Here; None where nothing could be measured.
        expected: What it should be; None where nobody says.
        tolerance: What still counts as equal, in the unit of `measured`; None where nothing is compared, 0 where only
            equality will do.
        why: Why it could not be checked, or what else has to be known of it.
    """

    part: str
    what: str
    outcome: str
    measured: Value = None
    expected: Value = None
    tolerance: float | None = None
    why: str = ""

    def line(self) -> str:
        """`pass       zero-shot, dtd, base/accuracy: 53.24 vs 53.24, tolerance 0.20; a remark`."""
        found = "" if self.measured is None else f"{shown(self.measured)} vs {shown(self.expected)}"
        if self.tolerance is not None:
            found += f", tolerance {shown(self.tolerance)}"
        said = "; ".join(filter(None, [found, " ".join(self.why.split())]))
        return f"{self.outcome:<10} {self.part}, {self.what}: {said}"


def equality(part: str, what: str, measured: Value, expected: Value) -> Check:
    """A check of two values that have to be equal."""
    outcome = PASS if measured == expected else FAIL
    return Check(part=part, what=what, outcome=outcome, measured=measured, expected=expected, tolerance=0)


def could_not(part: str, what: str, why: str) -> Check:
    """A check for which something is missing: `why` says what."""
    return Check(part=part, what=what, outcome=COULD_NOT, why=why)


def shown(value: Value) -> str:
    """A value as it is printed: points with two digits, rounding errors with an exponent."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value == 0:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.1e}"


SCHEMA = 1
SUFFIXES = (".json", ".md")
_ABSOLUTE = re.compile(r"(?<![\w/.-])~?/(?!/)[^\s,;:'\"()|]+")

Environment = Mapping[str, Any]


def environment(session: Session, train: bool) -> dict[str, Any]:
    """What decides the figures and is no check: versions, machine, weights."""
    backbone = vars(session).get("backbone")  # loaded if something needed it
    return {
        "created": utc_now(),
        "commit": git_commit(),
        "versions": library_versions(),
        "platform": platform.platform(),
        "device": _device(session.device),
        "threads": session.suite.threads or available_cores(),
        "suite": session.suite.name,
        "backbone": ":".join(Path(part).name for part in session.suite.backbone.split(":")),
        "weights_hash": backbone.weights_hash if backbone is not None else "",
        "data_roots": [root.name for root in session.roots],
        "train": train,
    }


def summary(checks: Sequence[Check]) -> str:
    """`41 passed, 0 failed, 3 could not be checked`."""
    counts = Counter(check.outcome for check in checks)
    return f"{counts[PASS]} passed, {counts[FAIL]} failed, {counts[COULD_NOT]} could not be checked"


def check_place(base: Path) -> None:
    """Tries a file where the report will be.

    Raises:
        UsageError: That is impossible.
    """
    try:
        with tempfile.TemporaryFile(dir=base.parent):
            pass
    except OSError as error:
        raise UsageError(_unwritable(base, error)) from error


def write_report(base: Path, facts: Environment, checks: Sequence[Check], session: Session, evidence: str = "") -> None:
    """Writes `base`.json and `base`.md, in place of earlier ones; what they say of paths is cut to last parts.

    `evidence` is what the results say besides; it stands on the page alone.

    Raises:
        UsageError: They cannot be written.
    """
    public = [replace(check, why=without_paths(check.why, session)) for check in checks]
    record = {"schema": SCHEMA, "environment": facts, "summary": summary(checks), "checks": [asdict(c) for c in public]}
    page = markdown(facts, public) + (f"\n{without_paths(evidence, session)}" if evidence else "")
    texts = (json.dumps(record, indent=1, allow_nan=False) + "\n", page)
    try:
        for suffix, text in zip(SUFFIXES, texts, strict=True):
            write_atomically(Path(f"{base}{suffix}"), partial(_write, text))
    except OSError as error:
        raise UsageError(_unwritable(base, error)) from error


def markdown(facts: Environment, checks: Sequence[Check]) -> str:
    """The report as Markdown: a table of the environment and one of all checks."""
    flat = {**facts, "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items())}
    flat["data_roots"] = ", ".join(facts["data_roots"])
    lines = ["# promptbench verify", "", f"{summary(checks)}.", "", "| environment | |", "| --- | --- |"]
    lines += [_row(name.replace("_", " "), str(value)) for name, value in flat.items()]
    lines += ["", "| outcome | part | what | measured | expected | tolerance | |", "| --- " * 7 + "|"]
    for check in checks:
        numbers = [_cell(value) for value in (check.measured, check.expected, check.tolerance)]
        lines.append(_row(check.outcome, check.part, check.what, *numbers, check.why))
    return "\n".join(lines) + "\n"


def without_paths(text: str, session: Session) -> str:
    """The text with absolute paths cut: data roots and the output folder to their names, others to their last part."""
    places = sorted({*session.roots, session.output.absolute()}, key=lambda place: -len(str(place)))
    for place in places:
        text = text.replace(str(place), place.name) if place.name else text
    return _ABSOLUTE.sub(_last_part, text)


def _last_part(path: re.Match[str]) -> str:
    """The last part of an absolute path; a full stop that ends the sentence stays."""
    last = path[0].rstrip("/.").rpartition("/")[2]
    return f"{last}." if path[0].endswith(".") else last


def _write(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _unwritable(base: Path, error: OSError) -> str:
    return f"The report {base}.json cannot be written ({error.strerror or error}); name another place with -o."


def _row(*cells: str) -> str:
    """A line of a Markdown table; what would break it is taken out of the cells."""
    plain = [" ".join(cell.replace("|", "/").split()) for cell in cells]
    return f"| {' | '.join(plain)} |"


def _cell(value: float | str | None) -> str:
    return "" if value is None else shown(value)


def _device(device: str) -> str:
    if device == "cpu":
        return device
    import torch

    return f"{device}, {torch.cuda.get_device_name()}"
