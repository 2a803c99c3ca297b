"""`promptbench predict`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench import registry
from promptbench.cli.flags import add_trained, classes_of, integer, run_of
from promptbench.config import UsageError, path_of

if TYPE_CHECKING:
    from promptbench.checkpoints.load import Trained
    from promptbench.data.class_names import ClassNames

HELP = "classify images with a trained prompt"
EXAMPLE = "promptbench predict --run latest --top 3 photo.jpg folder/"

SHOWN = 12  # class names in a sentence
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

    paths, asked = image_paths(options.images), classes_of(options)
    trained = load(run_of(options), device=options.device, backbone=options.backbone)
    names = all_known(trained) if asked is None else asked
    shown = trained.set_classes(names)  # a mistake in them comes before any image is read
    for sentence in (knowledge(trained, shown), *about_pictures(trained, paths)):
        print(f"promptbench: {sentence}", file=sys.stderr)
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
    from promptbench.data.listing import is_image

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


def all_known(trained: Trained) -> ClassNames | None:
    """The classes of its dataset, those of the other half too where a method was trained on one and can score both;
    None for what it scores by itself."""
    everything = trained.trained_on.with_more(trained.untrained)
    if not trained.untrained or tuple(trained.class_names) != tuple(trained.trained_on):
        return None
    return None if trained.method.refusal(everything) else everything


def knowledge(trained: Trained, shown: Sequence[str]) -> str:
    """Which classes it was trained on, from what and when, and what it makes of others.

    Args:
        trained: What was loaded.
        shown: The class names that it scores.
    """
    spec, known = trained.spec, trained.trained_on
    if not known:
        return f"{spec.label} was trained on no images: classes are told by the words of their names alone"
    protocol = spec.trained_by or spec.protocol
    when = f" at {trained.result.created}" if trained.result is not None else ""
    shots = "all images" if spec.shots is None else f"at most {spec.shots} images"
    said = (
        f"{spec.label} was trained{when} under {protocol} on {counted(trained)} of '{spec.dataset}' ({listed(known)}), "
        f"{shots} of each"
    )
    unseen = [name for name in shown if name not in set(known)]
    if unseen:
        return f"{said}; others are told by the words of their names alone ({listed(unseen)})"
    if trained.untrained:
        return f"{said}; the others are unknown to it: whatever an image shows, it gets one of these names"
    if halves(protocol):
        return f"{said}; the other half is unknown here: without --classes that name it, images get one of these names"
    return f"{said}; whatever an image shows, it gets one of these names"


def counted(trained: Trained) -> str:
    """How many classes it was trained on, and of how many, as far as that is known."""
    known = len(trained.trained_on)
    if trained.untrained:
        return f"{known} of the {known + len(trained.untrained)} classes"
    return (
        f"{known} classes, half of those"
        if halves(trained.spec.trained_by or trained.spec.protocol)
        else f"{known} classes"
    )


def halves(protocol: str) -> bool:
    """Whether a protocol trains on half of the classes; one of a plugin that is not there does not say."""
    return protocol in registry.names("protocols") and bool(registry.load("protocols", protocol).halves)


def listed(names: Sequence[str]) -> str:
    """Class names, the first of many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def about_pictures(trained: Trained, paths: Sequence[Path]) -> Iterator[str]:
    """What is to be said of pictures: that the embedded backbone knows none, and what becomes of transparency."""
    from promptbench.clip.load import EMBEDDED, said_of_embedded
    from promptbench.data.decode import NO_ALPHA, has_alpha

    if trained.method.backbone.name == EMBEDDED:
        yield said_of_embedded()
    if any(map(has_alpha, paths)):
        yield f"images {NO_ALPHA}"


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
