"""Zero-shot figures of the tiny CLIP on the mini sets: `python -m promptbench.mini.zeroshot`.

Accuracies in percent, with the generic template and with each set's own; the areas under the ROC curve, in percent, of
the maximum softmax probability of the cosines (temperature 1), which is large for images of known classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from torch.nn import functional as F

from promptbench.mini.measure import draw_probe
from promptbench.mini.model import WEIGHTS_FILE, encode_text, ends_of, load, preprocess
from promptbench.mini.sets import CORE, EXTRA, GENERIC_TEMPLATE, OOD, RENDER_SEED, SETS, SHIFTED, images
from promptbench.mini.tokens import CachedTokenizer

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
