"""Captions of scenes: a small grammar that leaves out attributes at random, as people do, and all that it can utter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from promptbench.mini.scene import BACKGROUNDS, CENTRE, COLOUR_NAMES, POSITIONS, SIZES, STYLES, TEXTURES, Scene
from promptbench.mini.shapes import DIGITS, SHAPES
from promptbench.mini.words import (
    ANY_SHAPE,
    ANY_TEXTURE,
    DIAGRAM_SENSE,
    FABRICS,
    NUMBERS,
    PLAIN_SENSE,
    SHAPE_SYNONYMS,
    STYLE_PHRASES,
    TEXTURE_SYNONYMS,
    TOY_SENSE,
    plural,
    with_article,
)

_SYNONYM = 0.12  # share of names replaced by a synonym
_DIAGRAM_WORDS = {shape: word for word, shape in DIAGRAM_SENSE.items()}
_TOY_WORDS = {shape: word for word, shape in TOY_SENSE.items()}
_PLAIN_WORDS = {shape: word for word, shape in PLAIN_SENSE.items()}
_COLOURLESS = ("silhouette", "negative")  # styles that do not show the objects' colour


def _one_of(generator: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(generator.random() * len(words))]


def _texture_word(texture: str, generator: np.random.Generator) -> str:
    return texture if generator.random() > _SYNONYM else _one_of(generator, TEXTURE_SYNONYMS[texture])


def _shape_word(shape: str, style: str, generator: np.random.Generator) -> tuple[str, bool]:
    """A noun for a shape, and whether it must be called a diagram."""
    chance = generator.random()
    if chance < 0.10:
        return _one_of(generator, ANY_SHAPE), False
    word = shape if generator.random() > _SYNONYM else _one_of(generator, SHAPE_SYNONYMS[shape])
    if style == "sketch" and shape in _DIAGRAM_WORDS:
        return (_DIAGRAM_WORDS[shape], True) if chance < 0.64 else (word, chance > 0.96)
    if shape in _TOY_WORDS and chance < 0.34:
        toy = _TOY_WORDS[shape]
        return (f"toy {toy}" if generator.random() < 0.7 else f"{toy} toy"), False
    if shape in _PLAIN_WORDS and chance > 0.78:
        return _PLAIN_WORDS[shape], False
    return word, False


def _adjectives(scene: Scene, i: int, style: str, generator: np.random.Generator) -> list[str]:
    words = []
    texture = TEXTURES[scene.texture[i]]
    if not scene.full[i] and generator.random() < 0.18 and SIZES[scene.size[i]] != "medium":
        words.append(SIZES[scene.size[i]])
    if generator.random() < 0.55 and style not in _COLOURLESS:
        words.append(COLOUR_NAMES[scene.colour[i]])
    if texture == "solid":
        if generator.random() < 0.06:
            words.append(_texture_word(texture, generator))
    elif style != "silhouette" and generator.random() < 0.55:
        words.insert(len(words) if generator.random() < 0.7 else 0, _texture_word(texture, generator))
    return words


def _texture_phrase(scene: Scene, i: int, style: str, generator: np.random.Generator) -> str:
    texture = TEXTURES[scene.texture[i]]
    if texture in FABRICS and generator.random() < 0.35:
        words = [FABRICS[texture]]
        if generator.random() < 0.55 and style not in _COLOURLESS:
            words.insert(0, COLOUR_NAMES[scene.colour[i]])
        return with_article(" ".join([*words, _one_of(generator, ("fabric", "cloth"))]))
    return with_article(" ".join([*_adjectives(scene, i, style, generator), _one_of(generator, ANY_TEXTURE)]))


def _digit_phrase(scene: Scene, i: int, style: str, generator: np.random.Generator) -> str:
    noun = "number" if generator.random() < 0.8 else "digit"
    return " ".join(["the", *_adjectives(scene, i, style, generator), noun, DIGITS[scene.shape[i] - len(SHAPES)]])


def _shape_phrase(scene: Scene, i: int, style: str, generator: np.random.Generator) -> tuple[str, bool]:
    noun, diagram = _shape_word(SHAPES[scene.shape[i]], style, generator)
    adjectives = _adjectives(scene, i, style, generator)
    count = int(scene.count[i])
    if count > 1 and generator.random() < 0.85:
        vague = "several" if count > 2 else "a pair of"
        number = NUMBERS[count] if generator.random() < 0.85 else vague
        return " ".join([number, *adjectives, plural(noun)]), diagram
    phrase = " ".join([*adjectives, noun])
    return (f"one {phrase}" if count == 1 and generator.random() < 0.05 else with_article(phrase)), diagram


def _surroundings(scene: Scene, i: int, style: str, generator: np.random.Generator) -> str:
    words = ""
    if scene.count[i] == 1 and generator.random() < (0.08 if scene.position[i] == CENTRE else 0.6):
        words += " " + POSITIONS[scene.position[i]]
    if style in ("photo", "blurry", "pixelated", "clipart") and generator.random() < 0.3:
        kind = BACKGROUNDS[scene.background[i]]
        colour = COLOUR_NAMES[scene.ground[i]]
        if kind in ("plain", "gradient") or generator.random() < 0.4:
            ground = colour
        else:
            ground = kind if generator.random() < 0.6 else f"{colour} {kind}"
        words += f" on {with_article(ground)} background"
    return words


def caption(scene: Scene, i: int, generator: np.random.Generator) -> str:
    """One of the many captions of image i of a scene."""
    style = STYLES[scene.style[i]]
    diagram = False
    if scene.full[i]:
        phrase = _texture_phrase(scene, i, style, generator)
    elif scene.shape[i] >= len(SHAPES):
        phrase = _digit_phrase(scene, i, style, generator)
    else:
        phrase, diagram = _shape_phrase(scene, i, style, generator)
    form = generator.random()
    if diagram and form > 0.75:
        text = f"{phrase} symbol"
    elif diagram:
        article = "a" if form > 0.2 else "the"
        text = f"{article} diagram of {phrase}"
    elif form < 0.14:
        text = phrase
    else:
        kind = _one_of(generator, STYLE_PHRASES[style if generator.random() < 0.7 else "photo"])
        article = with_article(kind) if generator.random() < 0.85 else f"the {kind}"
        text = f"{article} of {phrase}" if form < 0.86 else f"{phrase}, {kind}"
    if not scene.full[i]:
        text += _surroundings(scene, i, style, generator)
    return text + "." if generator.random() < 0.6 else text


_FUNCTION_WORDS = ("a", "an", "the", "of", "on", "one", "several", "pair", "background", "diagram", "symbol", "symbols")
_NOUNS = ("fabric", "cloth", "toy", "toys", "number", "digit")


def grammar_phrases() -> tuple[str, ...]:
    """Words and phrases, with the full stop and the comma, that together hold every token a caption can have."""
    shapes = [*SHAPES, *chain(*SHAPE_SYNONYMS.values()), *PLAIN_SENSE, *ANY_SHAPE]
    textures = [*TEXTURES, *chain(*TEXTURE_SYNONYMS.values()), *FABRICS.values(), *ANY_TEXTURE, *BACKGROUNDS]
    styles = chain(*STYLE_PHRASES.values())
    rest = [*COLOUR_NAMES, "small", "large", *POSITIONS, *NUMBERS[1:], *DIGITS, *_FUNCTION_WORDS, *_NOUNS, ".", ","]
    return (*shapes, *(plural(word) for word in shapes), *textures, *styles, *rest)
