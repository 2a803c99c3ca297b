"""Which pages of evidence there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from promptbench.config import unknown
from promptbench.show.tables.show import Question

PAGES: tuple[str, ...] = ("calibration", "controls", "open_world", "robustness", "sensitivity")
"""Their modules, which are imported when they are asked for."""


def page_of(name: str, question: Question) -> str:
    """A page as Markdown.

    Args:
        name: One of `PAGES`.
        question: Which stored results it is about; the page knows its protocol itself.

    Raises:
        UsageError: There is no such page, or there are no results for it.
    """
    if name not in PAGES:
        raise unknown("page", name, PAGES)
    page: Callable[[Question], str] = importlib.import_module(f"promptbench.show.evidence.{name}").page
    return page(question)
