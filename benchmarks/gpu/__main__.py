"""What a GPU does of promptbench: is it right, does it wait for nothing, how fast is it.

    python -m promptbench.benchmarks.gpu -o results/measured/gpu            # at most eight minutes on one card
    python -m promptbench.benchmarks.gpu -o DIR --device cpu                # a short form, to see that it works
    python -m promptbench.benchmarks.gpu -o DIR --part agreement waits

Needs nothing but this repository: weights are the embedded ones, or random. Every part runs in a process of its own,
within its seconds, and writes `PART.json` row by row; `gpu.json` has all of them, the card and the versions. A part
that fails or takes too long is recorded, and the next one follows. The exit code is 1 if one failed, `compile` apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from promptbench.config import UsageError

from .part import Part, Setting, carry_out, passed, write_json

ON_CPUS = 600  # seconds of a part in the short form


def parts() -> dict[str, Part]:
    """All parts by name, in order."""
    from . import agreement, runs, speed

    return {
        "agreement": Part("the CPU and the GPU compute the same in float32", 50, agreement.in_float32),
        "waits": Part("no training step waits for the GPU", 40, agreement.without_waiting),
        "precision": Part("lower precisions stay near float32", 70, agreement.in_lower_precision),
        "repeats": Part("--deterministic repeats bit for bit", 40, agreement.repeated),
        "steps": Part("training steps, plain and ours", 110, speed.steps),
        "launches": Part("a step of many small kernels", 30, speed.launches),
        "run": Part("a whole run of base2new on mini", 50, runs.whole_run),
        "two": Part("two runs at once on one card", 40, runs.two_at_once),
        "compile": Part("the step of many small kernels by torch.compile", 50, speed.compilation, judged=False),
    }


def main() -> int:
    """Check what is asked for, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m promptbench.benchmarks.gpu", description="Check and time promptbench on a GPU."
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where the report is written")
    parser.add_argument("--device", default="cuda", metavar="D", help="cuda, cuda:N, or cpu for a short form")
    parser.add_argument("--part", nargs="+", choices=list(parts()), metavar="NAME", help=f"of {', '.join(parts())}")
    parser.add_argument("--one", choices=list(parts()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        from promptbench.training.numerics import resolve_device

        setting = Setting(resolve_device(options.device), short=options.device == "cpu")
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        carry_out(parts()[options.one], setting, folder / f"{options.one}.json")
        return 0
    return checked(setting, folder, options.part or list(parts()))


def checked(setting: Setting, folder: Path, names: list[str]) -> int:
    """Check parts one after the other; the exit code."""
    report: dict[str, Any] = {"machine": machine(setting), "parts": {}}
    for name in names:
        report["parts"][name] = found = in_own_process(name, setting, folder)
        write_json(folder / "gpu.json", report)
        rows = found["rows"]
        failed = [row["what"] for row in rows if row["passed"] is False]
        said = "passed" if passed(found) else f"FAILED: {found.get('error') or ', '.join(failed)}"
        left = sum(row["passed"] is None for row in rows)
        print(f"{name}: {said} ({len(rows)} rows, {left} left out, {found['seconds']:.0f} s)", flush=True)
    return 0 if all(passed(report["parts"][name]) for name in names if parts()[name].judged) else 1


def in_own_process(name: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """What a part finds, and how it ended."""
    path, part = folder / f"{name}.json", parts()[name]
    most = part.seconds if setting.on_gpu else ON_CPUS
    path.unlink(missing_ok=True)
    words = ["--one", name, "-o", str(folder), "--device", setting.device]
    began, error = time.perf_counter(), ""
    try:
        command = [sys.executable, "-m", "promptbench.benchmarks.gpu", *words]
        done = subprocess.run(command, timeout=most, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            error = f"ended with {done.returncode}: {done.stderr.strip()[-500:]}"
    except subprocess.TimeoutExpired:
        error = f"not done within {most} s"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"ended": False, "rows": []}
    record = {"about": part.about, **record, "seconds": round(time.perf_counter() - began, 1)}
    return {**record, "error": error} if error else record


def machine(setting: Setting) -> dict[str, Any]:
    """What it was measured on."""
    import torch
    from promptbench.benchmarks.speed.machine import facts

    found = {"device": setting.device, **facts()}
    if setting.on_gpu:
        card = torch.cuda.get_device_properties(setting.device)
        found |= {"card": card.name, "card_memory_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return found


if __name__ == "__main__":
    sys.exit(main())
