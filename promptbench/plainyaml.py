"""YAML that a user wrote, as plain Python values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

MOST_VALUES, DEEPEST = 100_000, 40  # of a YAML file, aliases counted as often as they are used


def load_yaml(text: str) -> Any:
    """What a YAML text says, in plain Python values that can be walked through.

    Raises:
        yaml.YAMLError, ValueError: It is no YAML, or its values are nested too deeply, or, with aliases of aliases, too
            many.
    """
    try:
        raw = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    waiting, met = [(raw, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        met += 1
        if met > MOST_VALUES or depth > DEEPEST:
            raise ValueError("its values are nested too deeply" if depth > DEEPEST else "it has too many values")
        if isinstance(value, Mapping):
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(item, depth + 1) for item in value]
    return raw
