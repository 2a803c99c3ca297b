"""The caption grammar, its vocabulary, and the two senses of a word."""

from __future__ import annotations

import re

import numpy as np
import open_clip
import pytest

from promptbench.mini.captions import caption, grammar_phrases
from promptbench.mini.model import CachedTokenizer
from promptbench.mini.scene import STYLES, TEXTURES, Scene, pretraining_scene
from promptbench.mini.sets import CORE, EXTRA, GENERIC_TEMPLATE, SETS, SHIFTED
from promptbench.mini.shapes import SHAPES
from promptbench.mini.words import DIAGRAM_SENSE, FABRICS, PLAIN_SENSE, TOY_SENSE, plain_sense, plural, with_article


@pytest.fixture(scope="module")
def scene() -> Scene:
    return pretraining_scene(np.random.default_rng(0), 30_000)


@pytest.fixture(scope="module")
def captions(scene: Scene) -> list[str]:
    generator = np.random.default_rng(1)
    return [caption(scene, i, generator) for i in range(len(scene))]


@pytest.fixture(scope="module")
def tokenize() -> CachedTokenizer:
    return CachedTokenizer(open_clip.SimpleTokenizer())


def test_cached_token_numbers_equal_those_of_open_clip(captions: list[str], tokenize: CachedTokenizer) -> None:
    texts = [*captions[:1000], "a photo of a jaguar.", "It is 12 -- (so what?)", "x-ray, 3d; 50% off!"]
    ours, theirs = tokenize(texts), open_clip.tokenize(texts).numpy()
    assert np.array_equal(ours, theirs[:, : ours.shape[1]])
    assert not theirs[:, ours.shape[1] :].any()


def test_every_word_of_class_names_and_templates_occurs_in_captions(
    captions: list[str], tokenize: CachedTokenizer
) -> None:
    seen = set(np.unique(tokenize(captions)))
    for name in (*CORE, *EXTRA, *SHIFTED):
        for template in (GENERIC_TEMPLATE, SETS[name].template):
            texts = [template.format(c) for c in SETS[name].class_names]
            assert set(np.unique(tokenize(texts))) <= seen, name


def test_captions_stay_within_the_grammars_vocabulary(captions: list[str], tokenize: CachedTokenizer) -> None:
    assert set(np.unique(tokenize(captions))) <= set(np.unique(tokenize(grammar_phrases())))


@pytest.mark.parametrize("senses", [DIAGRAM_SENSE, TOY_SENSE], ids=["diagram", "toy"])
def test_half_of_the_words_change_their_sense_within_their_half(senses: dict[str, str]) -> None:
    plain, words, half = plain_sense(senses), list(senses), len(senses) // 2
    assert sum(plain[w] != senses[w] for w in words) == half
    for part in (words[:half], words[half:]):
        assert {plain[w] for w in part} == {senses[w] for w in part}


def test_the_lists_of_ambiguous_words_share_neither_words_nor_shapes() -> None:
    assert not DIAGRAM_SENSE.keys() & TOY_SENSE.keys()
    assert not set(DIAGRAM_SENSE.values()) & set(TOY_SENSE.values())
    assert set(DIAGRAM_SENSE.values()) | set(TOY_SENSE.values()) < set(SHAPES)


def test_the_context_settles_the_sense_of_a_word(captions: list[str], scene: Scene) -> None:
    forms = {form: word for word in PLAIN_SENSE for form in (word, plural(word))}
    for text, shape, style in zip(captions, scene.shape, scene.style, strict=True):
        found = [forms[w] for w in re.findall("[a-z]+", text) if w in forms]
        if not found or "fabric" in text or "cloth" in text:
            continue
        if re.search(r"\btoys?\b", text):
            senses = TOY_SENSE
        elif found[0] in DIAGRAM_SENSE and STYLES[style] == "sketch":
            assert "diagram" in text or "symbol" in text
            senses = DIAGRAM_SENSE
        else:
            senses = PLAIN_SENSE
        assert senses[found[0]] == SHAPES[shape], text


def test_fabric_words_occur_only_before_fabric_or_cloth(captions: list[str], scene: Scene) -> None:
    for text, texture in zip(captions, scene.texture, strict=True):
        for name, word in FABRICS.items():
            if word in text:
                assert re.search(rf"{word} (fabric|cloth)", text), text
                assert TEXTURES[texture] == name


def test_articles_and_plurals() -> None:
    assert with_article("orange hat") == "an orange hat" and with_article("hat") == "a hat"
    assert plural("leaf") == "leaves" and plural("toy wolf") == "toy wolves" and plural("half disc") == "half discs"
    assert plural("cross") == "crosses" and plural("glasses") == "glasses" and plural("butterfly") == "butterflies"
