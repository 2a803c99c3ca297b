"""The text tower of CLIP with a prefix that all classes share.

Under the causal mask the tokens before the class name, [SOS] and the context, cannot see it: their states are the same
for every class. They are computed once, and each class runs only its own tokens, which attend to the prefix. The
tokens of all classes are packed, without padding (see `Packing`).
From a block on before which each class gets tokens of its own, and where something is dropped at random, each class
has a prefix of its own: whole texts are packed.
Towers without a causal mask share nothing, and read the padding too: there whole sequences are run (`Form`).
Where a method changes blocks through `layer`, the whole sequences are built and open_clip's blocks run as they are.

Letters as in the rest of the package: S prefixes (images), K classes, n prefix tokens, T tokens of a class after the
prefix, d the width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from promptbench.clip import block as blocks

Layer = Callable[[int, Any, Tensor, Tensor | None], Tensor]

WIDTHS = range(40, 91)  # of rows; longer ones cost attention, shorter ones are hard to fill

DROPPING = 1.4  # times the memory: masks, and inputs under each of them, are kept for the backward pass

ARGMAX, EOS, LAST = "argmax", "eos", "last"  # open_clip's names of the token that is read

PLACEHOLDER = "X"  # in a text that is tokenised, where a learned token comes in

Tokenizer = Callable[..., Tensor]


def causal_mask(queries: int, keys: int, like: Tensor) -> Tensor:
    """(queries, keys), 0 where the last `queries` of `keys` tokens may look and -inf after themselves."""
    mask = torch.full((queries, keys), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu(keys - queries + 1)


@dataclass(frozen=True)
class Form:
    """How a text tower reads a text.

    Attributes:
        causal: Whether a token sees only what stands before it. Else every token sees all, padding included.
        pool: Whose state is the feature: that of [EOT] ("end"), or of the last token, padding or not ("last").
        start: Tokens before the words: [SOS], or none.
        end: Tokens behind the words, before the padding: [EOT], or none.
        padding: Its id.
    """

    causal: bool = True
    pool: Literal["end", "last"] = "end"
    start: int = 1
    end: int = 1
    padding: int = 0

    @property
    def whole(self) -> bool:
        """Whether a text is read with its padding."""
        return not self.causal or self.pool == "last"

    def read(self, eot: Tensor, length: int) -> Tensor:
        """Where the feature of each of K texts stands in its `length` tokens."""
        return eot if self.pool == "end" else torch.full_like(eot, length - 1)


def wrong_with(tower: Any) -> str:
    """Why prompts cannot enter this text tower; empty if they can."""
    if getattr(getattr(tower, "transformer", None), "resblocks", None) is None:
        return "it is not made of residual blocks"
    if getattr(tower, "use_pad_mask", False):
        return "it hides the padding"
    pooled = pool_type(tower)
    return "" if pooled in (ARGMAX, EOS, LAST) else f"it reads its feature as pool_type '{pooled}'"


def form_of(tower: Any, tokenizer: Tokenizer, length: int) -> Form:
    """How a text tower of this `context_length` reads what a tokenizer gives it."""
    causal = getattr(tower, "attn_mask", None) is not None
    if pool_type(tower) != LAST or is_closed(tower):
        return Form(causal)
    return read_with_padding(causal, tokenizer, length)


def is_closed(tower: Any) -> bool:
    """Whether a learned token behind each text is read, as in CoCa."""
    return getattr(tower, "cls_emb", None) is not None


def pool_type(tower: Any) -> str:
    """What open_clip calls the token at which a text tower reads its feature."""
    return str(getattr(tower, "text_pool_type", getattr(tower, "pool_type", ARGMAX)))


def ends_of(tower: Any, ids: Tensor, form: Form) -> Tensor:
    """(K,) where the words of texts with ids (K, L) have ended: the position of [EOT], if the tokenizer has one."""
    if form.pool == "last":
        return lengths_of(ids, form.padding) - form.end
    if pool_type(tower) == EOS:
        end = tower.text_eos_id if hasattr(tower, "text_eos_id") else tower.eos_id
        return (ids == end).int().argmax(dim=-1)
    return ids.argmax(dim=-1)  # [EOT] has the largest id


def lengths_of(ids: Tensor, padding: int) -> Tensor:
    """(K,) tokens of texts with ids (K, L) before the padding."""
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return torch.where(ids == padding, 0, places).amax(dim=1)


def read_with_padding(causal: bool, tokenizer: Tokenizer, length: int) -> Form:
    """That of a tower whose feature is at the last token; shows which tokens its tokenizer puts around the words."""
    ids = tokenizer(["", "a"], context_length=length)
    padding = int(ids[0, -1])
    empty, word = (row[:count].tolist() for row, count in zip(ids, lengths_of(ids, padding).tolist(), strict=True))
    start = 0
    while start < len(empty) and empty[start] == word[start]:
        start += 1
    return Form(causal, "last", start, len(empty) - start, padding)


def replace_prompts(prefix: Tensor, prompts: Tensor, start: int = 1) -> Tensor:
    """The prefix (S, n, d) with its tokens after `start` replaced by `prompts` (m, d) or (S, m, d)."""
    prompts = prompts.expand(len(prefix), *prompts.shape[-2:])
    return torch.cat([prefix[:, :start], prompts, prefix[:, start + prompts.shape[-2] :]], dim=1)


def insert(prefix: Tensor, tokens: Tensor, start: int) -> Tensor:
    """The prefix (S, n, d) with `tokens` (m, d) after `start` of its own."""
    return torch.cat([prefix[:, :start], tokens.expand(len(prefix), -1, -1), prefix[:, start:]], dim=1)


def check_deep(deep: Mapping[int, Tensor], prefix: Tensor | None, depth: int, start: int) -> None:
    """Raise a ValueError where deep prompts have nothing to replace."""
    for index, prompts in deep.items():
        if not 0 < index < depth:
            raise ValueError(f"deep text prompts for block {index}: the tower has blocks 1 to {depth - 1}")
        if prefix is None or start + prompts.shape[-2] > prefix.shape[-2]:
            raise ValueError("deep text prompts replace tokens of the prefix after [SOS]: the prefix is too short")


def check_deep_by_class(by_class: Mapping[int, Tensor], texts: Texts, depth: int) -> None:
    """Raise a ValueError where there is not one row for each class, or a text is too short."""
    for index, prompts in by_class.items():
        if not 0 < index < depth:
            raise ValueError(f"text prompts by class for block {index}: the tower has blocks 1 to {depth - 1}")
        if prompts.dim() != 3 or len(prompts) != len(texts.eot):
            raise ValueError(f"text prompts by class are ({len(texts.eot)}, m, d), not {tuple(prompts.shape)}")
        if texts.start + prompts.shape[1] > texts.before + int(texts.ends.min()):
            raise ValueError("text prompts by class replace tokens between [SOS] and [EOT]: a text is too short")


def check_inserted(inserted: Mapping[int, Tensor], replaced: bool, depth: int) -> None:
    """Raise a ValueError where inserted tokens have no place, or another number than those that they replace."""
    if inserted and replaced:
        raise ValueError("tokens that are inserted and tokens that are replaced would stand in the same places")
    counts = {len(tokens) for tokens in inserted.values()}
    if len(counts) > 1:
        raise ValueError(f"inserted tokens replace the former ones: give as many of them, not {sorted(counts)}")
    for index in inserted:
        if not 0 <= index < depth:
            raise ValueError(f"inserted text tokens for block {index}: the tower has blocks 0 to {depth - 1}")


def mean_length(eot: Tensor) -> float:
    """Tokens of a text, [EOT] included, where [EOT] stands at `eot` (K,)."""
    return float((on_cpu(eot) + 1).float().mean())


_ON_CPU = WeakTensorKeyDictionary()


def on_cpu(eot: Tensor) -> Tensor:
    """Positions (K,) on the CPU, fetched once for a tensor: a GPU is waited for until it has done all it has to."""
    if eot.device.type == "cpu" or eot.is_inference():
        return eot.cpu()
    version, fetched = _ON_CPU.get(eot, (None, eot))
    if version != eot._version:
        fetched = eot.cpu()
        _ON_CPU[eot] = eot._version, fetched
    return fetched


class Texts(NamedTuple):
    """What is encoded: prefixes, each followed by the tokens of every class.

    Attributes:
        prefix: (S, n, d), without positions; None: the class tokens are whole texts.
        deep: Block index -> prompts (m, d) or (S, m, d) that replace the prefix's tokens after [SOS].
        suffix: (S or 1, K, T, d), without positions.
        eot: (K,), where the token whose state is the feature stands in `suffix`: [EOT], in most towers.
        ends: The same on the CPU.
        layer: Runs each block in place of it; see `Backbone.encode_text`.
        changed: All blocks, some with a method's change, where there are any.
        by_class: Block index -> prompts (K, m, d) that replace the tokens after [SOS].
        inserted: Block index -> tokens (m, d) inserted after [SOS], or in place of the former ones.
        causal: Whether a token sees only what stands before it.
        start: Tokens before the words: [SOS], or none.
        blind: Whether the last token of each text does not see itself; () for none.
    """

    prefix: Tensor | None
    deep: Mapping[int, Tensor]
    suffix: Tensor
    eot: Tensor
    ends: Tensor
    layer: Layer | None
    changed: Sequence[Any] = ()
    by_class: Mapping[int, Tensor] = {}
    inserted: Mapping[int, Tensor] = {}
    causal: bool = True
    start: int = 1
    blind: tuple[bool, ...] = ()

    @property
    def sizes(self) -> tuple[int, int]:
        """How many prefixes S and classes K there are."""
        return max(len(self.suffix), 1 if self.prefix is None else len(self.prefix)), self.suffix.shape[1]

    @property
    def before(self) -> int:
        """Tokens n of the prefix."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    @property
    def own_masks(self) -> bool:
        """Whether each text has masks of its own."""
        return any(map(blocks.drops, self.changed))

    def need_gradients(self) -> bool:
        """Whether anything but blocks learns."""
        given = (*self.deep.values(), *self.by_class.values(), *self.inserted.values())
        return any(t is not None and t.requires_grad for t in (self.suffix, self.prefix, *given))

    def own_length(self) -> float:
        """Tokens that each class runs in `shared_path`, on average, as far as memory is concerned."""
        length = mean_length(self.ends)
        if self.by_class or self.own_masks:
            length += self.before
        return DROPPING * length if self.own_masks else length

    def full_length(self) -> int:
        """Tokens that each class runs in `full_path`."""
        return self.before + self.suffix.shape[2]

    def part(self, images: slice, classes: slice) -> Texts:
        """The texts of some images and some classes."""
        prefix = None if self.prefix is None else self.prefix[images]
        deep = {i: prompts[images] if prompts.dim() > 2 else prompts for i, prompts in self.deep.items()}
        suffix = self.suffix if len(self.suffix) == 1 else self.suffix[images]
        by_class = {i: prompts[classes] for i, prompts in self.by_class.items()}
        texts = self._replace(prefix=prefix, deep=deep, suffix=suffix[:, classes], by_class=by_class)
        return texts._replace(eot=self.eot[classes], ends=self.ends[classes])

    def placed(self, positions: Tensor) -> Texts:
        """These texts with positional embeddings (L, d) added."""
        n, T = self.before, self.suffix.shape[2]
        prefix = None if self.prefix is None else self.prefix + positions[:n]
        return self._replace(prefix=prefix, suffix=self.suffix + positions[n : n + T])

    def whole(self) -> Texts:
        """The same texts without a prefix of their own."""
        if self.prefix is None:
            return self
        S, K = self.sizes
        suffix = self.suffix.expand(S, *self.suffix.shape[1:])
        suffix = torch.cat([self.prefix.unsqueeze(1).expand(-1, K, -1, -1), suffix], dim=2)
        return self._replace(prefix=None, suffix=suffix, eot=self.eot + self.before, ends=self.ends + self.before)

    def closed(self, tower: Any) -> Texts:
        """Texts with positions as CoCa reads them, with a learned token behind each, whose state is the feature.

        In its weights the mask of the padding is one token late: the first padding is seen, and the learned token does
        not see itself, unless a text fills the tower.
        """
        positions = tower.positional_embedding
        at, K = self.eot + 1, torch.arange(len(self.eot), device=self.eot.device)
        padded = self.before + at < len(positions) - 1
        padding = tower.token_embedding.weight[tower.pad_id] + positions[self.before + at]  # (K, d)
        x = nn.functional.pad(self.suffix, (0, 0, 0, 2)).clone()
        x[:, K, at] = padding.to(x.dtype)
        at = at + padded
        x[:, K, at] = (tower.cls_emb + positions[-1]).to(x.dtype)
        ends = self.ends + 1
        blind = self.before + ends < len(positions) - 1
        return self._replace(suffix=x, eot=at, ends=ends + blind, blind=tuple(blind.tolist()))

    def layout(self) -> Layout:
        """How long these texts are, without a prefix, and what their tokens see."""
        read = tuple(self.ends.tolist())
        lengths = tuple(place + 1 for place in read) if self.causal else (self.suffix.shape[2],) * len(read)
        return Layout(lengths, read, self.causal, self.blind)


Path = Callable[[Any, Texts], Tensor]  # `shared_path` or `full_path`


def in_chunks(path: Path, tower: Any, texts: Texts, most: int, learns: bool) -> Tensor:
    """Text features (S, K, D) by `path`, at most so many texts at a time.

    With more than that, images are encoded one group after the other, or classes where those of one image are too
    many; where something `learns`, chunks are computed again in the backward pass, and half as large.
    """
    S, K = texts.sizes
    images = max(1, most // K)
    if images >= S and most >= K:
        return encode(path, tower, texts)
    if learns:
        images = max(1, images // 2)
    draws = texts.layer is not None or texts.own_masks
    out = []
    for i in range(0, S, images):
        part = partial(encode_part, path, tower, texts, slice(i, i + images))
        out.append(by_classes(part, K, most, learns, draws))
    return torch.cat(out)


def by_classes(run: Callable[[slice], Tensor], count: int, most: int, learns: bool, draws: bool = False) -> Tensor:
    """What `run` says of K classes, (..., K, D), in even parts of at most so many.

    Where something `learns`, each part is computed again in the backward pass, with what it `draws` at random drawn
    again. That costs as much in parts half as large, which leave half of the memory to the images.
    """
    if learns:
        most = max(1, most // 2)
    number = math.ceil(count / most)
    parts = [slice(count * i // number, count * (i + 1) // number) for i in range(number)]
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
    texts = texts.placed(tower.positional_embedding)
    if is_closed(tower):
        texts = texts.closed(tower)
    return project(tower, path(tower.transformer.resblocks, texts))


def project(tower: Any, x: Tensor) -> Tensor:
    """Text features (..., D) of the states at [EOT] after all blocks, (..., d)."""
    x, projection = tower.ln_final(x), tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


class States(NamedTuple):
    """States of texts between two blocks.

    Attributes:
        prefix: (S, n, d), the tokens that all classes share; None: whole texts are packed.
        x: (S or 1, G, C, d), the packed tokens.
        packing: Where they stand.
        prefix_mask: (n, n), causal; None without a prefix.
        mask: (G, C, n + C), 0 where a packed token may look, -inf elsewhere.
    """

    prefix: Tensor | None
    x: Tensor
    packing: Packing
    prefix_mask: Tensor | None
    mask: Tensor

    def behind(self, context: blocks.KeysValues, own: blocks.KeysValues) -> blocks.KeysValues:
        """What tokens in x attend to: the prefix (S, ...), then the tokens of their row."""
        leading = len(context.keys), len(self.mask)
        context = blocks.KeysValues(*(t.unsqueeze(1) for t in context))
        return context.expand(*leading).then(own.expand(*leading))

    def through(self, block: Any, constant: bool) -> States:
        """The states after a block; class tokens that are `constant` are the same for all images."""
        prefix, x = self.prefix, self.x
        if prefix is None:
            q, own = blocks.queries_keys_values(block, x)
            return self._replace(x=blocks.finish(block, x, q, own, self.mask))
        if constant:  # and often need no gradient
            q, context = blocks.queries_keys_values(block, prefix)
            queries, own = blocks.queries_keys_values(block, x)
            queries = queries.expand(len(prefix), *queries.shape[1:])
            x = blocks.finish(block, x, queries, self.behind(context, own), self.mask)
            return self._replace(x=x, prefix=blocks.finish(block, prefix, q, context, self.prefix_mask))
        # One product for all tokens: for the few rows of the prefix alone, all weights would be read again.
        rows = torch.cat([prefix.flatten(0, 1), x.flatten(0, 2)])
        parts = (prefix.shape[:2].numel(), x.shape[:3].numel())
        of_prefix, of_classes = blocks.projected(block, rows).split(parts)
        q, context = blocks.heads(block, of_prefix.unflatten(0, prefix.shape[:2]))
        queries, own = blocks.heads(block, of_classes.unflatten(0, x.shape[:3]))
        read_by_prefix = blocks.attend(q, context, self.prefix_mask).flatten(0, 1)
        read_by_classes = blocks.attend(queries, self.behind(context, own), self.mask).flatten(0, 2)
        rows = blocks.close(block, rows, torch.cat([read_by_prefix, read_by_classes]))
        of_prefix, of_classes = rows.split(parts)
        return self._replace(prefix=of_prefix.view(prefix.shape), x=of_classes.view(x.shape))

    def last(self, block: Any) -> Tensor:
        """The states that are read (S, K, d), at [EOT], after the last block: no others are needed."""
        own = blocks.keys_values(block, self.x)
        if self.prefix is not None:
            own = self.behind(blocks.keys_values(block, self.prefix), own)
        at = self.packing.last.unsqueeze(-1)  # (G, q, 1)
        x, mask = self.x.take_along_dim(at.unsqueeze(0), dim=2), self.mask.take_along_dim(at, dim=1)
        queries = blocks.queries(block, x)
        queries = queries.expand(len(own.keys), *queries.shape[1:])
        x = blocks.finish(block, x, queries, own, mask)
        return x.flatten(1, 2).index_select(1, self.packing.order)

    def before(self, index: int, texts: Texts) -> States:
        """The states with what the texts replace or insert before a block."""
        states = self
        if index in texts.deep:
            states = states.replaced(texts.deep[index], texts.start)
        if index in texts.by_class:
            states = states.apart().replaced_by_class(texts.by_class[index], texts.start)
        if index in texts.inserted:
            tokens, first = texts.inserted[index], index == min(texts.inserted)
            states = (states.with_inserted if first else states.replaced)(tokens, texts.start)
        return states

    def replaced(self, prompts: Tensor, start: int) -> States:
        """With prompts (m, d) or (S, m, d) in place of the tokens after the first `start`."""
        if self.prefix is None:
            return self.replaced_by_class(prompts.unsqueeze(-3), start)
        return self._replace(prefix=replace_prompts(self.prefix, prompts, start))

    def replaced_by_class(self, prompts: Tensor, start: int) -> States:
        """As `replaced`, of whole texts, with prompts (K or 1, m, d) or (S, K or 1, m, d)."""
        assert self.prefix is None
        (S, G, C, d), m = self.x.shape, prompts.shape[-2]
        prompts = prompts.to(self.x.dtype).expand(S, len(self.packing.first), m, d).flatten(1, 2)
        places = self.packing.places(start, start + m).flatten()
        return self._replace(x=self.x.flatten(1, 2).index_copy(1, places, prompts).unflatten(1, (G, C)))

    def with_inserted(self, tokens: Tensor, start: int) -> States:
        """With tokens (m, d) after the first `start`."""
        if self.prefix is not None:
            return of_states(insert(self.prefix, tokens, start), self.x, self.packing)
        S, (m, d) = len(self.x), tokens.shape
        packing, width = self.packing, max(self.packing.layout.lengths)
        known = torch.cat([tokens.expand(S, m, d), self.x.flatten(1, 2)], dim=1)
        inserted = torch.arange(m, device=known.device).expand(len(packing.first), m)
        before, behind = m + packing.places(0, start), m + packing.places(start, width)
        return repacked(known, torch.cat([before, inserted, behind], dim=1), packing.layout.longer(m))

    def apart(self) -> States:
        """The same states, each class with a prefix of its own."""
        if self.prefix is None:
            return self
        n, packing = self.prefix.shape[1], self.packing
        known = torch.cat([self.prefix, self.x.flatten(1, 2)], dim=1)
        of_prefix = torch.arange(n, device=known.device).expand(len(packing.first), n)
        places = torch.cat([of_prefix, n + packing.places(0, max(packing.layout.lengths))], dim=1)
        return repacked(known, places, packing.layout.longer(n))


def repacked(known: Tensor, places: Tensor, layout: Layout) -> States:
    """Whole texts whose tokens stand at `places` (K, T) in `known` (S, tokens, d)."""
    packing = pack(layout, places.shape[1], known.device)
    sources = places.flatten()[packing.sources.flatten()]
    return of_states(None, known.index_select(1, sources).unflatten(1, packing.sources.shape), packing)


def of_states(prefix: Tensor | None, x: Tensor, packing: Packing) -> States:
    """`States` with the masks that they need."""
    if prefix is None:
        return States(None, x, packing, None, packing.mask.to(x.dtype))
    n = prefix.shape[1]
    prefix_mask = causal_mask(n, n, prefix)
    mask = torch.cat([prefix.new_zeros(*packing.sources.shape, n), packing.mask.to(prefix.dtype)], dim=-1)
    return States(prefix, x, packing, prefix_mask, mask)


def packed(texts: Texts) -> States:
    """The states before the first block."""
    packing = pack(texts.layout(), texts.suffix.shape[2], texts.eot.device)
    x = texts.suffix.flatten(1, 2).index_select(1, packing.sources.flatten())
    return of_states(texts.prefix, x.unflatten(1, packing.sources.shape), packing)


def shared_path(resblocks: Any, texts: Texts) -> Tensor:
    """States at [EOT] (S, K, d) after all blocks; positional embeddings are already added."""
    assert texts.layer is None
    if texts.own_masks or not texts.causal:
        texts = texts.whole()
    *tower, last = texts.changed or resblocks
    states = packed(texts)
    for i, block in enumerate(tower):
        states = states.before(i, texts).through(block, constant=i == 0)
    return states.before(len(tower), texts).last(last)


def full_path(resblocks: Any, texts: Texts) -> Tensor:
    """As `shared_path`, with whole sequences (S * K, L, d) through open_clip's blocks, or through `layer`."""
    (S, K), whole, layer = texts.sizes, texts.whole(), texts.layer
    x = whole.suffix.expand(S, *whole.suffix.shape[1:]).flatten(0, 1)  # (S * K, L, d)
    mask = mask_of(whole, resblocks[0].attn.num_heads, x)
    for i, block in enumerate(resblocks):
        if i in texts.deep:
            prompts = texts.deep[i]
            if prompts.dim() == 3:
                prompts = prompts.repeat_interleave(K, dim=0)
            x = replace_prompts(x, prompts, texts.start)
        x = block(x, attn_mask=mask) if layer is None else layer(i, block, x, mask)
    index = whole.eot.repeat(S).view(-1, 1, 1).expand(-1, 1, x.shape[-1])
    return x.gather(1, index).view(S, K, -1)


def mask_of(texts: Texts, heads: int, x: Tensor) -> Tensor | None:
    """What tokens of whole texts x (S * K, L, d) may look at: (L, L), (S * K * h, L, L), or None for everything."""
    if not texts.causal:
        return None
    mask = causal_mask(x.shape[1], x.shape[1], x)
    if not any(texts.blind):
        return mask
    masks = mask.repeat(len(texts.eot), 1, 1)
    blind = torch.tensor(texts.blind, device=x.device).nonzero().flatten()
    masks[blind, texts.eot[blind], texts.eot[blind]] = float("-inf")
    return masks.repeat(texts.sizes[0], 1, 1).repeat_interleave(heads, dim=0)


class Layout(NamedTuple):
    """How long K texts are, and what their tokens see of each other.

    Attributes:
        lengths: Tokens of each text.
        read: Which token's state is the feature of each text.
        causal: Whether a token sees only what stands before it.
        blind: Whether the last token of each text does not see itself; () for none.
    """

    lengths: tuple[int, ...]
    read: tuple[int, ...]
    causal: bool = True
    blind: tuple[bool, ...] = ()

    def longer(self, n: int) -> Layout:
        """That of the same texts with n tokens more before what is read."""
        lengths = tuple(n + length for length in self.lengths)
        return self._replace(lengths=lengths, read=tuple(n + place for place in self.read))


@dataclass(frozen=True)
class Packing:
    """Where every token of K texts (K, T) stands in G rows of C tokens.

    Attributes:
        sources: (G, C) int64, k * T + t of the token that stands there; padding repeats the first token.
        mask: (G, C, C) float32, 0 where a token may look, in its own text, and -inf elsewhere.
        last: (G, q) int64, where in its row the token that is read of each of up to q texts stands; 0 where there are
            fewer. It is the last one in a causal tower.
        order: (K,) int64, index of each text in `last`, flattened.
        first: (K,) int64, where the first token of each text stands in the rows one after the other, g * C + c.
        layout: Of the texts.
    """

    sources: Tensor
    mask: Tensor
    last: Tensor
    order: Tensor
    first: Tensor
    layout: Layout

    def places(self, start: int, end: int) -> Tensor:
        """(K, end - start), where tokens `start` to `end` of each text stand; anywhere behind its last one."""
        found = self.first.unsqueeze(1) + torch.arange(start, end, device=self.first.device)
        return found.clamp(max=self.sources.numel() - 1)


@lru_cache(maxsize=64)
def pack(layout: Layout, width: int, device: torch.device) -> Packing:
    """Texts cut from (K, width), packed in rows of the length that leaves least padding."""
    lengths = layout.lengths
    tried = [(fill(lengths, size), size) for size in sizes(lengths)]
    rows, C = min(tried, key=lambda packed: len(packed[0]) * packed[1])
    G, q = len(rows), max(map(len, rows))
    sources = torch.zeros(G, C, dtype=torch.long)
    owner = torch.full((G, C), -1)
    last = torch.zeros(G, q, dtype=torch.long)
    order = torch.zeros(len(lengths), dtype=torch.long)
    first = torch.zeros(len(lengths), dtype=torch.long)
    for g, row in enumerate(rows):
        start = 0
        for place, k in enumerate(row):
            end = start + lengths[k]
            sources[g, start:end] = torch.arange(k * width, k * width + lengths[k])
            owner[g, start:end] = k
            last[g, place] = start + layout.read[k]
            order[k] = g * q + place
            first[k] = g * C + start
            start = end
    seen = (owner.unsqueeze(2) == owner.unsqueeze(1)) & (owner >= 0).unsqueeze(2)
    seen = seen.tril() if layout.causal else seen
    seen |= torch.eye(C, dtype=torch.bool)  # padding has to look somewhere
    for k, blind in enumerate(layout.blind):
        place = int(first[k]) + lengths[k] - 1
        seen[place // C, place % C, place % C] &= not blind
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    sources, mask, last, order, first = (tensor.to(device) for tensor in (sources, mask, last, order, first))
    return Packing(sources, mask, last, order, first, layout)


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
    """Texts as frozen token embeddings, cut at the longest text unless the tower reads the padding too.

    Attributes:
        embeddings: (K, L, d), without positions.
        eot: (K,) int64, position of the [EOT] token, behind the words.
        ids: (K, L) int64, the token ids; padding after [EOT].
        start: How many tokens stand before the words: 1, [SOS]; some tokenizers have none.
    """

    embeddings: Tensor
    eot: Tensor
    ids: Tensor
    start: int = 1

    @property
    def words(self) -> Tensor:
        """(K,) tokens of each text between [SOS] and [EOT]."""
        return self.eot - self.start

    def after(self, n: int) -> Tokens:
        """The same texts without their first n tokens."""
        return Tokens(self.embeddings[:, n:], self.eot - n, self.ids[:, n:], max(0, self.start - n))

    def shared(self) -> int:
        """How many leading tokens all K texts have in common, their [EOT] left out."""
        same = (self.ids == self.ids[:1]).all(dim=0).long().cumprod(dim=0).sum()
        return min(int(same), int(self.eot.min()))


def unknown_words(texts: Sequence[str], ids: Tensor, tokenizer: Tokenizer, known: frozenset[int]) -> list[str]:
    """The words of the texts (K) with ids (K, L) that hold a token outside `known`, each once, in order.

    Without `PLACEHOLDER`, in whose place something learned is read.
    """

    def is_new(row: Tensor) -> bool:
        return not known.issuperset(row[: int(row.argmax()) + 1].tolist())  # up to [EOT], the largest id

    words: dict[str, None] = {}  # each once, for a thousand texts share most of theirs
    for text, row in zip(texts, ids, strict=True):
        if is_new(row):
            words |= dict.fromkeys(text.split())
    rows = tokenizer(list(words)) if words else ()
    new = dict.fromkeys(word.strip(".,:;!?") for word, row in zip(words, rows, strict=True) if is_new(row))
    new.pop(PLACEHOLDER, None)
    return list(new)
