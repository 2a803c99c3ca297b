"""Evaluating the methods that leave the image tower alone, on one dataset, with several seeds each.

Plain: every method and seed decodes and encodes all test images anew, and encodes the class texts for every batch
(zero-shot CLIP and GalLoP: once, as their authors do; CoCoOp: for every image). Each method is timed for one seed, and
counted for all; of CoCoOp's images, a few are scored and counted for all. Ours is run whole, from an empty cache:
the first seed of the first method fills it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.data.batches import pixel_batches
from promptbench.data.selection import SelectedImages
from promptbench.method import Method, create_method

from .ours import class_names, image_files, move, our_evaluation
from .plain import PLAIN, Plain
from .steps import LOGITS
from .timing import Matmul, seconds_of

METHODS = ("zeroshot", "linear_probe", "coop", "cocoop", "gallop")  # none of which ever prompts the image tower
BATCH = 100
SCORED = 2  # images of which CoCoOp's plain path is timed


@torch.no_grad()
def time_evaluations(
    backbone: Backbone, classes: int, images: int, seeds: Sequence[int], matmul: Matmul
) -> dict[str, Any]:
    """Seconds of both sides by method; see the module's docstring."""
    names, methods = class_names(classes), {}
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder, empty_cache(Path(folder) / "cache"):
        chosen = image_files(Path(folder) / "images", images, backbone.resolution)
        for label in METHODS:
            trained = [with_seed(label, backbone, names, seed) for seed in seeds]
            plain = PLAIN[label](trained[0])
            bill, logits = time_plain(plain, chosen)
            timed = [our_evaluation(method, names, chosen) for method in trained]
            difference = float((timed[0][1].logits[: len(logits)] - logits).abs().max())
            assert difference <= LOGITS, f"{label}: logits differ by {difference}"
            ours = [seconds for seconds, _ in timed]
            methods[label] = {"plain": bill, "ours": ours, "difference": difference}
            rates += matmul.rates()
    sizes = {"classes": classes, "images": images, "batch": BATCH, "seeds": list(seeds)}
    return {**sizes, "methods": methods, "matmul": rates}


def time_plain(plain: Plain, chosen: SelectedImages) -> tuple[dict[str, float], Tensor]:
    """Seconds of a plain evaluation by part, and the logits of the first images.

    `once`: what is computed before the first batch; `images`: decoding and encoding all images; `scores`: scoring
    `scored` of them, class texts included.
    """
    bill = {"once": seconds_of(plain.start), "images": 0.0, "scores": 0.0, "scored": 0, "of": len(chosen.items)}
    logits: list[Tensor] = []
    began = time.perf_counter()
    for images, _ in pixel_batches(plain.method.backbone, chosen.dataset, chosen.items, batch=BATCH):
        features = plain.features(images.pixels)  # type: ignore[arg-type]
        bill["images"] += time.perf_counter() - began
        if not (plain.per_image and logits):
            began = time.perf_counter()
            logits.append(plain.logits(features[:SCORED] if plain.per_image else features))
            bill["scores"] += time.perf_counter() - began
        began = time.perf_counter()
    bill["scored"] = sum(map(len, logits))
    return bill, torch.cat(logits)


def plain_seconds(bill: dict[str, float]) -> float:
    """Of one whole evaluation, from its parts."""
    return bill["once"] + bill["images"] + bill["scores"] * bill["of"] / bill["scored"]


def with_seed(label: str, backbone: Backbone, names: Sequence[str], seed: int) -> Method:
    """A method as if trained with a seed, in evaluation mode."""
    config = {"template": "a photo of a {}."} if label == "zeroshot" else {}
    method = create_method(label, backbone, names, seed=seed, **config)
    move(list(method.parameters()), seed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(names))
    features = ImageFeatures(torch.randn(len(names), backbone.embed_dim, generator=generator))
    method.prepare([(Images(features=features), labels)])  # only a linear probe looks
    return method


@contextmanager
def empty_cache(folder: Path) -> Iterator[None]:
    """Within it, features are cached in a folder of their own."""
    before = os.environ.get("PROMPTBENCH_CACHE")
    os.environ["PROMPTBENCH_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PROMPTBENCH_CACHE"]
        else:
            os.environ["PROMPTBENCH_CACHE"] = before
