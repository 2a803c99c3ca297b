"""Sends a sweep what a terminal, a cluster and a logout send, at random instants, and compares what it leaves.

    python benchmarks/stress/signals.py --instants 60 -o results/measured/signals.json

The signals are Ctrl-C, which a terminal sends to every process of the call, once and twice, SIGTERM and SIGHUP. The
call has to end soon, with the exit code that says so, without a traceback and without a process that lives on; the same
command afterwards leaves what an undisturbed sweep does, as `kill.py` compares it, and no more. Half a file, which a
later call removes, may be left by a signal whose default action ends the process, and by no other.

The exit code is 1 where one of them did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kill import KEPT, carry_out, command, draw_images, environment, numbers

from promptbench.storage.versions import git_commit, library_versions

WAYS = ("Ctrl-C", "Ctrl-C twice", "SIGTERM", "SIGHUP")
CODES = {"Ctrl-C": (130, -2), "Ctrl-C twice": (130, -2), "SIGTERM": (143, -15), "SIGHUP": (129, -1)}  # one to a shell
APART = (0.05, 0.3)  # seconds between two Ctrl-C
PATIENCE = 20.0  # seconds in which a call has to end, and its processes after it
NOISE = ("Traceback", "Exception ignored")
OURS = "promptbench"  # in every traceback but those of the interpreter's own start, before it knows the command


@dataclass
class Case:
    """A sweep that got a signal.

    Attributes:
        way: One of `WAYS`.
        jobs: Of the sweep.
        after: Seconds from its start to the signal.
        code: Its exit code; 0 where the signal came behind its last result.
        seconds: It took to end.
        halves: Files that it had begun to write and left.
        wrong: What did not hold.
    """

    way: str
    jobs: int
    after: float
    code: int | None = None
    seconds: float = 0.0
    halves: int = 0
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    """Disturb, compare, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Send signals to sweeps at random instants.")
    parser.add_argument("--instants", type=int, default=12)
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 2], help="taken in turn")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1, help="draws the instants")
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--method", nargs="+", default=("zeroshot", "coop"))
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with tempfile.TemporaryDirectory() as folder:
        cases = list(disturbed(Path(folder), options))
    signal.signal(signal.SIGINT, heard)
    found = summary(cases)
    print(text := json.dumps(found | {"commit": git_commit(), "versions": library_versions()}, indent=1) + "\n", end="")
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")
    sys.exit(1 if found["violations"] else 0)


def disturbed(folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Sweeps that got a signal while they were at work, each way and each number of jobs in turn."""
    draw_images(folder / "images")
    lives, whole = {}, {}
    for jobs in options.jobs:
        output, began = folder / f"whole-{jobs}", time.monotonic()
        carry_out(output, folder, with_jobs(options, jobs))
        lives[jobs], whole[jobs] = time.monotonic() - began, numbers(output)
    instants, number, tried = random.Random(options.seed), 0, 0
    while number < options.instants:
        way, jobs = WAYS[number % len(WAYS)], options.jobs[number // len(WAYS) % len(options.jobs)]
        case = Case(way, jobs, round(instants.uniform(0.0, lives[jobs]), 3))
        output, own, tried = folder / f"disturbed-{tried}", with_jobs(options, jobs), tried + 1
        if disturb(case, output, folder, own, instants.uniform(*APART)):
            case.wrong += afterwards(output, folder, own, whole[jobs])
            number += 1
            yield case


def with_jobs(options: argparse.Namespace, jobs: int) -> argparse.Namespace:
    """The options with so many jobs."""
    return argparse.Namespace(**{**vars(options), "jobs": jobs})


def disturb(case: Case, output: Path, folder: Path, options: argparse.Namespace, apart: float) -> bool:
    """Start a sweep, send it the signal of a case, and note what it did; False where it had ended or not yet begun."""
    with tempfile.TemporaryFile() as said:
        words = command(output, folder, options)
        process = subprocess.Popen(
            words, env=environment(folder), stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=case.after)
            return False
        began = time.monotonic()
        send(process, case.way, apart)
        try:
            case.code = process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            case.wrong.append(f"it goes on {PATIENCE:g} s after")
            process.kill()
            process.wait()
        case.seconds = round(time.monotonic() - began, 2)
        if case.code not in (None, 0, *CODES[case.way]):
            case.wrong.append(f"it ended with exit code {case.code}")
        case.wrong += [f"process {pid} lives on: {words}" for pid, words in survivors(folder)]
        said.seek(0)
        text = said.read().decode(errors="replace")
        if any(noise in text for noise in NOISE):
            if OURS not in text:
                return False
            case.wrong.append(f"it said: {text[-1500:]}")
        case.halves = len(list(output.rglob("*.tmp")))
        if case.halves and case.code != -signal.SIGTERM and case.code != -signal.SIGHUP:
            case.wrong.append(f"it left {case.halves} halves of files")
    return True


def send(process: subprocess.Popen[Any], way: str, apart: float) -> None:
    """Send a sweep, which leads a process group, what a case says."""
    if way.startswith("Ctrl-C"):  # to the group, as a terminal does
        for _ in range(1 + way.endswith("twice")):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            if way.endswith("twice"):
                time.sleep(apart)
    else:
        process.send_signal(signal.Signals[way])


def survivors(folder: Path) -> list[tuple[int, str]]:
    """The processes of a sweep that live on for too long after it, which are ended now."""
    deadline = time.monotonic() + PATIENCE
    while (left := processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def processes(folder: Path) -> list[tuple[int, str]]:
    """Processes with the environment of the sweeps, whoever their parent is, and their command lines."""
    mark, found = f"PROMPTBENCH_CACHE={folder / 'cache'}\0".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in (place / "environ").read_bytes():
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ")
                found.append((int(place.name), line.decode(errors="replace")[:200]))
    return found


def afterwards(output: Path, folder: Path, options: argparse.Namespace, whole: dict[str, bytes]) -> Iterator[str]:
    """What is wrong when the same command has gone on to its end."""
    try:
        carry_out(output, folder, options)
    except RuntimeError as error:
        yield str(error)
    found = numbers(output)
    yield from (f"{name} is different" for name in sorted(whole | found) if whole.get(name) != found.get(name))
    names = (path.name for path in output.rglob("*") if path.is_file() and path.suffix not in KEPT)
    yield from (f"left over: {name}" for name in names)
    if (output / "claims").exists():
        yield "the folder of claims is left over"


def summary(cases: Sequence[Case]) -> dict[str, Any]:
    """How many signals of each kind there were, how soon calls ended, and each case in which something was wrong."""
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        kinds.setdefault(f"{case.way}, {case.jobs} at once", []).append(case)
    return {
        "instants": len(cases),
        "signals": {
            kind: {
                "instants": len(own),
                "exit codes": sorted({case.code for case in own if case.code is not None}),
                "halves of files": sum(case.halves for case in own),
                "median seconds to end": statistics.median(case.seconds for case in own),
                "most seconds to end": max(case.seconds for case in own),
            }
            for kind, own in sorted(kinds.items())
        },
        "violations": [asdict(case) for case in cases if case.wrong],
    }


if __name__ == "__main__":
    main()
