"""How much memory one training step takes over the frozen weights, on a ViT-B/16-sized CLIP with random weights.

    python -m promptbench.benchmarks.speed.memory --classes 1000 --batch 8 -o results/measured/memory.json

Each method runs in a process of its own. Resident memory is Linux's: its peak (VmHWM, reset before the step) minus what
is resident once weights, method and class tokens are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import islice, product
from pathlib import Path
from typing import Any

BACKBONE = "ViT-B-16-quickgelu:random"
FIRST = ("small", "large", "young", "old", "spotted", "striped", "northern", "southern", "eastern", "western")
SECOND = ("mountain", "river", "forest", "desert", "garden", "harbour", "kitchen", "winter", "summer", "field")
THIRD = ("cat", "dog", "bird", "flower", "boat", "train", "bridge", "teapot", "violin", "castle")


def class_names(count: int) -> list[str]:
    """Class names of three words each, at most 1000."""
    words = islice(product(FIRST, SECOND, THIRD), count)
    return list(map(" ".join, words))


def main() -> None:
    """Measure each method, print a line for it, and write all as JSON."""
    parser = argparse.ArgumentParser(description="Measure the memory of a training step.")
    parser.add_argument("--method", nargs="+", default=["cocoop", "mutual"])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("-o", "--report", help="JSON file to write")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.classes, options.batch)))
        return
    rows = []
    for method in options.method:
        sizes = ["--classes", str(options.classes), "--batch", str(options.batch)]
        command = [sys.executable, "-m", "promptbench.benchmarks.speed.memory", "--one", method, *sizes]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{method}: {rows[-1]['gib_over_weights']:.2f} GiB over {rows[-1]['gib_before']:.2f}, ", end="")
        print(f"{rows[-1]['seconds']:.1f} s a step, loss {rows[-1]['loss']:.4f}")
    if options.report:
        Path(options.report).write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def measure(label: str, classes: int, batch: int) -> dict[str, Any]:
    """One step, forward and backward, of a method on random images."""
    import torch

    from promptbench.clip.image_tower import Images
    from promptbench.clip.load import load_backbone
    from promptbench.method import create_method
    from promptbench.storage.versions import library_versions
    from promptbench.training.fit import loss_of

    names = class_names(classes)
    backbone = load_backbone(BACKBONE)
    method = create_method(label, backbone, names).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, backbone.resolution, backbone.resolution, generator=generator)
    labels = torch.arange(batch) % len(names)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = memory("VmRSS"), time.perf_counter()
    loss = loss_of(method, Images(images), labels)[1]
    loss.backward()
    return {
        "method": label,
        "backbone": BACKBONE,
        "classes": len(names),
        "batch": batch,
        "threads": torch.get_num_threads(),
        "memory_budget_gib": backbone.memory_budget / 2**30,
        "gib_before": round(before, 3),
        "gib_over_weights": round(memory("VmHWM") - before, 3),
        "seconds": round(time.perf_counter() - began, 1),
        "loss": float(loss.detach()),
        "versions": library_versions(),
    }


def memory(field: str) -> float:
    """A figure of this process from Linux, in GiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**20
    raise OSError(f"this system does not say {field}")


if __name__ == "__main__":
    main()
