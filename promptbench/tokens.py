"""Texts as tokens, before the text tower sees them.

Letters: K texts, L tokens, d width of the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Tokenizer = Callable[..., Tensor]


@dataclass(frozen=True)
class Tokens:
    """Texts as frozen token embeddings, cut at the longest text.

    Attributes:
        embeddings: (K, L, d), without positions.
        eot: (K,) int64, position of the [EOT] token, where the text feature is read.
        ids: (K, L) int64, the token ids; 0 after [EOT].
    """

    embeddings: Tensor
    eot: Tensor
    ids: Tensor

    def after(self, n: int) -> Tokens:
        """The same texts without their first n tokens."""
        return Tokens(self.embeddings[:, n:], self.eot - n, self.ids[:, n:])

    def shared(self) -> int:
        """How many leading tokens all K texts have in common, their [EOT] left out."""
        same = (self.ids == self.ids[:1]).all(dim=0).long().cumprod(dim=0).sum()
        return min(int(same), int(self.eot.min()))


def unknown_words(texts: Sequence[str], ids: Tensor, tokenizer: Tokenizer, known: frozenset[int]) -> list[str]:
    """The words of the texts (K) with ids (K, L) that hold a token outside `known`, each once, in order."""

    def is_new(row: Tensor) -> bool:
        return not known.issuperset(row[: int(row.argmax()) + 1].tolist())  # up to [EOT], the largest id

    return list(
        dict.fromkeys(
            word.strip(".,:;!?")
            for text, row in zip(texts, ids, strict=True)
            if is_new(row)
            for word in text.split()
            if is_new(tokenizer([word])[0])
        )
    )
