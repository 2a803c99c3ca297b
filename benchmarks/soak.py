"""Runs every method under every protocol for a long time, and watches memory and open files of each process.

    python -m promptbench.benchmarks.soak --seeds 5 --jobs 2 -o results/measured/soak.json

The trainings are cut to one epoch, so that it is runs that pass, hundreds of them, and not time. What is compared is
the median of the second quarter of a process's life with that of the last: the first quarter fills what is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from promptbench.benchmarks.kill import children

from promptbench import registry
from promptbench.provenance import git_commit, library_versions

EVERY = 1.0  # seconds between looks


def main() -> None:
    """Run, watch, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Watch a long sweep.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--method", nargs="+", default=["all"])
    parser.add_argument("--protocol", nargs="+", default=["all"])
    parser.add_argument("--dataset", nargs="+", default=[])
    parser.add_argument("--minutes", type=float, default=120, help="after which it is interrupted, and so recorded")
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        found = watch(Path(output), options)
    print(text := json.dumps(found, indent=1) + "\n", end="")
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")
    sys.exit(0 if not found["failed"] else 1)


def command(output: Path, options: argparse.Namespace) -> list[str]:
    """The sweep."""
    trained = [name for name in registry.names("methods") if registry.load("methods", name).trains]
    asked = [name for name in trained if options.method == ["all"] or name in options.method]
    words = [sys.executable, "-m", "promptbench", "run", "--method", *options.method, "--protocol", *options.protocol]
    words += ["--seeds", *map(str, range(1, options.seeds + 1)), "--jobs", str(options.jobs), "--threads", "1"]
    words += ["--output", str(output), *(["--dataset", *options.dataset] if options.dataset else [])]
    lengths = [f"{name}.{key}" for name in asked for key in ("epochs=1", "warmup_epochs=0")]
    return [*words, *(["--set", *lengths] if lengths else [])]


def watch(output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What became of a sweep, and of the memory and the open files of its processes."""
    began = time.monotonic()
    with (output / "said.txt").open("w") as said:
        process = subprocess.Popen(command(output, options), stdout=said, stderr=said)
        seen: dict[int, list[tuple[float, int]]] = defaultdict(list)
        while process.poll() is None:
            for pid in (process.pid, *children(process.pid)):
                if (look := looked_at(pid)) is not None:
                    seen[pid].append(look)
            if time.monotonic() - began > 60 * options.minutes:
                process.send_signal(signal.SIGINT)
                process.wait()
            time.sleep(EVERY)
    results = list((output / "results").rglob("*.json"))
    failed = [path.name for path in results if path.name.endswith(".failed.json")]
    return {
        "runs done": len(results) - len(failed),
        "failed": failed,
        "exit code": process.returncode,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "processes": [quarters(looks) for looks in seen.values() if len(looks) >= 8],
        "commit": git_commit(),
        "versions": library_versions(),
    }


def looked_at(pid: int) -> tuple[float, int] | None:
    """Resident memory in MiB and open files of a process, unless it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None


def quarters(looks: list[tuple[float, int]]) -> dict[str, float]:
    """Medians of the second and of the last quarter of a process's life."""
    size = len(looks) // 4
    second, last = looks[size : 2 * size], looks[-size:]
    return {
        "looks": len(looks),
        "MiB in the second quarter": round(statistics.median(memory for memory, _ in second), 1),
        "MiB in the last quarter": round(statistics.median(memory for memory, _ in last), 1),
        "open files in the second quarter": statistics.median(files for _, files in second),
        "open files in the last quarter": statistics.median(files for _, files in last),
    }


if __name__ == "__main__":
    main()
