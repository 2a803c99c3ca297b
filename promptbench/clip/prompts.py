"""Learned context: where its first values come from and how it stands among the class tokens.

Letters: K classes, L text tokens, n prompt tokens, d width of the text tower.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptbench.clip.backbone import Backbone
from promptbench.clip.text_tower import Tokens
from promptbench.config import UsageError

INIT_STD = 0.02  # of random contexts, in every public implementation
MAX_WORDS = 4  # the authors of MaPLe and PromptSRC start longer contexts at random, whatever ctx_init says


def readable(name: str) -> str:
    """A class name as it is read to the model: underscores become spaces."""
    return name.replace("_", " ")


def words_of(ctx_init: str) -> str:
    """The initial words of a context, as they are tokenised; '' for a random context."""
    return readable(ctx_init).strip()


def words_for(ctx_init: str, n: int) -> str:
    """`words_of(ctx_init)` for a context that takes the first n of their tokens; '' if n is more than four."""
    return words_of(ctx_init) if n <= MAX_WORDS else ""


def context_length(words: str, n_ctx: int | None) -> int:
    """How many context tokens: as many as `words` has, or `n_ctx` without words (None: 16, as in CoOp's paper).

    Raises:
        UsageError: If `n_ctx` contradicts the words.
    """
    if not words:
        return 16 if n_ctx is None else n_ctx
    count = len(words.split(" "))
    if n_ctx is not None and n_ctx != count:
        raise UsageError(
            f"n_ctx is {n_ctx}, but ctx_init '{words}' has {count} words; leave n_ctx out, or set ctx_init='' for a "
            "random context."
        )
    return count


def from_words(backbone: Backbone, words: str, n: int) -> Tensor:
    """Token embeddings (n, d) of the first n tokens of `words`."""
    tokens = backbone.embed_text([words])
    if int(tokens.eot[0]) - 1 < n:
        raise UsageError(f"n_ctx is {n}, but the initial words '{words}' have only {int(tokens.eot[0]) - 1} tokens.")
    return tokens.embeddings[0, 1 : 1 + n].clone()


def random_context(*shape: int) -> Tensor:
    """Random prompt tokens, normal with standard deviation 0.02."""
    return torch.empty(*shape).normal_(std=INIT_STD)


def initial_context(backbone: Backbone, words: str, n: int) -> Tensor:
    """First values (n, d) of a context: the first n tokens of `words`, or random without words."""
    return from_words(backbone, words, n) if words else random_context(n, backbone.text_width)


def sentence_tokens(backbone: Backbone, words: str, names: Sequence[str]) -> Tokens:
    """Tokens of `words name.` for each class, the prompt that learned tokens are then put into."""
    return backbone.embed_text([f"{words} {readable(name)}." for name in names])


@dataclass(frozen=True)
class Sentences:
    """Texts of K classes that begin with a learned context: [SOS], context, fixed words, class name, rest.

    Attributes:
        start: (1, d), [SOS].
        fixed: (m, d), what follows the context in all classes: words that are not learned; m may be 0.
        tokens: What comes after that, class by class.
    """

    start: Tensor
    fixed: Tensor
    tokens: Tokens

    def encode(self, backbone: Backbone, context: Tensor, deep: Mapping[int, Tensor] | None = None) -> Tensor:
        """Text features (..., K, D), not normalised, for a context (..., n, d); `deep` as in `encode_text`."""
        prefix = join(self.start, context, self.fixed)
        return backbone.encode_text(self.tokens.embeddings, self.tokens.eot, prefix, deep)


def sentences(backbone: Backbone, words: str, n: int, names: Sequence[str]) -> Sentences:
    """`words name.` for each class, where a context of n tokens replaces the first n of `words`; '': of n blanks."""
    tokens = sentence_tokens(backbone, words or " ".join(["X"] * n), names)
    shared = max(tokens.shared(), 1 + n)
    return Sentences(tokens.embeddings[0, :1], tokens.embeddings[0, 1 + n : shared], tokens.after(shared))


def name_lengths(backbone: Backbone, names: Sequence[str]) -> Tensor:
    """(K,) tokens of each class name alone."""
    return backbone.embed_text([readable(name) for name in names]).eot - 1


def arrangement(length: int, name_lengths: Tensor, n: int, before: int) -> Tensor:
    """Where each token of a sentence with learned context comes from.

    The sentence was tokenised as [SOS], n placeholders, name, rest. It becomes [SOS], the first `before` context
    tokens, the name, the other context tokens, rest.

    Args:
        length: L, tokens of the sentences.
        name_lengths: (K,), tokens of each name.
        n: Context tokens.
        before: How many of them stand before the name, 0 to n.

    Returns:
        (K, L) int64: an index below L means that token of the sentence, L + j means context token j.
    """
    at = torch.arange(length, device=name_lengths.device).expand(len(name_lengths), length)
    name_end = 1 + before + name_lengths.unsqueeze(1)  # (K, 1)
    index = at.clone()
    leading = (at >= 1) & (at < 1 + before)
    name = (at >= 1 + before) & (at < name_end)
    trailing = (at >= name_end) & (at < name_end + n - before)
    index = torch.where(leading, length + at - 1, index)
    index = torch.where(name, at + n - before, index)
    return torch.where(trailing, length + before + at - name_end, index)


def arrange(tokens: Tokens, context: Tensor, index: Tensor, start: int) -> Tensor:
    """Embeddings (K, L - start, d) of the arranged sentences from position `start` on.

    `context` is (n, d), or (K, n, d) where every class has its own.
    """
    K, _, d = tokens.embeddings.shape
    sources = torch.cat([tokens.embeddings, context.expand(K, *context.shape[-2:])], dim=1)  # (K, L + n, d)
    return sources.gather(1, index[:, start:, None].expand(-1, -1, d))


def join(*tokens: Tensor) -> Tensor:
    """Tokens (..., n, d) one after the other; leading axes are broadcast."""
    leading = torch.broadcast_shapes(*(t.shape[:-2] for t in tokens))
    return torch.cat([t.expand(*leading, *t.shape[-2:]) for t in tokens], dim=-2)


def other_classes(names: Sequence[str]) -> list[int]:
    """For each class another, every class once, whatever the order of `names`: the next by the check sums of names."""
    order = sorted(range(len(names)), key=lambda label: (zlib.crc32(names[label].encode()), names[label]))
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[label] for label in range(len(names))]
