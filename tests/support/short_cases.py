"""Which cases of a parametrised test `make fast` does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *short: Any) -> list[Any]:
    """The cases as `pytest.mark.parametrize` takes them, all but the short ones marked `slow`."""
    return [case if case in short else slow(case) for case in cases]


def slow(case: Any) -> Any:
    """One case, marked; a tuple holds the values of several parameters."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
