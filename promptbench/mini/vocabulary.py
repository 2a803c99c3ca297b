"""Every word the caption grammar can utter."""

from __future__ import annotations

from itertools import chain

from promptbench.mini.scene import BACKGROUNDS, COLOUR_NAMES, POSITIONS, TEXTURES
from promptbench.mini.shapes import DIGITS, SHAPES
from promptbench.mini.words import (
    ANY_SHAPE,
    ANY_TEXTURE,
    FABRICS,
    NUMBERS,
    PLAIN_SENSE,
    SHAPE_SYNONYMS,
    STYLE_PHRASES,
    TEXTURE_SYNONYMS,
    plural,
)

_FUNCTION_WORDS = ("a", "an", "the", "of", "on", "one", "several", "pair", "background", "diagram", "symbol", "symbols")
_NOUNS = ("fabric", "cloth", "toy", "toys", "number", "digit")


def grammar_phrases() -> tuple[str, ...]:
    """Words and phrases, with the full stop and the comma, that together hold every token a caption can have."""
    shapes = [*SHAPES, *chain(*SHAPE_SYNONYMS.values()), *PLAIN_SENSE, *ANY_SHAPE]
    textures = [*TEXTURES, *chain(*TEXTURE_SYNONYMS.values()), *FABRICS.values(), *ANY_TEXTURE, *BACKGROUNDS]
    styles = chain(*STYLE_PHRASES.values())
    rest = [*COLOUR_NAMES, "small", "large", *POSITIONS, *NUMBERS[1:], *DIGITS, *_FUNCTION_WORDS, *_NOUNS, ".", ","]
    return (*shapes, *(plural(word) for word in shapes), *textures, *styles, *rest)
