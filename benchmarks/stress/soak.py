"""Runs every method under every protocol for a long time, and watches memory and open files of each process.

    python benchmarks/stress/soak.py --seeds 5 --jobs 2 -o results/measured/soak.json

The trainings are cut to one epoch, so that it is runs that pass, hundreds of them, and not time. What is compared is
the median of the second quarter of a process's life with that of the last: the first quarter fills what is kept.

The exit code is 1 where a run failed or none was done, the sweep ended on its own with another code than 0, or a
process grew beyond the bounds; the report then names what is wrong.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kill import descendants

from promptbench import registry
from promptbench.storage.versions import git_commit, library_versions

EVERY = 1.0  # seconds between looks
SHOWN = 8  # looks, from which on a process is in the report
JUDGED = 60  # looks, from which on its growth is judged: what starts grows
BOUNDS = {"percent": 10.0, "MiB": 100.0, "open files": 8.0}  # of growth; of memory, the larger of the two
PATIENCE = 60.0  # seconds that an interrupted sweep has to end
TAIL = 30  # lines of what the sweep said, shown where something is wrong


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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as output:
        found = watch(Path(output), options)
        said = (Path(output) / "said.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    print(text := json.dumps(found, indent=1) + "\n", end="")
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")
    if found["problems"]:
        print("\n".join(said[-TAIL:]), file=sys.stderr)
    sys.exit(1 if found["problems"] else 0)


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
    began, interrupted = time.monotonic(), False
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # else what a shell starts with & ignores it, sweep included
    with (output / "said.txt").open("w") as said:
        process = subprocess.Popen(command(output, options), stdout=said, stderr=said)
        seen: dict[int, list[tuple[float, int]]] = defaultdict(list)
        while process.poll() is None:
            for pid in (process.pid, *descendants(process.pid)):
                if (look := looked_at(pid)) is not None:
                    seen[pid].append(look)
            if time.monotonic() - began > 60 * options.minutes:
                interrupted = True
                interrupt(process)
            time.sleep(EVERY)
    results = list((output / "results").rglob("*.json"))
    failed = [path.name for path in results if path.name.endswith(".failed.json")]
    found = {
        "runs done": len(results) - len(failed),
        "failed": failed,
        "exit code": process.returncode,
        "interrupted": interrupted,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "bounds": BOUNDS,
        "processes": [quarters(looks) for looks in seen.values() if len(looks) >= SHOWN],
        "commit": git_commit(),
        "versions": library_versions(),
    }
    return {**found, "problems": problems(found)}


def interrupt(process: subprocess.Popen[Any]) -> None:
    """End a sweep as Ctrl-C does, or, where it does not heed that, at once."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def problems(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with a sweep, from its report."""
    wrong = []
    if found["failed"]:
        wrong.append(f"{len(found['failed'])} runs failed")
    if not found["runs done"]:
        wrong.append("no run was done")
    if found["exit code"] == -signal.SIGKILL:
        wrong.append("the sweep was killed")
    elif found["exit code"] and not found["interrupted"]:
        wrong.append(f"the sweep ended with exit code {found['exit code']}")
    judged = [process for process in found["processes"] if process["looks"] >= JUDGED]
    if not judged:
        wrong.append(f"no process was looked at {JUDGED} times, so that growth is not known")
    return [*wrong, *(sentence for process in judged for sentence in growth(process))]


def growth(process: Mapping[str, float]) -> Iterator[str]:
    """How a process grew beyond the bounds, from its quarters."""
    for what, least in (("MiB", BOUNDS["MiB"]), ("open files", BOUNDS["open files"])):
        second, last = process[f"{what} in the second quarter"], process[f"{what} in the last quarter"]
        bound = max(least, second * BOUNDS["percent"] / 100) if what == "MiB" else least
        if last - second > bound:
            yield f"a process grew from {second:g} to {last:g} {what}, by more than {bound:g}"


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
