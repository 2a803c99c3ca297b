"""One check: what was measured, what it should be, and what follows."""

from __future__ import annotations

from dataclasses import dataclass

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
