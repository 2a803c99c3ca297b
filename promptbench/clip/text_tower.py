"""The text tower of CLIP with a prefix that all classes share.

Under the causal mask the tokens before the class name, [SOS] and the context, cannot see it: their states are the same
for every class. They are computed once, and each class runs only its own tokens, which attend to the prefix. The
tokens of all classes are packed, without padding (see `Packing`).
Where a method changes blocks through `layer`, the whole sequences are built and open_clip's blocks run as they are.

Letters as in the rest of the package: S prefixes (images), K classes, n prefix tokens, T tokens of a class after the
prefix, d the width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from promptbench.clip import block as blocks

Layer = Callable[[int, Any, Tensor, Tensor | None], Tensor]

WIDTHS = range(40, 91)  # of rows; longer ones cost attention, shorter ones are hard to fill

Tokenizer = Callable[..., Tensor]


def causal_mask(queries: int, keys: int, like: Tensor) -> Tensor:
    """(queries, keys), 0 where the last `queries` of `keys` tokens may look and -inf after themselves."""
    mask = torch.full((queries, keys), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu(keys - queries + 1)


def replace_prompts(prefix: Tensor, prompts: Tensor) -> Tensor:
    """The prefix (S, n, d) with its tokens after [SOS] replaced by `prompts` (m, d) or (S, m, d)."""
    prompts = prompts.expand(len(prefix), *prompts.shape[-2:])
    return torch.cat([prefix[:, :1], prompts, prefix[:, 1 + prompts.shape[-2] :]], dim=1)


def check_deep(deep: Mapping[int, Tensor], prefix: Tensor | None, depth: int) -> None:
    """Raise a ValueError where deep prompts have nothing to replace."""
    for index, prompts in deep.items():
        if not 0 < index < depth:
            raise ValueError(f"deep text prompts for block {index}: the tower has blocks 1 to {depth - 1}")
        if prefix is None or prompts.shape[-2] >= prefix.shape[-2]:
            raise ValueError("deep text prompts replace tokens of the prefix after [SOS]: the prefix is too short")


def mean_length(eot: Tensor) -> float:
    """Tokens of a text, [EOT] included, where [EOT] stands at `eot` (K,)."""
    return float((eot + 1).float().mean())


class Texts(NamedTuple):
    """What is encoded: prefixes, each followed by the tokens of every class.

    Attributes:
        prefix: (S, n, d), without positions; None: the class tokens are whole texts.
        deep: Block index -> prompts (m, d) or (S, m, d) that replace the prefix's tokens after [SOS].
        suffix: (S or 1, K, T, d), without positions.
        eot: (K,), where [EOT] stands in `suffix`.
        layer: Runs each block in place of it; see `Backbone.encode_text`.
    """

    prefix: Tensor | None
    deep: Mapping[int, Tensor]
    suffix: Tensor
    eot: Tensor
    layer: Layer | None

    @property
    def sizes(self) -> tuple[int, int]:
        """How many prefixes S and classes K there are."""
        return max(len(self.suffix), 1 if self.prefix is None else len(self.prefix)), self.suffix.shape[1]

    def part(self, images: slice, classes: slice) -> Texts:
        """The texts of some images and some classes."""
        prefix = None if self.prefix is None else self.prefix[images]
        deep = {i: prompts[images] if prompts.dim() > 2 else prompts for i, prompts in self.deep.items()}
        suffix = self.suffix if len(self.suffix) == 1 else self.suffix[images]
        return Texts(prefix, deep, suffix[:, classes], self.eot[classes], self.layer)

    def placed(self, positions: Tensor) -> Texts:
        """These texts with positional embeddings (L, d) added."""
        n, T = 0 if self.prefix is None else self.prefix.shape[1], self.suffix.shape[2]
        prefix = None if self.prefix is None else self.prefix + positions[:n]
        return self._replace(prefix=prefix, suffix=self.suffix + positions[n : n + T])


Path = Callable[[Any, Texts], Tensor]  # `shared_path` or `full_path`


def in_chunks(path: Path, tower: Any, texts: Texts, most: int, learns: bool) -> Tensor:
    """Text features (S, K, D) by `path`, at most so many texts at a time.

    With more than that, images are encoded one group after the other, or classes where those of one image are too
    many; where something `learns`, chunks are computed again in the backward pass.
    """
    S, K = texts.sizes
    images, classes = max(1, most // K), min(K, most)
    if images >= S and classes >= K:
        return encode(path, tower, texts)
    draws = texts.layer is not None  # only a `layer` may draw at random (dropout)
    out = []
    for i in range(0, S, images):
        part = partial(encode_part, path, tower, texts, slice(i, i + images))
        out.append(by_classes(part, K, classes, learns, draws))
    return torch.cat(out)


def by_classes(run: Callable[[slice], Tensor], count: int, most: int, learns: bool, draws: bool = False) -> Tensor:
    """What `run` says of K classes, (..., K, D), at most so many at a time.

    Where something `learns`, each part is computed again in the backward pass, with what it `draws` at random drawn
    again.
    """
    parts = [slice(k, k + most) for k in range(0, count, most)]
    if learns:
        found = [checkpoint(run, part, use_reentrant=False, preserve_rng_state=draws) for part in parts]
    else:
        found = [run(part) for part in parts]
    return torch.cat(found, dim=-2)


def encode_part(path: Path, tower: Any, texts: Texts, images: slice, classes: slice) -> Tensor:
    """`encode` of some images and some classes."""
    return encode(path, tower, texts.part(images, classes))


def encode(path: Path, tower: Any, texts: Texts) -> Tensor:
    """Text features (S, K, D) by `path`."""
    return project(tower, path(tower.transformer.resblocks, texts.placed(tower.positional_embedding)))


def project(tower: Any, x: Tensor) -> Tensor:
    """Text features (..., D) of the states at [EOT] after all blocks, (..., d)."""
    x, projection = tower.ln_final(x), tower.text_projection
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def shared_path(resblocks: Any, texts: Texts) -> Tensor:
    """States at [EOT] (S, K, d) after all blocks; positional embeddings are already added."""
    prefix, deep, suffix, eot, layer = texts
    assert prefix is not None and layer is None
    S, n = prefix.shape[:2]
    packing = pack(tuple((eot + 1).tolist()), suffix.shape[2], eot.device)
    G, C = packing.sources.shape
    x = suffix.flatten(1, 2).index_select(1, packing.sources.flatten()).unflatten(1, (G, C))  # (S or 1, G, C, d)
    prefix_mask = causal_mask(n, n, prefix)
    mask = torch.cat([prefix.new_zeros(G, C, n), packing.mask.to(prefix.dtype)], dim=-1)  # (G, C, n + C)

    def behind(context: blocks.KeysValues, own: blocks.KeysValues) -> blocks.KeysValues:
        """What class tokens attend to: the prefix, then the tokens of their row."""
        return blocks.KeysValues(*(t.unsqueeze(1) for t in context)).expand(S, G).then(own.expand(S, G))

    for i, block in enumerate(resblocks[:-1]):
        if i in deep:
            prefix = replace_prompts(prefix, deep[i])
        if i:  # one product for all tokens: for the few rows of the prefix alone, all weights would be read again
            rows = torch.cat([prefix.flatten(0, 1), x.flatten(0, 2)])
            parts = (S * n, S * G * C)
            of_prefix, of_classes = blocks.projected(block, rows).split(parts)
            q, context = blocks.heads(block, of_prefix.unflatten(0, (S, n)))
            queries, own = blocks.heads(block, of_classes.unflatten(0, (S, G, C)))
            read_by_prefix = blocks.attend(q, context, prefix_mask).flatten(0, 1)
            read_by_classes = blocks.attend(queries, behind(context, own), mask).flatten(0, 2)
            rows = blocks.close(block, rows, torch.cat([read_by_prefix, read_by_classes]))
            of_prefix, of_classes = rows.split(parts)
            prefix, x = of_prefix.unflatten(0, (S, n)), of_classes.unflatten(0, (S, G, C))
        else:  # class tokens that are the same for all images, and that often need no gradient
            q, context = blocks.queries_keys_values(block, prefix)
            queries, own = blocks.queries_keys_values(block, x)
            x = blocks.finish(block, x, queries.expand(S, *queries.shape[1:]), behind(context, own), mask)
            prefix = blocks.finish(block, prefix, q, context, prefix_mask)
    last = resblocks[-1]  # only the state at [EOT] is read after it
    prefix = replace_prompts(prefix, deep[len(resblocks) - 1]) if len(resblocks) - 1 in deep else prefix
    context, own = blocks.keys_values(last, prefix), blocks.keys_values(last, x)
    at = packing.last.unsqueeze(-1)  # (G, q, 1)
    x, mask = x.take_along_dim(at.unsqueeze(0), dim=2), mask.take_along_dim(at, dim=1)
    queries = blocks.queries(last, x)
    x = blocks.finish(last, x, queries.expand(S, *queries.shape[1:]), behind(context, own), mask)
    return x.flatten(1, 2).index_select(1, packing.order)


def full_path(resblocks: Any, texts: Texts) -> Tensor:
    """As `shared_path`, with whole sequences (S * K, L, d) through open_clip's blocks, or through `layer`."""
    S, K = texts.sizes
    prefix, deep, suffix, eot, layer = texts
    n = 0 if prefix is None else prefix.shape[1]
    suffix = suffix.expand(S, *suffix.shape[1:])
    x = suffix if prefix is None else torch.cat([prefix.unsqueeze(1).expand(-1, K, -1, -1), suffix], dim=2)
    x = x.flatten(0, 1)  # (S * K, L, d)
    mask = causal_mask(x.shape[1], x.shape[1], x)
    for i, block in enumerate(resblocks):
        if i in deep:
            prompts = deep[i]
            if prompts.dim() == 3:
                prompts = prompts.repeat_interleave(K, dim=0)
            x = replace_prompts(x, prompts)
        x = block(x, attn_mask=mask) if layer is None else layer(i, block, x, mask)
    index = (eot + n).repeat(S).view(-1, 1, 1).expand(-1, 1, x.shape[-1])
    return x.gather(1, index).view(S, K, -1)


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
    """Texts of these lengths, cut from (K, width), packed in rows of the length that leaves least padding."""
    tried = [(fill(lengths, size), size) for size in sizes(lengths)]
    rows, C = min(tried, key=lambda packed: len(packed[0]) * packed[1])
    G, q = len(rows), max(map(len, rows))
    sources = torch.zeros(G, C, dtype=torch.long)
    owner = torch.full((G, C), -1)
    last = torch.zeros(G, q, dtype=torch.long)
    order = torch.zeros(len(lengths), dtype=torch.long)
    for g, row in enumerate(rows):
        start = 0
        for place, k in enumerate(row):
            end = start + lengths[k]
            sources[g, start:end] = torch.arange(k * width, k * width + lengths[k])
            owner[g, start:end] = k
            last[g, place] = end - 1
            order[k] = g * q + place
            start = end
    seen = (owner.unsqueeze(2) == owner.unsqueeze(1)).tril() & (owner >= 0).unsqueeze(2)
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    return Packing(sources.to(device), mask.to(device), last.to(device), order.to(device))


def sizes(lengths: Sequence[int]) -> list[int]:
    """Lengths of a row that are tried: all texts in one where that is short enough."""
    if sum(lengths) <= WIDTHS[-1]:
        return [sum(lengths)]
    return [size for size in WIDTHS if size >= max(lengths)] or [max(lengths)]


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

    words: dict[str, None] = {}
    for text, row in zip(texts, ids, strict=True):
        if is_new(row):
            new = [word.strip(".,:;!?") for word in text.split() if is_new(tokenizer([word])[0])]
            words |= dict.fromkeys(new)
    return list(words)
