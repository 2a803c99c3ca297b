"""The questions asked of the tiny CLIP while it trains, all on images and pairs it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from promptbench.mini.model import preprocess
from promptbench.mini.render import render
from promptbench.mini.scene import COLOUR_NAMES, HELD_OUT, STYLES, sample_scene
from promptbench.mini.shapes import SHAPES
from promptbench.mini.words import DIAGRAM_SENSE, TOY_SENSE

_PER_CLASS = 8


@dataclass(frozen=True)
class Question:
    """Images (n, R, R, 3), one caption per class, and the classes (n,) of the images."""

    images: np.ndarray
    captions: list[str]
    labels: np.ndarray


@dataclass(frozen=True)
class Probe:
    """The questions asked of a model in training, by name."""

    questions: dict[str, Question]

    def accuracies(
        self, encode_image: Callable[[torch.Tensor], torch.Tensor], encode_texts: Callable[[list[str]], torch.Tensor]
    ) -> dict[str, float]:
        """Zero-shot accuracy of every question in percent."""
        return {name: self._accuracy(q, encode_image, encode_texts) for name, q in self.questions.items()}

    @staticmethod
    def _accuracy(
        question: Question,
        encode_image: Callable[[torch.Tensor], torch.Tensor],
        encode_texts: Callable[[list[str]], torch.Tensor],
    ) -> float:
        features = torch.cat([F.normalize(encode_image(b), dim=-1) for b in preprocess(question.images).split(256)])
        answers = (features @ encode_texts(question.captions).T).argmax(dim=1).numpy()  # (n,)
        return round(100 * float((answers == question.labels).mean()), 1)


def _pictures(generator: np.random.Generator, shapes: np.ndarray, style: str, colours: np.ndarray | None) -> np.ndarray:
    styles = [STYLES.index("photo"), STYLES.index("clipart")] if style == "photo" else [STYLES.index(style)]
    scene = sample_scene(
        generator, len(shapes), shape=shapes, colour=colours, count=[1], style=styles, full=False
    )  # other attributes as in pre-training
    return render(scene, generator)


def draw_probe(generator: np.random.Generator) -> Probe:
    """Held-out pairs by shape, by colour and as pairs; ambiguous words in the context that settles their sense."""
    pairs = np.repeat(np.arange(len(HELD_OUT)), _PER_CLASS)
    shapes, colours = np.array(HELD_OUT)[pairs].T
    photos = _pictures(generator, shapes, "photo", colours)
    pair_words = [f"a photo of a {COLOUR_NAMES[c]} {SHAPES[s]}." for s, c in HELD_OUT]
    questions = {
        "shapes": Question(photos, [f"a photo of a {s}." for s in SHAPES], shapes),
        "colours": Question(photos, [f"a photo of a {c} object." for c in COLOUR_NAMES[: colours.max() + 1]], colours),
        "held_out_pairs": Question(photos, pair_words, pairs),
    }
    for name, style, senses in (("diagram", "sketch", DIAGRAM_SENSE), ("toy", "photo", TOY_SENSE)):
        labels = np.repeat(np.arange(len(senses)), _PER_CLASS)
        wanted = np.array([SHAPES.index(s) for s in senses.values()])[labels]
        words = [f"a diagram of a {w}." if name == "diagram" else f"a photo of a toy {w}." for w in senses]
        questions[f"{name}_words"] = Question(_pictures(generator, wanted, style, None), words, labels)
    return Probe(questions)
