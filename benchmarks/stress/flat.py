"""How the memory of a run depends on how long it trains and on how many test images it scores: it should not.

    python benchmarks/stress/flat.py -o results/measured/flat.json

Each figure is the largest resident memory of a `promptbench run` of its own, on image files drawn by this script. What
has to grow is what a run keeps of an image, its feature and its logits: a few KiB. Where a method reads dense features,
there is the memory of `features.DENSE_LIMIT` besides, at most: they are made before they are written to their file.

The exit code is 1 where memory grows by more than the bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.clip.load import load_backbone
from promptbench.data.features import Kept
from promptbench.storage.versions import git_commit, library_versions

CLASSES = ("finch", "hawk", "owl", "wren")
SIDE = 160  # pixels of an image's side, more than any resolution of the mini tower
BOUNDS = {"MiB over epochs": 64.0, "KiB a test image": 16.0}  # the second without dense features


def main() -> None:
    """Measure, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Compare the memory of short and long runs.")
    parser.add_argument("--method", nargs="+", default=["coop", "maple", "gallop", "promptsrc"])
    parser.add_argument("--epochs", nargs="+", type=int, default=[2, 20, 200])
    parser.add_argument("--images", nargs="+", type=int, default=[100, 1000, 10000])
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder), options.method, sorted(options.epochs), sorted(options.images)))
    grown, limits = growth(rows), {method: bounds(method) for method in options.method}
    found = {"runs": rows, "growth": grown, "bounds": limits, "commit": git_commit()}
    text = json.dumps(found | {"versions": library_versions()}, indent=1) + "\n"
    print(text, end="")
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")
    sys.exit(0 if all(grown[method][what] <= most for method in limits for what, most in limits[method].items()) else 1)


def bounds(method: str) -> dict[str, float]:
    """The most that its memory may grow."""
    dense = registry.load("methods", method).reads_dense
    kept = Kept(dense=True).size(load_backbone("mini"), 1) / 1024 if dense else 0
    return {**BOUNDS, "KiB a test image": BOUNDS["KiB a test image"] + kept}


def measure(folder: Path, methods: Sequence[str], epochs: list[int], images: list[int]) -> Iterator[dict[str, Any]]:
    """A row for each run: more and more epochs on the fewest images, then more and more images."""
    for count in images:
        draw_images(folder / str(count), count)
    for method in methods:
        for length, count in [*((length, images[0]) for length in epochs), *((epochs[0], more) for more in images[1:])]:
            row = {"method": method, "epochs": length, "test images": count}
            yield row | peak_of(command(method, folder, length, count), folder / "cache")


def command(method: str, folder: Path, epochs: int, images: int) -> list[str]:
    """A run in one process."""
    words = [sys.executable, "-m", "promptbench", "run", "--method", method, "--backbone", "mini", "--seeds", "1"]
    words += ["--dataset", f"folder:{folder / str(images)}", "--shots", "4", "--threads", "1"]
    words += ["--output", str(folder / f"{method}-{epochs}-{images}")]
    return [*words, "--set", f"{method}.epochs={epochs}", f"{method}.warmup_epochs=0", f"{method}.batch=8"]


def peak_of(command: Sequence[str], cache: Path) -> dict[str, float]:
    """The most memory that a command had at a time since its last run began, where a run measures its own."""
    environment = {**os.environ, "PROMPTBENCH_CACHE": str(cache)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the run failed: {said}")
    return {"peak MiB": round(used.ru_maxrss / 2**10, 1)}


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By method: how much more the longest training takes than the shortest, and each test image."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        first = own[0]
        longest = max(own, key=lambda row: row["epochs"])
        largest = max(own, key=lambda row: row["test images"])
        images = max(largest["test images"] - first["test images"], 1)
        found[method] = {
            "MiB over epochs": round(longest["peak MiB"] - first["peak MiB"], 1),
            "KiB a test image": round(1024 * (largest["peak MiB"] - first["peak MiB"]) / images, 2),
        }
    return found


def draw_images(folder: Path, test: int) -> None:
    """So many test images and four training images a class: noise around a colour."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, images in (("train", 4 * len(CLASSES)), ("test", test)):
        for number in range(images):
            place = folder / split / CLASSES[number % len(CLASSES)]
            place.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 128, (SIDE, SIDE, 3)) + 32 * (number % len(CLASSES))
            Image.fromarray(pixels.astype("uint8")).save(place / f"{number:06}.jpg")


if __name__ == "__main__":
    main()
