"""What a user pays for base-to-new of one dataset, by method: seconds and memory, ours measured, plain counted.

    python -m promptbench.benchmarks.speed.costs -o results/measured/speed-costs

The dataset has 50 base classes of 100, 16 shots, and the test images of `DATASET`; the CLIP is of ViT-B/16's size, with
random weights. Ours: each method in a process of its own makes its texts, takes a few training steps at full size, and
scores a few images, all on noise in memory; seconds are scaled by their numbers, and memory is the most that the
process had. Plain: the operations that torch counts in the plain path (`counted.py`), at the rate of the machine's own
matrix product, which nothing reaches: a lower bound. Image files are read on neither side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.storage.versions import git_commit, library_versions

from .memory import memory

BACKBONE = "ViT-B-16-quickgelu:random"
SUITE, DATASET = "clip11", "caltech101"  # whose recipes are taken; it has 100 classes
BATCH = 100  # images that the plain path scores at a time
SCORED = 8  # images whose encoding and scores are timed
STEPS = 2  # that are timed, after a first one
LIMIT = 600  # seconds for a method


def main() -> None:
    """Measure all methods, print the page, and write report and page."""
    parser = argparse.ArgumentParser(description="Measure what base-to-new of one dataset costs.")
    parser.add_argument("--method", nargs="+", help="default: all")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a method")
    parser.add_argument("--render", metavar="FILE", help="a report; its page is written beside it")
    parser.add_argument("-o", "--output", metavar="PATH", help="of the two files, without their ending")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one, options.backbone)))
        return
    if options.render:
        path = Path(options.render)
        path.with_suffix(".md").write_text(page(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    report = costs(options.method or all_methods(), options.backbone, options.limit)
    print(page(report))
    if options.output:
        write(report, Path(options.output))


def all_methods() -> list[str]:
    """Names of all methods."""
    return registry.names("methods")


def costs(methods: Sequence[str], backbone: str = BACKBONE, limit: float = LIMIT) -> dict[str, Any]:
    """The report; a method that fails or takes too long has a row that says so."""
    rows = list(rows_of(methods, backbone, limit))
    about = {"dataset": DATASET, "backbone": backbone, "commit": git_commit(), "versions": library_versions()}
    return {**about, "rows": rows}


def rows_of(methods: Sequence[str], backbone: str, limit: float) -> Iterator[dict[str, Any]]:
    """A row for each method, each from a process of its own."""
    for label in methods:
        command = [sys.executable, "-m", "promptbench.benchmarks.speed.costs", "--one", label, "--backbone", backbone]
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit)
            yield json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            yield {"method": label, "not measured": f"took more than {limit:.0f} s"}
        except subprocess.CalledProcessError as error:
            yield {"method": label, "not measured": (error.stderr.splitlines() or ["it failed"])[-1]}


def write(report: Mapping[str, Any], path: Path) -> None:
    """The report and its page, at a path without ending."""
    path.with_name(f"{path.name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path.with_name(f"{path.name}.md").write_text(page(report), encoding="utf-8")


def measured(label: str, backbone_name: str) -> dict[str, Any]:
    """The row of one method."""
    import torch

    from promptbench.clip.image_tower import Images
    from promptbench.clip.load import load_backbone
    from promptbench.data.batches import count_batches
    from promptbench.method import create_method, show_training_images
    from promptbench.sweep.estimate import drawn_images

    from .counted import count_plain, pixels
    from .memory import class_names
    from .ours import optimizer_of, our_step
    from .steps import shown_to
    from .timing import Matmul

    recipe, info = planned(label)
    base, new = (info.classes + 1) // 2, info.classes // 2
    shots, tested = 16 * base, info.images[2]
    backbone = load_backbone(backbone_name)
    before, started = memory("VmRSS"), time.perf_counter()
    method = create_method(label, backbone, class_names(base))
    if method.prepares:
        show_training_images(method, shown_to(method, base), seed=4)
    preparing = time.perf_counter() - started
    frozen, apart = method.frozen_image_tower, method.encodes_images_apart
    found: dict[str, Any] = {"method": label, "steps": 0, "training": 0.0}
    views = max(1, method.shown_views) if method.prepares else 0
    encoded = tested + shots * views if frozen else (tested if apart else 0)  # once each
    if recipe is not None and method.trains:
        reads = frozen and bool(recipe.train_views or not recipe.augment)
        batch = min(recipe.batch, shots)
        images = drawn_images(method.train(), batch, method.reads_dense) if reads else Images(pixels(backbone, batch))
        optimizer, labels = optimizer_of(method.parameters()), torch.arange(batch) % base
        found["steps"] = recipe.total_steps(count_batches(shots, recipe.batch, recipe.drop_last))
        found["training"] = found["steps"] * seconds(lambda: our_step(method, images, labels, optimizer), STEPS)
        encoded += shots * max(1, recipe.train_views) if reads and not method.prepares else 0
    method.eval()
    with torch.no_grad():
        shown = Images(pixels(backbone, SCORED), dense=method.reads_dense)
        encode = backbone.encode_image if frozen else method.encode_images
        encoding = encoded * seconds(lambda: encode(shown)) / SCORED if encoded else 0.0
        features = drawn_images(method, SCORED, method.reads_dense)
        scoring = 0.0
        for classes, images_of in ((base, tested * base), (new, tested * new), (base + new, tested * (base + new))):
            if method.refusal(class_names(classes)):
                continue
            method.set_classes(class_names(classes))
            if apart:
                scoring += seconds(lambda: (method.set_classes(method.class_names), method.text_features()), 1)
            else:
                scoring += images_of / info.classes * seconds(lambda: method(features), 1) / SCORED
    found |= {
        "preparing": preparing,
        "encoding": encoding,
        "scoring": scoring,
        "seconds": preparing + found["training"] + encoding + scoring,
        "GiB": memory("VmHWM"),
        "GiB over the weights": memory("VmHWM") - before,
    }
    matmul = Matmul(2048)
    matmul()
    rate = max(matmul.rates()) * 1e9
    plain = count_plain(label, backbone)
    if plain is not None:
        work = 0.0
        if plain.step is not None and found["steps"] and recipe is not None:
            work += found["steps"] * plain.step.at(base, min(recipe.batch, shots))
        for classes, images_of in ((base, tested * base), (new, tested * new), (base + new, tested * (base + new))):
            scored = images_of / info.classes
            work += plain.image.at(0, scored)
            work += scored / BATCH * plain.scores.at(classes, BATCH)
        found |= {"plain, PFLOP": work / 1e15, "plain, seconds at least": work / rate}
    return found | {"GFLOP/s of a matrix product": rate / 1e9, "threads": torch.get_num_threads()}


def planned(label: str) -> tuple[Any, Any]:
    """The recipe of a method on the dataset, None without training, and the facts of the dataset."""
    from promptbench.cli.flags import request_of
    from promptbench.cli.main import parser
    from promptbench.runs.plan import plan_runs

    words = ["run", "--suite", SUITE, "--method", label, "--protocol", "base2new", "--dataset", DATASET, "--seeds", "1"]
    run = next(run for run in plan_runs(request_of(parser().parse_args(words))) if run.spec.label == label)
    return run.settings.recipe, registry.load("datasets", DATASET).info


def seconds(do: Callable[[], object], times: int = 1) -> float:
    """Of one call, after a first one; the least of some."""
    do()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        found.append(time.perf_counter() - began)
    return min(found)


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    about = (
        f"Base-to-new on a dataset of {report['dataset']}'s sizes (50 base and 50 new classes, 16 shots, one seed), "
        f"{report['backbone']}, float32. Ours: a few steps, texts and images were timed on noise in memory and are "
        "scaled by their numbers; memory is the most that a process of the method alone had, weights included. Plain: "
        "operations counted, at the rate of the machine's matrix product, which nothing reaches, so a lower bound. "
        "Image files are read on neither side."
    )
    lines = ["## What base-to-new of one dataset costs", "", about, ""]
    ours = "steps | training, s | evaluation, s | all, s | peak, GiB"
    lines += [f"| method | {ours} | plain, PFLOP | plain, s at least | plain over ours |"]
    lines += [f"| --- |{' ---: |' * 8}"]
    for row in report["rows"]:
        if "not measured" in row:
            lines.append(f"| {row['method']} | not measured: {row['not measured']} |{' |' * 7}")
            continue
        evaluation = row["preparing"] + row["encoding"] + row["scoring"]
        cells = [row["method"], f"{row['steps']:,}", f"{row['training']:,.0f}", f"{evaluation:,.0f}"]
        cells += [f"{row['seconds']:,.0f}", f"{row['GiB']:.2f}"]
        if "plain, PFLOP" in row:
            least = row["plain, seconds at least"]
            cells += [f"{row['plain, PFLOP']:.3g}", f"{least:,.0f}", f"{least / row['seconds']:.1f}"]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
