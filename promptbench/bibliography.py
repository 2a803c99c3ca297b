"""The BibTeX entries of `results/published/papers.bib`, as a document needs them."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib import resources

_ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)
_OURS = re.compile(r",\s*^\s*promptbench\s*=\s*\{[^}]*\}", re.MULTILINE)  # a field that only this package reads


def entries(keys: Collection[str]) -> str:
    """The entries with these keys, in the file's order, as a file of their own."""
    text = resources.files("promptbench.published").joinpath("papers.bib").read_text(encoding="utf-8")
    wanted = [_OURS.sub("", match[0]) for match in _ENTRY.finditer(text) if match[1] in keys]
    return "\n\n".join(wanted) + "\n"
