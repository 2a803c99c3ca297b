"""Kills a sweep at random instants, starts it again each time, and compares what it leaves with an undisturbed one.

    python benchmarks/stress/kill.py --kills 200 -o results/measured/kill.json

Every kill is SIGKILL, of the whole sweep or of one of its processes. Result files must be equal byte by byte but for
what is no number of theirs: costs, and when they were made; learned tensors must be equal; nothing else may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("zeroshot", "coop", "gallop")  # none, one that draws nothing, one that draws in its loss
UNTRAINED = ("zeroshot", "greedy")  # the second, of `surroundings.py`, takes memory and does nothing else
NO_NUMBERS = ("cost", "created", "commit")  # of a result file
KEPT = (".json", ".safetensors", ".tmp")  # the last: half a file, which a later call removes once it is old
LONGEST = 20  # kills in a row of one sweep, after which it may finish
FURTHER = ("--retry-failed",)  # words of every command: a run whose process was killed again and again is tried again


def main() -> None:
    """Kill, compare, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Kill sweeps at random instants and compare what they leave.")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1, help="draws the instants")
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), options)
    print(json.dumps(found, indent=1, sort_keys=True))
    if options.report:
        Path(options.report).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.exit(0 if not found["different"] and not found["left over"] else 1)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """How killed sweeps differ from one that nobody disturbed."""
    draw_images(folder / "images")
    began = time.monotonic()
    carry_out(folder / "whole", folder, options)
    undisturbed = time.monotonic() - began
    expected = numbers(folder / "whole")
    instants, kills, sweeps = random.Random(options.seed), 0, 0
    different: list[str] = []
    left: list[str] = []
    while kills < options.kills:
        output = folder / f"killed-{sweeps}"
        sweeps += 1
        for _ in range(min(LONGEST, options.kills - kills)):
            if not killed(output, folder, options, instants.uniform(0.2, undisturbed), instants.random() < 0.3):
                break
            kills += 1
        carry_out(output, folder, options)
        found = numbers(output)
        different += [f"{output.name}/{name}" for name in expected | found if expected.get(name) != found.get(name)]
        files = (path for path in output.rglob("*") if path.is_file() and path.suffix not in KEPT)
        left += [path.relative_to(folder).as_posix() for path in files]
    return {
        "kills": kills,
        "sweeps": sweeps,
        "files compared": len(expected) * sweeps,
        "different": different,
        "left over": left,
        "seconds of an undisturbed sweep": round(undisturbed, 1),
    }


def command(output: Path, folder: Path, options: argparse.Namespace) -> list[str]:
    """The sweep."""
    trained = [method for method in options.method if method not in UNTRAINED]
    lengths = [f"{method}.epochs={options.epochs}" for method in trained]
    sizes = [f"{method}.batch=4" for method in trained]
    words = [sys.executable, "-m", "promptbench", "run", "--method", *options.method]
    words += ["--dataset", f"folder:{folder / 'images'}", "--backbone", options.backbone, "--seeds", "1"]
    words += ["--shots", "4", "--threads", "1", "--output", str(output), "--jobs", str(options.jobs)]
    return [*words, *FURTHER, "--set", *lengths, *sizes]


def environment(folder: Path) -> dict[str, str]:
    """A note of where each training stands after every epoch, and a cache of its own."""
    return {**os.environ, "PROMPTBENCH_PARTIAL_SECONDS": "0", "PROMPTBENCH_CACHE": str(folder / "cache")}


def carry_out(output: Path, folder: Path, options: argparse.Namespace) -> None:
    """The sweep to its end."""
    done = subprocess.run(command(output, folder, options), env=environment(folder), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the sweep failed: {done.stderr}")


def killed(output: Path, folder: Path, options: argparse.Namespace, after: float, one: bool) -> bool:
    """Start the sweep and kill it after so many seconds; whether it was still at work.

    Args:
        one: Kill one of its processes alone; a worker's sweep then goes on to its end.
    """
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(output, folder, options), env=environment(folder), **silent)  # type: ignore[call-overload]
    try:
        process.wait(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        everyone = [process.pid, *descendants(process.pid)]
        for pid in random.Random(after).sample(everyone, 1) if one else everyone:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        return True


def descendants(parent: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found, parents = [parent], []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents.append((int(path.parent.name), int(fields[1])))
        except (OSError, ValueError, IndexError):
            continue
    for known in found:
        found += [pid for pid, its_parent in parents if its_parent == known]
    return found[1:]


def numbers(output: Path) -> dict[str, bytes]:
    """Result files without what is no number of theirs, and the tensors of trainings, by path."""
    found = {}
    for path in output.rglob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in record.items() if key not in NO_NUMBERS}
        found[path.relative_to(output).as_posix()] = json.dumps(kept, indent=1, sort_keys=True).encode()
    for path in (output / "trainings").glob("*.safetensors"):
        content = path.read_bytes()  # the head holds the seconds
        found[path.relative_to(output).as_posix()] = content[8 + int.from_bytes(content[:8], "little") :]
    return found


def draw_images(folder: Path) -> None:
    """Six images for each of four classes: noise around a colour."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for index, name in enumerate(("finch", "hawk", "owl", "wren")):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 128, (40, 40, 3)) + 40 * index % 128
            Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{number}.png")


if __name__ == "__main__":
    main()
