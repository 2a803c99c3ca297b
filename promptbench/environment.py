"""Settings that environment variables hold."""

from __future__ import annotations

import os

from promptbench.config import UsageError


def number(variable: str, default: float, unit: str) -> float:
    """What a variable says, in `unit`; `default` where it is not set.

    Raises:
        UsageError: It is no number from 0 on.
    """
    text = os.environ.get(variable, "")
    try:
        value = float(text or default)
        if 0 <= value < float("inf"):
            return value
    except ValueError:
        pass
    raise UsageError(f"{variable} takes a number of {unit} from 0 on, not {text!r}.")
