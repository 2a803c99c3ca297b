"""Texts of different lengths laid end to end, so that no row of a transformer is spent on padding.

The tokens that belong to one class are few, 2 to 15, and differ in number. Padded to the longest, half of all rows
would be padding. Here whole texts share a row of about 64 tokens, and a mask lets each token see its own text alone.

Letters: K texts, T tokens of the longest, G rows of C tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

WIDTHS = range(40, 91)  # of rows; longer ones cost attention, shorter ones are hard to fill


@dataclass(frozen=True)
class Packing:
    """Where every token of K texts (K, T) stands in G rows of C tokens.

    Attributes:
        sources: (G, C) int64, k * T + t of the token that stands there; padding repeats the first token.
        mask: (G, C, C) float32, 0 where a token may look, at itself and before it in its own text, and -inf elsewhere.
        last: (G, q) int64, where in its row the last token of each of up to q texts stands; 0 where there are fewer.
        order: (K,) int64, index of each text in `last`, flattened.
    """

    sources: Tensor
    mask: Tensor
    last: Tensor
    order: Tensor


@lru_cache(maxsize=64)
def pack(lengths: tuple[int, ...], width: int, device: torch.device) -> Packing:
    """Texts of so many tokens, cut from (K, width), in rows of the length that leaves least padding."""
    rows, C = min(((fill(lengths, size), size) for size in sizes(lengths)), key=lambda tried: len(tried[0]) * tried[1])
    q = max(map(len, rows))
    sources, owner = torch.zeros(len(rows), C, dtype=torch.long), torch.full((len(rows), C), -1)
    last, order = torch.zeros(len(rows), q, dtype=torch.long), torch.zeros(len(lengths), dtype=torch.long)
    for g, row in enumerate(rows):
        start = 0
        for place, k in enumerate(row):
            end = start + lengths[k]
            sources[g, start:end] = torch.arange(k * width, k * width + lengths[k])
            owner[g, start:end] = k
            last[g, place], order[k], start = end - 1, g * q + place, end
    seen = (owner.unsqueeze(2) == owner.unsqueeze(1)).tril() & (owner >= 0).unsqueeze(2)
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    return Packing(sources.to(device), mask.to(device), last.to(device), order.to(device))


def sizes(lengths: Sequence[int]) -> list[int]:
    """Lengths of a row that are tried: all texts in one where that is short enough."""
    longest, total = max(lengths), sum(lengths)
    return [total] if total <= WIDTHS[-1] else [size for size in WIDTHS if size >= longest] or [longest]


def fill(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Texts in rows of at most `size` tokens, by first fit decreasing: lists of their indices."""
    waiting: dict[int, list[int]] = {}
    for k in range(len(lengths) - 1, -1, -1):
        waiting.setdefault(lengths[k], []).append(k)
    left = Counter(lengths)
    rows: list[list[int]] = []
    while left.total():
        row, room = [], size
        for length in sorted(waiting, reverse=True):
            for _ in range(min(left[length], room // length)):
                row.append(waiting[length].pop())
                left[length] -= 1
                room -= length
        rows.append(row)
    return rows
