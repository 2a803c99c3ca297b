"""Learned context: where its first values come from and how it stands among the class tokens.

The words of a context are those before the class name, which a full stop then follows: `a photo of a`. They may also be
a template, whose other words stand behind the name and are not learned: `a photo of a {} texture.`

Letters: K classes, L text tokens, n prompt tokens, d width of the text tower.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import block as blocks
from promptbench.clip.backbone import Backbone
from promptbench.clip.block import KeysValues
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.clip.text_tower import PLACEHOLDER, Tokens
from promptbench.config import UsageError

INIT_STD = 0.02  # of random contexts, in every public implementation
MAX_WORDS = 4  # the authors of MaPLe and PromptSRC start longer contexts at random, whatever ctx_init says
RANDOM_TOKENS = 16  # of a context without words, as in CoOp's paper
EMBEDDED_AT_ONCE = 4096  # texts of an ensemble, about a hundred megabytes
NAME = "{}"  # in a template
STARTS = "'': random; 'dataset': the words of the template of the dataset trained on; or any template with {}"


def readable(name: str) -> str:
    """A class name as it is read to the model: underscores become spaces."""
    return name.replace("_", " ")


def words_of(ctx_init: str) -> str:
    """The initial words of a context, as they are tokenised, or a template; '' for a random context.

    Raises:
        UsageError: There are blanks that no word stands at: the authors of most methods count words by them. Or a
            template has no word before the class name, or places for two names.
    """
    read = readable(ctx_init)
    if read != " ".join(read.split()):
        raise UsageError(
            f"ctx_init is '{ctx_init}', with blanks at an end or several in a row, which would count as words; write "
            "one blank between two words and none elsewhere."
        )
    if NAME not in ctx_init:
        return read
    before, _, after = ctx_init.partition(NAME)
    if not before.strip() or NAME in after:
        wrong = "places for several class names" if NAME in after else "no word before the class name"
        raise UsageError(
            f"The template '{ctx_init}' has {wrong}, so that no context can start from it; choose another ctx_init, "
            "such as 'a photo of a'."
        )
    return ctx_init


def around(words: str) -> tuple[str, str]:
    """The words before a class name, and what stands behind it: a full stop, or the rest of a template."""
    before, name, after = words.partition(NAME)
    return before.strip(), after if name else "."


def words_for(ctx_init: str, n: int | None) -> str:
    """`words_of(ctx_init)` for a context of the first n of their tokens, None: of all; '' if n is more than four."""
    return words_of(ctx_init) if n is None or n <= MAX_WORDS else ""


def length_of(backbone: Backbone | None, words: str) -> int:
    """How many context tokens `words` make: 16 without words; those of a template are counted by the backbone."""
    if not words:
        return RANDOM_TOKENS
    if NAME not in words:
        return len(words.split(" "))
    if backbone is None:
        raise TypeError(f"the template {words!r} can be counted with a backbone alone")
    before, _ = around(words)
    return int(backbone.embed_text([before]).words[0])


def context_length(words: str, n_ctx: int | None, backbone: Backbone | None = None) -> int:
    """How many context tokens: as many as `words` has, or `n_ctx` without words (None: 16).

    Raises:
        UsageError: If `n_ctx` contradicts the words.
    """
    count = length_of(backbone, words)
    if words and n_ctx is not None and n_ctx != count:
        raise UsageError(
            f"n_ctx is {n_ctx}, but ctx_init '{words}' has {count} words; leave n_ctx out, or set ctx_init='' for a "
            "random context."
        )
    return count if n_ctx is None else n_ctx


def from_words(backbone: Backbone, words: str, n: int) -> Tensor:
    """Token embeddings (n, d) of the first n tokens of `words`."""
    before, _ = around(words)
    tokens = backbone.embed_text([before])
    if int(tokens.words[0]) < n:
        raise UsageError(f"n_ctx is {n}, but the initial words '{before}' have only {int(tokens.words[0])} tokens.")
    return tokens.embeddings[0, tokens.start : tokens.start + n].clone()


def random_context(*shape: int) -> Tensor:
    """Random prompt tokens, normal with standard deviation 0.02."""
    return torch.empty(*shape).normal_(std=INIT_STD)


def initial_context(backbone: Backbone, words: str, n: int) -> Tensor:
    """First values (n, d) of a context: the first n tokens of `words`, or random without words."""
    return from_words(backbone, words, n) if words else random_context(n, backbone.text_width)


def sentence_tokens(backbone: Backbone, words: str, names: Sequence[str]) -> Tokens:
    """Tokens of `words name.`, or of a template, for each class: the prompt that learned tokens are then put into."""
    before, after = around(words)
    return backbone.embed_text([f"{before} {readable(name)}{after}" for name in names])


@dataclass(frozen=True)
class Sentences:
    """Texts of K classes that begin with a learned context: [SOS], context, fixed words, class name, rest.

    Attributes:
        start: (1, d), [SOS]; (0, d) where a tokenizer has none.
        fixed: (m, d), what follows the context in all classes: words that are not learned; m may be 0.
        tokens: What comes after that, class by class.
    """

    start: Tensor
    fixed: Tensor
    tokens: Tokens

    def encode(
        self,
        backbone: Backbone,
        context: Tensor,
        deep: Mapping[int, Tensor] | None = None,
        deep_by_class: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Text features (..., K, D), not normalised, for a context (..., n, d); the rest as in `encode_text`."""
        prefix = join(self.start, context, self.fixed)
        return backbone.encode_text(self.tokens.embeddings, self.tokens.eot, prefix, deep, deep_by_class=deep_by_class)


def sentences(backbone: Backbone, words: str, n: int, names: Sequence[str]) -> Sentences:
    """`words name.`, or a template, for each class, where a context of n tokens replaces the first n of `words`.

    Without words it replaces n blanks.
    """
    tokens = sentence_tokens(backbone, words or " ".join([PLACEHOLDER] * n), names)
    end = tokens.start + n
    shared = max(tokens.shared(), end)
    return Sentences(tokens.embeddings[0, : tokens.start], tokens.embeddings[0, end:shared], tokens.after(shared))


@dataclass(frozen=True)
class Ensemble:
    """K class names in each of several hand-written templates.

    Attributes:
        ids: The texts' token ids, (M * K, L), template by template. Embedded, a hundred thousand texts would take
            gigabytes.
        eot: (M * K,), position of [EOT] in each.
        classes: K.
    """

    ids: Tensor
    eot: Tensor
    classes: int

    def encode(self, backbone: Backbone, normalised: bool) -> Tensor:
        """Mean over the templates of text features, each `normalised` first or as it is: (K, D), not normalised."""
        parts = zip(self.ids.split(EMBEDDED_AT_ONCE), self.eot.split(EMBEDDED_AT_ONCE), strict=True)
        embedded = itertools.starmap(backbone.embed_tokens, parts)
        features = torch.cat([backbone.encode_text(tokens.embeddings, tokens.eot) for tokens in embedded])
        if normalised:
            features = F.normalize(features, dim=-1)
        return features.unflatten(0, (-1, self.classes)).mean(dim=0)


def ensemble(backbone: Backbone, templates: Sequence[str], names: Sequence[str], as_spelled: bool = False) -> Ensemble:
    """Class names in templates; see `in_templates`."""
    texts = in_templates(templates, names, as_spelled)
    return Ensemble(*backbone.token_ids(texts), classes=len(names))


def in_templates(templates: Sequence[str], names: Sequence[str], as_spelled: bool = False) -> list[str]:
    """All names in the first template, then all in the next; `as_spelled` keeps underscores, as some authors do."""
    shown = names if as_spelled else [readable(name) for name in names]
    return [template.replace(NAME, name) for template, name in itertools.product(templates, shown)]


class FrozenTexts:
    """What frozen CLIP says of class names in hand-written templates: tokenised at once, encoded when asked for.

    Args:
        backbone: Whose text tower it is.
        templates: One or several, whose features are averaged.
        names: K.
        normalised: Whether features are, before they are averaged and afterwards.
        as_spelled: As in `ensemble`.
    """

    def __init__(
        self,
        backbone: Backbone,
        templates: Sequence[str],
        names: Sequence[str],
        normalised: bool = True,
        as_spelled: bool = False,
    ) -> None:
        self._backbone = backbone
        self._texts = ensemble(backbone, templates, names, as_spelled)
        self._normalised = normalised
        self._features: Tensor | None = None

    @torch.no_grad()
    def features(self) -> Tensor:
        """(K, D), in float32 under any precision."""
        if self._features is None:
            with torch.autocast(self._backbone.device.type, enabled=False):
                found = self._texts.encode(self._backbone, self._normalised)
                self._features = F.normalize(found, dim=-1) if self._normalised else found
        return self._features


@dataclass(frozen=True)
class Arranged:
    """Texts of K classes with a context of n learned tokens before, around or behind the class name.

    Attributes:
        tokens: The sentences, with placeholders for the context before the name.
        index: (K, L), where each token comes from, as `arrangement` says.
        n: Context tokens.
        shared: Tokens that all classes begin with, [SOS] among them.
    """

    tokens: Tokens
    index: Tensor
    n: int
    shared: int

    @cached_property
    def eot(self) -> Tensor:
        """(K,), where [EOT] stands behind what is shared."""
        return self.tokens.eot - self.shared

    def encode(self, backbone: Backbone, context: Tensor) -> Tensor:
        """Text features (K, D), not normalised, for a context (n, d), or (K, n, d) where every class has its own."""
        start = self.tokens.embeddings[0, : self.tokens.start]  # [SOS]
        learned = self.shared - len(start)
        prefix = join(start, context[:learned]) if learned else start
        if learned == self.n:  # all of the context precedes the name
            embeddings = self.tokens.embeddings[:, self.shared :]
        else:
            embeddings = arrange(self.tokens, context, self.index, self.shared)
        return backbone.encode_text(embeddings, self.eot, prefix)


def arranged(
    backbone: Backbone, words: str, n: int, names: Sequence[str], position: str, by_class: bool = False
) -> Arranged:
    """`words name.`, or a template, for each class, where a context of n tokens replaces all of `words`.

    Args:
        backbone: That tokenises.
        words: '' for n placeholders.
        n: Context tokens.
        names: K.
        position: Where the name stands: at the `end` of the context, in its `middle`, or in `front` of it.
        by_class: Whether every class has a context of its own.
    """
    tokens = sentence_tokens(backbone, words or " ".join([PLACEHOLDER] * n), names)  # (K, L, d)
    before = {"end": n, "middle": n // 2, "front": 0}[position]
    index = arrangement(tokens.ids.shape[1], name_lengths(backbone, names), n, before, tokens.start)
    return Arranged(tokens, index, n, tokens.start + (0 if by_class else before))


def check_position(words: str, position: str, by_class: bool) -> None:
    """Raise a UsageError where a context cannot start from `words`, because of where the name is or whose it is."""
    if by_class and words:
        raise UsageError("csc=true takes random contexts: set ctx_init='' and n_ctx, as the authors' code does.")
    if NAME in words and position != "end":
        raise UsageError(
            f"class_token_position={position} puts the name elsewhere than the template '{words}' does; leave it at "
            "end, or set ctx_init to the words before the name alone."
        )


def for_each_class(context: nn.Parameter, classes: int, n: int) -> nn.Parameter:
    """Contexts (K, n, d) of their own for so many classes: random if `context` is still the empty (0, d).

    Raises:
        UsageError: There are contexts for another number of classes.
    """
    if context.dim() == 2:
        return nn.Parameter(random_context(classes, n, context.shape[-1]))
    if len(context) != classes:
        raise UsageError(f"csc=true: {len(context)} contexts were learned, and {classes} classes are to be scored.")
    return context


def name_lengths(backbone: Backbone, names: Sequence[str]) -> Tensor:
    """(K,) tokens of each class name alone."""
    return backbone.embed_text([readable(name) for name in names]).words


def arrangement(length: int, name_lengths: Tensor, n: int, before: int, start: int = 1) -> Tensor:
    """Where each token of a sentence with learned context comes from.

    The sentence was tokenised as [SOS], n placeholders, name, rest. It becomes [SOS], the first `before` context
    tokens, the name, the other context tokens, rest.

    Args:
        length: L, tokens of the sentences.
        name_lengths: (K,), tokens of each name.
        n: Context tokens.
        before: How many of them stand before the name, 0 to n.
        start: Tokens before the context: [SOS], or none.

    Returns:
        (K, L) int64: an index below L means that token of the sentence, L + j means context token j.
    """
    at = torch.arange(length, device=name_lengths.device).expand(len(name_lengths), length)
    name_end = start + before + name_lengths.unsqueeze(1)  # (K, 1)
    index = at.clone()
    leading = (at >= start) & (at < start + before)
    name = (at >= start + before) & (at < name_end)
    trailing = (at >= name_end) & (at < name_end + n - before)
    index = torch.where(leading, length + at - start, index)
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


class VisualPrompts(nn.Module):
    """Visual prompts that the tokens X of a block read through gates: rows of X are Attn(X, X) + g_l Attn(X, P_l).

    With g_l at 0 it is frozen CLIP. The prompts of a layer are its own; what they themselves read is of no use.

    Attributes:
        prompts: P_l (n, d) of every prompted layer, from the first on.
        gates: g_l of every head, (layers, h), 0 at first.
    """

    def __init__(self, backbone: Backbone, n: int, layers: int) -> None:
        super().__init__()
        self.prompts = nn.ParameterList(random_context(n, backbone.vision_width) for _ in range(layers))
        self.gates = nn.Parameter(torch.zeros(layers, backbone.vision_heads))

    def encode(self, backbone: Backbone, images: Images | Tensor, written: Tensor | None = None) -> ImageFeatures:
        """Features of B images; in the last block [CLS] has `written` (B, d) added, in units of its own length."""
        dense = isinstance(images, Images) and images.dense
        return backbone.encode_image(images, layer=partial(self.layer, backbone.vision_depth, dense, written))

    def layer(
        self, depth: int, dense: bool, written: Tensor | None, index: int, block: Any, x: Tensor, mask: Tensor | None
    ) -> Tensor:
        """One of `depth` blocks for tokens x (B, 1 + P, d); the last one for [CLS] alone unless `dense`."""
        last = index + 1 == depth
        x, q, context = blocks.asked(block, x, 1 if last and not dense else None)
        seen = blocks.attend(q, context)
        if index < len(self.prompts):
            keys, values = blocks.keys_values(block, self.prompts[index])  # (h, n, e)
            gated = KeysValues(keys, self.gates[index].view(-1, 1, 1) * values)
            seen = seen + blocks.attend(q, gated.expand(len(x)))
        if last and written is not None:
            cls, patches = x[:, :1], x[:, 1:]
            length = cls.pow(2).mean(dim=-1, keepdim=True).sqrt()
            x = torch.cat([cls + length * written.unsqueeze(1), patches], dim=1)
        return blocks.close(block, x, seen)
