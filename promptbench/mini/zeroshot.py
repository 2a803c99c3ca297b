"""Zero-shot figures of the tiny CLIP on the mini sets: `python -m promptbench.mini.zeroshot`.

Accuracies in percent, with the generic template and with each set's own; the areas under the ROC curve, in percent, of
the maximum softmax probability of the cosines (temperature 1), which is large for images of known classes.

The tiny CLIP is asked the same kind of questions while it trains, on images and pairs that it has not seen: `Probe`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from torch.nn import functional as F

from promptbench.mini.model import WEIGHTS_FILE, CachedTokenizer, encode_text, ends_of, load, preprocess
from promptbench.mini.render import render
from promptbench.mini.scene import COLOUR_NAMES, HELD_OUT, STYLES, sample_scene
from promptbench.mini.sets import CORE, EXTRA, GENERIC_TEMPLATE, OOD, RENDER_SEED, SETS, SHIFTED, images
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
        found = {}
        for name, question in self.questions.items():
            batches = preprocess(question.images).split(256)
            features = torch.cat([F.normalize(encode_image(images), dim=-1) for images in batches])
            found[name] = round(accuracy(features @ encode_texts(question.captions).T, question.labels), 1)
        return found


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


SOURCE = "shapes"


def image_features(model: CLIP, pixels: np.ndarray) -> torch.Tensor:
    """Normalised features (n, D) of images (n, R, R, 3) uint8."""
    batches = (
        F.normalize(model.visual(preprocess(part)), dim=-1) for part in np.array_split(pixels, len(pixels) // 256 + 1)
    )
    return torch.cat(list(batches))


def text_features(model: CLIP, tokenize: CachedTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Normalised features (N, D) of texts."""
    tokens = tokenize(texts)
    return encode_text(model, torch.from_numpy(tokens), ends_of(tokens))


def accuracy(similarities: torch.Tensor, labels: np.ndarray) -> float:
    """Share of images whose own class is the most similar, in percent; similarities (n, K), labels (n,)."""
    return 100 * float((similarities.argmax(dim=1).numpy() == labels).mean())


def base_new_all(features: torch.Tensor, texts: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """Accuracy among the base classes, among the new classes, and among all, each on its own images."""
    half = (len(texts) + 1) // 2
    base = labels < half
    similarities = features @ texts.T  # (n, K)
    return {
        "base": round(accuracy(similarities[base, :half], labels[base]), 1),
        "new": round(accuracy(similarities[~base, half:], labels[~base] - half), 1),
        "all": round(accuracy(similarities, labels), 1),
    }


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Chance in percent that a known image scores above an unknown one; ties count half."""
    scores = np.sort(unknown)
    below = np.searchsorted(scores, known, side="left") + np.searchsorted(scores, known, side="right")
    return 100 * float(below.mean()) / (2 * len(unknown))


def mcm(similarities: torch.Tensor) -> np.ndarray:
    """Maximum softmax probability (n,) of cosines (n, K) at temperature 1."""
    return similarities.softmax(dim=1).max(dim=1).values.numpy()


@torch.no_grad()
def figures(
    render_seed: int = RENDER_SEED, *, folder: Path = WEIGHTS_FILE.parent
) -> dict[str, dict[str, dict[str, float]]]:
    """All zero-shot figures by group: held-out probe, sets by template, OOD sets."""
    model, tokenizer, _ = load(folder)
    tokenize = CachedTokenizer(tokenizer)

    def encode(name: str, template: str) -> torch.Tensor:
        return text_features(model, tokenize, [template.format(c) for c in SETS[name].class_names])

    out: dict[str, dict[str, dict[str, float]]] = {"generic": {}, "own": {}, "ood": {}, "probe": {}}
    for name in (*CORE, *EXTRA, *SHIFTED):
        pixels, labels = images(name, "test", render_seed)
        features = image_features(model, pixels)
        out["generic"][name] = base_new_all(features, encode(name, GENERIC_TEMPLATE), labels)
        out["own"][name] = base_new_all(features, encode(name, SETS[name].template), labels)
    for template in ("generic", "own"):
        core = [out[template][name] for name in CORE]
        means = {}
        for key in core[0]:
            means[key] = round(float(np.mean([figures_of_set[key] for figures_of_set in core])), 1)
        out[template]["core mean"] = means
    texts = encode(SOURCE, GENERIC_TEMPLATE).T
    known = mcm(image_features(model, images(SOURCE, "test", render_seed)[0]) @ texts)
    for name in OOD:
        unknown = mcm(image_features(model, images(name, "test", render_seed)[0]) @ texts)
        out["ood"][name] = {"auroc": round(auroc(known, unknown), 1)}
    probe = draw_probe(np.random.default_rng([render_seed, 3]))
    accuracies = probe.accuracies(model.visual, lambda texts: text_features(model, tokenize, texts))
    out["probe"] = {name: {"accuracy": value} for name, value in accuracies.items()}
    return out


def main() -> None:
    """Prints all figures from the command line, a line of JSON per set."""
    parser = argparse.ArgumentParser(prog="python -m promptbench.mini.zeroshot", description="Zero-shot figures.")
    parser.add_argument("--render-seed", type=int, default=RENDER_SEED, help="which draw of the sets")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FILE.parent, help="folder that holds the weights")
    arguments = parser.parse_args()
    for group, rows in figures(arguments.render_seed, folder=arguments.weights).items():
        for name, values in rows.items():
            print(json.dumps({"group": group, "set": name, **values}))


if __name__ == "__main__":
    main()
