"""What a dataset of ImageNet's size costs: finding the files, encoding test images, texts of 1000 classes.

    python benchmarks/stress/imagenet_size.py -o results/measured/imagenet_size.json            # about half an hour
    python benchmarks/stress/imagenet_size.py --part files --folder /data/scratch -o files.json
    python benchmarks/stress/imagenet_size.py --render results/measured/imagenet_size.json

A tree in ImageNet's layout is made below a folder and removed at the end: 1000 classes under ImageNet's names, 50,000
test images, and more and more training images. Every image is a file of its own with bytes of its own, no link, a JPEG
of 32 x 32 pixels of about 1 kB: names, folders and their sizes are ImageNet's, pixels are not.

Each figure is taken in a process of its own, several times, and the fastest counts. `cold`: nothing is remembered of
the tree, though the system may have its folders in memory; `remembered`: the call before has listed it. Bars are of the
processor's seconds, which other work on the machine does not change; wall clock stands beside them. The exit code is 1
where one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptbench.benchmarks.speed.memory import memory

from promptbench import registry
from promptbench.data.listing import SETTLED
from promptbench.storage.versions import git_commit, library_versions

CLASSES, TEST = 1000, 50_000
WHOLE = 1_281_167  # ImageNet's training images
SIZES = (50_000, 100_000, 200_000, WHOLE)
ACTS = ("finding the files", "drawing 16 shots", "data status", "preflight")
STATES = ("cold", "remembered")
BARS = {"cold": 20.0, "remembered": 3.0}  # the processor's seconds of each act for all training images
LINEAR = 1.5  # times the processor's seconds an image at the most images over those at the second most, at most
GROWTH = 4.0  # KiB that memory may grow by with each image encoded, its feature included
TEXT = 2.5  # GiB over the weights
BACKBONE = "ViT-B-16-quickgelu:random"
BATCH = 8  # images of a training step on 1000 classes
PARTS = ("files", "features", "text")


def main() -> None:
    """Measure, print, and write what was found."""
    parser = argparse.ArgumentParser(description="Measure what ImageNet's size costs, on images made here.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--images", nargs="+", type=int, default=SIZES, help="training images, more and more")
    parser.add_argument("--test-images", type=int, default=TEST)
    parser.add_argument("--repeats", type=int, default=3, help="of each figure of files; the fastest counts")
    parser.add_argument("--method", nargs="+", help="whose texts are made; default: all")
    parser.add_argument("--backbone", default=BACKBONE, help="that makes texts")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the texts of a method")
    parser.add_argument("--folder", help="where the tree is made; default: the system's for temporary files")
    parser.add_argument("--render", metavar="FILE", help="a report; its page is written beside it")
    parser.add_argument("-o", "--report", help="JSON file to write, and a page beside it; parts not measured stay")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](*options.child[1:])))
        return
    if options.render:
        found = json.loads(Path(options.render).read_text(encoding="utf-8"))
        Path(options.render).with_suffix(".md").write_text(page(found), encoding="utf-8")
        return
    path = Path(options.report) if options.report else None
    found = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="imagenet-size-", dir=options.folder) as folder:
        for part in options.part:
            rows = measure(part, Path(folder), options)
            if part == "text":  # methods not measured now stay as they are
                rows = list(({row["method"]: row for row in [*found.get(part, []), *rows]}).values())
            found[part] = rows
    found |= {"commit": git_commit(), "versions": library_versions(), "cores": os.cpu_count()}
    print(page(found))
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(page(found), encoding="utf-8")
    sys.exit(0 if all(met for *_, met in judged(found)) else 1)


def measure(part: str, folder: Path, options: argparse.Namespace) -> Any:
    """The rows of one part."""
    tree = Tree(folder / "data", options.classes)
    if part == "files":
        return list(of_files(tree, sorted(options.images), options.test_images, options.repeats))
    if part == "features":
        tree.fill("val", options.test_images)
        tree.fill("train", options.classes)
        return child("features", str(tree.root), cache=folder / "cache")
    return list(of_texts(options.method or registry.names("methods"), options.classes, options.backbone, options.limit))


class Tree:
    """Folders and files as ImageNet has them, below a data root."""

    def __init__(self, root: Path, classes: int) -> None:
        import open_clip

        self.root, self.images = root, root / "imagenet" / "images"
        self.wnids = [f"n{10_000_000 + 7 * number:08}" for number in range(classes)]
        self.images.mkdir(parents=True, exist_ok=True)
        names = zip(self.wnids, open_clip.IMAGENET_CLASSNAMES, strict=False)
        lines = [f"{wnid} {name}\n" for wnid, name in names]
        (self.images.parent / "classnames.txt").write_text("".join(lines), encoding="utf-8")
        self.made = {"train": 0, "val": 0}

    def fill(self, split: str, images: int) -> None:
        """Add images of all classes in turn, until there are so many."""
        jpeg = self._jpegs()
        for wnid in self.wnids:
            (self.images / split / wnid).mkdir(parents=True, exist_ok=True)
        for number in range(self.made[split], images):
            place = number % len(self.wnids)
            wnid = self.wnids[place]
            name = f"{wnid}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08}.JPEG"
            with open(self.images / split / wnid / name, "wb", buffering=0) as file:
                file.write(jpeg[place] + name.encode())  # decoders stop before it
        self.made[split] = images

    def _jpegs(self) -> list[bytes]:
        import numpy as np
        from PIL import Image

        generator, found = np.random.default_rng(0), []
        for _ in self.wnids:
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG", quality=50)
            found.append(file.getvalue())
        return found


def of_files(tree: Tree, sizes: Sequence[int], test_images: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each act, size and state."""
    tree.fill("val", test_images)
    for size in sizes:
        tree.fill("train", size)
        time.sleep(SETTLED + 1)
        for act in ACTS:
            with tempfile.TemporaryDirectory() as folder:
                for state in STATES:
                    fastest: dict[str, Any] = {}
                    for _ in range(repeats):
                        cache = Path(folder) / "cache"
                        if state == "cold":
                            shutil.rmtree(cache, ignore_errors=True)
                        found = child("act", act, str(tree.root), cache=cache)
                        if not fastest or found["seconds"] < fastest["seconds"]:
                            fastest = found
                    yield {"what": act, "listing": state, "training images": size, **fastest}
                    print(f"... {act}, {state}, {size}: {fastest}", flush=True)


def of_texts(methods: Sequence[str], classes: int, backbone: str, limit: float) -> Iterator[dict[str, Any]]:
    """A row for each method."""
    for label in methods:
        row: dict[str, Any] = {"method": label, "classes": classes, "batch": BATCH}
        try:
            row |= child("text", label, str(classes), backbone, limit=limit)
        except subprocess.TimeoutExpired:
            row["not measured"] = f"took more than {limit:.0f} s here"
        yield row
        print(f"... {row}", flush=True)


def child(what: str, *words: str, cache: Path | None = None, limit: float = 1800) -> dict[str, Any]:
    """What a process of its own measures.

    Raises:
        RuntimeError: It failed.
    """
    environment = {**os.environ, **({"PROMPTBENCH_CACHE": str(cache)} if cache else {})}
    command = [sys.executable, __file__, "--child", what, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"{what} {' '.join(words)} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def act(name: str, root: str) -> dict[str, Any]:
    """Seconds and most memory of one act on a tree, imports apart."""
    prepare: dict[str, Callable[[str], Callable[[], object]]] = {
        "finding the files": finding,
        "drawing 16 shots": drawing,
        "data status": status,
        "preflight": preflight,
    }
    do = prepare[name](root)
    began, cpu = time.perf_counter(), time.process_time()
    do()
    return {
        "seconds": round(time.perf_counter() - began, 3),
        "CPU seconds": round(time.process_time() - cpu, 3),
        "peak MiB": round(1024 * memory("VmHWM"), 1),
    }


def finding(root: str) -> Callable[[], object]:
    """List all images with their classes."""
    from promptbench.data.dataset import open_dataset

    dataset = open_dataset("imagenet", roots=[root])
    return lambda: [dataset.items(split) for split in ("train", "test")]


def drawing(root: str) -> Callable[[], object]:
    """Draw the few-shot sample of a run."""
    from promptbench.data.dataset import open_dataset
    from promptbench.data.selection import Selection, open_selection

    dataset = open_dataset("imagenet", roots=[root])
    selection = Selection(dataset="imagenet", split="train", shots=16)
    return lambda: open_selection(lambda name: dataset, selection, seed=1)


def status(root: str) -> Callable[[], object]:
    """`promptbench data status imagenet`."""
    from promptbench.cli.main import main as promptbench

    def said() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            promptbench(["data", "status", "imagenet", "--data-root", root])

    return said


def preflight(root: str) -> Callable[[], object]:
    """What `promptbench run` looks at before a training on the base classes; the backbone is loaded already."""
    import logging

    from promptbench.cli.flags import request_of, session_of
    from promptbench.cli.main import parser
    from promptbench.runs.plan import plan_runs
    from promptbench.sweep import preflight as before

    logging.disable()
    words = ["run", "--suite", "clip11", "--backbone", "mini", "--method", "coop", "--protocol", "base2new"]
    options = parser().parse_args([*words, "--dataset", "imagenet", "--seeds", "1", "--data-root", root])
    request = request_of(options)
    session = session_of(options, request.suite, Path(root) / "runs", request.device)
    runs = plan_runs(request)
    assert session.backbone is not None
    return lambda: before.preflight(session, runs)


def features(root: str) -> dict[str, Any]:
    """Encoding all test images into the cache with the embedded CLIP, and reading them from there."""
    from promptbench.clip.load import load_backbone
    from promptbench.data.dataset import open_dataset
    from promptbench.data.features import Kept, kept_features, key, path_of

    backbone = load_backbone("mini")
    dataset = open_dataset("imagenet", roots=[root])
    items = dataset.items("test")
    kept_features(backbone, dataset, items[: len(items) // 50], Kept())  # what torch takes once, is taken
    seen: list[tuple[float, float]] = []
    over = threading.Event()
    began = time.perf_counter()

    def watch() -> None:
        while not over.wait(0.25):
            seen.append((time.perf_counter() - began, 1024 * memory("VmRSS")))

    watcher = threading.Thread(target=watch)
    before = 1024 * memory("VmRSS")
    watcher.start()
    kept_features(backbone, dataset, items, Kept())
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    again = time.perf_counter()
    kept_features(backbone, dataset, items, Kept())
    marks = [seen[place * (len(seen) - 1) // 10] for place in range(11)] if seen else []
    return {
        "images": len(items),
        "seconds": round(seconds, 1),
        "images a second": round(len(items) / seconds, 1),
        "bytes an image": round(path_of(key(backbone, dataset, items)).stat().st_size / len(items), 1),
        "reading them again, seconds": round(time.perf_counter() - again, 2),
        "MiB before": round(before, 1),
        "MiB over time": [[round(second, 1), round(mib, 1)] for second, mib in marks],
        "KiB an image": round(1024 * (1024 * memory("VmHWM") - before) / len(items), 2),
    }


def text(label: str, classes: str, backbone_name: str) -> dict[str, Any]:
    """Most memory over the weights while a method is made for so many classes, and learns or scores a batch."""
    import torch
    from promptbench.benchmarks.speed.ours import class_names
    from promptbench.benchmarks.speed.steps import shown_to

    from promptbench.clip.load import load_backbone
    from promptbench.method import create_method, show_training_images
    from promptbench.sweep.estimate import drawn_images
    from promptbench.training.fit import loss_of

    backbone = load_backbone(backbone_name)
    names = class_names(int(classes))
    before, began = memory("VmRSS"), time.perf_counter()
    method = create_method(label, backbone, names)
    if method.prepares:
        show_training_images(method, shown_to(method, len(names)), seed=4)
    images = drawn_images(method, BATCH, method.reads_dense)
    labels = torch.arange(BATCH) % len(names)
    if method.trains:
        _, loss = loss_of(method.train(), images, labels)
        loss.backward()
    else:
        with torch.no_grad():
            method.eval()(images)
    return {
        "GiB over the weights": round(memory("VmHWM") - before, 3),
        "seconds": round(time.perf_counter() - began, 1),
        "what": "a training step" if method.trains else "scores",
        "threads": torch.get_num_threads(),
        "memory_budget_gib": backbone.memory_budget / 2**30,
    }


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"act": act, "features": features, "text": text}


def at_whole(rows: Sequence[Mapping[str, Any]], what: str, listing: str) -> tuple[float, bool]:
    """The processor's seconds of an act for all training images, and whether they were extrapolated: on a line through
    those at the fewest and the most images."""
    own = [row for row in rows if (row["what"], row["listing"]) == (what, listing)]
    few, many = own[0], own[-1]
    if many["training images"] == WHOLE or len(own) < 2:
        return many["CPU seconds"], many["training images"] != WHOLE
    slope = (many["CPU seconds"] - few["CPU seconds"]) / (many["training images"] - few["training images"])
    return many["CPU seconds"] + slope * (WHOLE - many["training images"]), True


def growth_of(rows: Sequence[Mapping[str, Any]], what: str) -> float:
    """The processor's seconds an image of a cold act at the most images, over those at the second most: 1 or less where
    they grow in proportion."""
    own = [row for row in rows if (row["what"], row["listing"]) == (what, "cold")]
    fewer, most = (row["CPU seconds"] / row["training images"] for row in own[-2:])
    return float(most / fewer)


def judged(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """What was measured, its figure, its bar, and whether it is met."""
    rows = found.get("files", [])
    for what in ACTS if rows else ():
        for listing in STATES:
            seconds, extrapolated = at_whole(rows, what, listing)
            if extrapolated and any(row["training images"] == WHOLE for row in rows):
                continue  # stopped before this act's last figure, which a line through smaller ones does not give
            bar = BARS[listing]
            said = f"{seconds:.2f} s{' (extrapolated)' if extrapolated else ''}"
            yield f"{what}, {WHOLE:,} training images, {listing}", said, f"at most {bar:.0f} s", seconds <= bar
        if len({row["training images"] for row in rows}) > 1:
            growth = growth_of(rows, what)
            yield (
                f"{what}, seconds an image over those at fewer images",
                f"{growth:.2f}",
                f"at most {LINEAR}",
                growth <= LINEAR,
            )
    if "features" in found:
        growth = found["features"]["KiB an image"]
        yield "memory of encoding an image", f"{growth} KiB", f"at most {GROWTH} KiB", growth <= GROWTH
    for row in found.get("text", []):
        if "GiB over the weights" in row:
            gib = row["GiB over the weights"]
            yield f"{row['method']}, {row['classes']} classes", f"{gib:.2f} GiB", f"at most {TEXT} GiB", gib <= TEXT


def page(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    about = (
        "Images of 32 x 32 pixels, made by `benchmarks/stress/imagenet_size.py`, in folders as ImageNet has them; each "
        "is a file of its own. Seconds are those of the fastest of several processes, without imports, and in "
        "preflight without loading the backbone. Bars are of the processor's seconds, for the machine was shared; wall "
        "clock stands beside them. Cold: nothing of the tree is remembered, though the system may have its folders in "
        "memory."
    )
    lines = ["# ImageNet's size, rehearsed", "", about, ""]
    lines += ["| what | measured | bar | met |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {what} | {said} | {bar} | {'yes' if met else '**no**'} |" for what, said, bar, met in judged(found)]
    if "files" in found:
        lines += ["", "## Files", ""]
        lines += ["| what | listing | training images | seconds | CPU seconds | peak, MiB |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
        keys = ("what", "listing", "training images", "seconds", "CPU seconds", "peak MiB")
        for row in found["files"]:
            lines.append(f"| {' | '.join(str(row[key]) for key in keys)} |")
    if "features" in found:
        lines += ["", "## Test images through the feature cache, embedded CLIP", "", "| | |", "| --- | ---: |"]
        own = {name: value for name, value in found["features"].items() if name != "MiB over time"}
        lines += [f"| {name} | {value} |" for name, value in own.items()]
        memory_then = ", ".join(f"{mib:.0f} at {second:.0f} s" for second, mib in found["features"]["MiB over time"])
        lines += ["", f"Resident memory, MiB: {memory_then}."]
    if "text" in found:
        lines += ["", f"## Texts of many classes, {BACKBONE}, batches of {BATCH}", ""]
        lines += ["| method | classes | what | GiB over the weights | seconds |", "| --- | ---: | --- | ---: | ---: |"]
        for row in found["text"]:
            gib = row.get("GiB over the weights", "")
            what = row.get("what") or f"not measured: {row['not measured']}"
            lines += [f"| {row['method']} | {row['classes']} | {what} | {gib} | {row.get('seconds', '')} |"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
