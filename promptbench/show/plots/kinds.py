"""The kinds of plots, their data as text, and pictures of them.

A kind is a module of this package with

    PROTOCOL                 the protocol that it shows unless another is named
    STORED                   whether result files alone decide its data; otherwise predictions or weights do too
    data(source) -> dict     a pure function of what is stored: text, numbers, lists and dicts
    draw(data) -> Figure     the picture, which needs matplotlib
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from promptbench.config import unknown

KINDS = ("shots", "base-new", "gain", "seeds", "cost", "ood", "ablation", "heatmap")
DIGITS = 6  # decimals of stored plot data: fewer than any machine gets right, more than any picture shows


def module_of(kind: str) -> ModuleType:
    """The module of a kind.

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
    """The value with every float rounded; there is no minus zero."""
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def data_path(picture: Path) -> Path:
    """Where the data of a picture are stored."""
    return picture.with_suffix(".json")


def write_picture(data: Mapping[str, Any], path: Path) -> None:
    """Draw plot data, as `to_text` stores them, to a file.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.
    """
    from promptbench.show.plots.style import save

    stored = json.loads(to_text(data))  # so that a picture does not depend on what the text leaves out
    save(module_of(stored["kind"]).draw, stored, path)
