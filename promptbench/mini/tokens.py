"""Token numbers of captions, equal to those of open_clip's tokenizer and faster: every word is encoded once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

START, END = 49406, 49407
"""Numbers of the tokens before and after a text."""
VOCABULARY = 49408
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")


class CachedTokenizer:
    """Encodes texts word by word with open_clip's own byte pair encoding and remembers the words.

    Args:
        tokenizer: open_clip's `SimpleTokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}

    def _row(self, text: str) -> list[int]:
        """The token numbers of one text."""
        row = [START]
        for word in _WORD.findall(text.lower()):
            if word not in self._words:
                self._words[word] = self._tokenizer.encode(word)
            row += self._words[word]
        return [*row, END]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token numbers (N, L) int64 of ASCII texts without contractions, padded with 0 to the longest of them."""
        rows = [self._row(text) for text in texts]
        out = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for line, row in zip(out, rows, strict=True):
            line[: len(row)] = row
        return out
