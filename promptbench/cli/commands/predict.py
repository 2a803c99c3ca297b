"""`promptbench predict`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.cli.flags import add_trained, classes_of, integer
from promptbench.config import UsageError, path_of

if TYPE_CHECKING:
    from promptbench.checkpoints.load import Trained

HELP = "classify images with a trained prompt"
EXAMPLE = (
    "promptbench predict --run promptbench-runs/results/few_shot/dtd/coop-0123456789ab.json --classes cat,dog *.jpg"
)

Ranked = Sequence[tuple[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench predict` to its parser."""
    add_trained(parser)
    parser.add_argument("--top", type=integer(1), default=5, metavar="N", help="classes shown per image; default: 5")
    parser.add_argument("--format", default="table", choices=("table", "jsonl"), help="default: table")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, and folders of them")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench predict`; returns the exit code, 1 where an image could not be read."""
    from promptbench.checkpoints.load import load

    paths, names = image_paths(options.images), classes_of(options)
    trained = load(options.run, device=options.device, backbone=options.backbone)
    trained.set_classes(names)  # a mistake in them comes before any image is read
    rows: list[tuple[str, str, str]] = [("image", "class", "probability")]
    count = 0
    for path, ranked in predictions(trained, paths, names):
        count += 1
        best = ranked[: options.top]
        if options.format == "jsonl":
            print(json.dumps(as_record(path, best), ensure_ascii=False))
        else:
            first = [str(path), *[""] * (len(best) - 1)]
            rows += [(name, label, f"{p:.4f}") for name, (label, p) in zip(first, best, strict=True)]
    if len(rows) > 1:
        from promptbench.cli.text import columns

        print(columns(rows))
    return 0 if count == len(paths) else 1


def image_paths(words: Sequence[str]) -> list[Path]:
    """The files named, and the images in the folders named and below, each once.

    Raises:
        UsageError: A folder holds no image.
    """
    from promptbench.data.splits import is_image

    paths: list[Path] = []
    for word in words:
        place = path_of(word)
        if not place.is_dir():
            paths.append(place)
            continue
        found = sorted(Path(top, name) for top, _, names in os.walk(place) for name in names if is_image(name))
        if not found:
            raise UsageError(f"The folder {place} holds no image.")
        paths += found
    return list(dict.fromkeys(paths))


def predictions(trained: Trained, paths: Sequence[Path], names: Sequence[str] | None) -> Iterator[tuple[Path, Ranked]]:
    """The classes of each image that can be read, the likeliest first; the others are reported."""
    from promptbench.checkpoints.load import BATCH
    from promptbench.data.decode import open_image

    for start in range(0, len(paths), BATCH):
        images: dict[Path, Any] = {}
        for path in paths[start : start + BATCH]:
            try:
                images[path] = open_image(path)
            except UsageError as error:
                print(f"promptbench: {error}", file=sys.stderr)
        yield from zip(images, trained.classify(list(images.values()), names), strict=True)


def as_record(path: Path, ranked: Ranked) -> dict[str, Any]:
    """One line of JSON."""
    return {"image": str(path), "classes": [{"class": name, "probability": p} for name, p in ranked]}
