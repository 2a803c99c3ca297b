"""How promptbench starts: what the first seconds of a run go into, what each command imports, what finished runs take.

    python benchmarks/stress/startup.py --runs 2000 -o results/measured/startup.json

It writes the tables beside the JSON too, as Markdown. Times are CPU seconds of whole processes, the least of several.
The first seconds of a run are sampled: where its main thread is, every few milliseconds. The files of many finished
runs are made up, as long as real ones; `run` reads, checks and prints them, once as it comes to know them and once as
it remembers them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from promptbench.cli.flags import request_of, session_of
from promptbench.cli.main import parser as promptbench
from promptbench.results.result import Result, result_path
from promptbench.results.spec import to_plain
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.session import identified
from promptbench.storage.versions import git_commit, library_versions, utc_now

METHODS = ("coop", "cocoop", "vpt", "ivlp", "maple", "promptsrc")  # 8 with the companions
DATASETS = 7  # of the role base2new that tables show
EPOCHS = 50
SECONDS = 5  # of CPU time, of a run that is sampled
SMALL = 0.03  # CPU seconds, of which what takes less is not listed
LIBRARIES = ("promptbench", "torch", "numpy", "pandas", "PIL", "torchvision", "open_clip", "pytorch_lightning", "rich")
LIBRARIES += ("matplotlib", "safetensors", "yaml")
TRAINING = ("run", "--method", "maple", "--protocol", "base2new", "--dataset", "mini_fabrics", "--jobs", "1")

SAMPLED = '''
import json, os, sys, threading, time
from pathlib import Path

output, most, *words = sys.argv[1:]
main_thread, seconds = threading.get_ident(), {}


def at(frame):
    """The library that is being imported, or else the innermost file of the package."""
    files = []
    while frame is not None:
        name = frame.f_code.co_filename
        library = name.partition("site-packages/")[2].partition("/")[0].removesuffix(".py")
        ours = next((name.rpartition(f"/{part}/")[2] for part in OURS if f"/{part}/" in name), "")
        place = ours and next(part for part in OURS if f"/{part}/" in name) + "/" + ours
        files.append((frame.f_code.co_name == "<module>", library, place))
        frame = frame.f_back
    imported = [library or "promptbench" for of_module, library, place in files if of_module and (library or place)]
    foreign = [library for library in imported if library != "promptbench"]
    if imported:
        return "import " + (foreign or imported)[-1]
    return next((place for _, _, place in files if place), "Python")


OURS = ("promptbench", "methods", "datasets")


def sample():
    before = 0.0
    while True:
        time.sleep(0.004)
        now = time.process_time()
        what = at(sys._current_frames()[main_thread])
        seconds[what] = seconds.get(what, 0.0) + now - before
        before = now
        if now >= float(most):
            Path(output).write_text(json.dumps(seconds))
            os._exit(0)


threading.Thread(target=sample, daemon=True).start()
from promptbench.cli.main import main

main(words)
sys.exit("The run ended too early.")
'''
"""A process that does the call of its arguments for so many CPU seconds and writes what its main thread was at."""


def main() -> None:
    """Make the files, measure, print, and write what was found as JSON and as Markdown."""
    parser = argparse.ArgumentParser(description="Measure how promptbench starts.")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--report", help="JSON file to write; the tables go beside it, as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMPTBENCH_CACHE"] = str(Path(folder, "cache"))
        seconds = first_seconds(Path(folder))
        found = {
            f"the first {SECONDS} CPU seconds of a run": seconds,
            "commands": commands(Path(folder), options.repeat),
            "finished runs": many_finished(Path(folder), options.runs, options.repeat),
            "load of the machine": round(os.getloadavg()[0], 1),
            "commit": git_commit(),
            "versions": library_versions(),
        }
    text = tables(found)
    print(text)
    if options.report:
        Path(options.report).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        Path(options.report).with_suffix(".md").write_text(text, encoding="utf-8")


def first_seconds(folder: Path) -> dict[str, float]:
    """CPU seconds of the beginning of a training run with cold caches, by what the main thread is at."""
    output = folder / "samples.json"
    words = [sys.executable, "-c", SAMPLED, str(output), str(SECONDS), *TRAINING, "--output", str(folder / "sampled")]
    subprocess.run(words, capture_output=True, check=True)
    samples: dict[str, float] = json.loads(output.read_text(encoding="utf-8"))
    large = {what: seconds for what, seconds in samples.items() if seconds >= SMALL}
    rest = sum(samples.values()) - sum(large.values())
    listed = sorted(large.items(), key=lambda item: -item[1])
    return {what: round(seconds, 2) for what, seconds in [*listed, ("all else", rest)]}


def commands(folder: Path, repeat: int) -> dict[str, dict[str, float]]:
    """CPU seconds of commands, and of them those that importing takes, by library."""
    output = str(folder / "few")
    results = ["--results", output]
    image = folder / "image.png"
    Image.new("RGB", (48, 48), "red").save(image)
    training = [*TRAINING, "--output", output]
    calls = {
        "run, training": training,
        "run, finished": training,
        "run, finished and remembered": training,
        "table": ["table", *results],
        "status": ["status", *results],
        "list": ["list", "methods"],
        "describe": ["describe", "maple"],
        "predict": ["predict", "--run", "latest", *results, str(image)],
        "plot": ["plot", "base-new", *results, "-o", str(folder / "plot.svg")],
        "report": ["report", *results, "-o", str(folder / "report.html")],
    }
    found = {}
    for name, words in calls.items():
        again = repeat if name not in ("run, training", "run, finished") else 1
        if name == "run, finished":
            shutil.rmtree(folder / "cache" / "calls", ignore_errors=True)
        cpu = least(command(words), again)
        if name == "run, finished":
            shutil.rmtree(folder / "cache" / "calls", ignore_errors=True)
        if name == "run, training":
            shutil.rmtree(output)
        found[name] = {"all": cpu, **imports(words)}
    return found


def imports(words: Sequence[str]) -> dict[str, float]:
    """CPU seconds that a command imports, by library; those of its own packages under "promptbench".

    Python says how long imports take by the clock; of that they get the share that the whole process had of a core.
    """
    line = [sys.executable, "-X", "importtime", "-m", "promptbench", *words]
    before, began = cpu_of_children(), time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    share = min(1.0, (cpu_of_children() - before) / (time.perf_counter() - began))
    seconds: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        seconds[name.partition(".")[0]] += share * int(own) / 1e6
    shown = {name: round(seconds[name], 2) for name in LIBRARIES if name in seconds}
    return {**shown, "others": round(seconds.total() - sum(seconds[name] for name in shown), 2)}


def many_finished(folder: Path, runs: int, repeat: int) -> dict[str, float]:
    """CPU seconds of the command where few runs are finished and where many are."""
    words = call(folder / "all", runs)
    made = make(words)
    one = [*call(folder / "one", 1), "--dataset", "mini_colours"]
    make(one)
    torch = least([sys.executable, "-c", "import torch"], repeat)
    once = {"few, found out": least(command(one), 1), "all, found out": least(command(words), 1)}
    remade = finished(words)
    known = {"few, remembered": least(command(one), repeat), "all, remembered": least(command(words), repeat)}
    return {"runs": made, "runs done again": remade, "import torch": torch, **once, **known}


def tables(found: Mapping[str, Any]) -> str:
    """What was found, as Markdown."""
    seconds = found[f"the first {SECONDS} CPU seconds of a run"]
    lines = [
        "# How promptbench starts",
        "",
        f"CPU seconds, at a load of {found['load of the machine']}; made by `benchmarks/stress/startup.py`.",
        "",
        f"The first {SECONDS} of `promptbench {' '.join(TRAINING)}` with cold caches:",
        "",
        "| at | seconds |",
        "| --- | ---: |",
        *(f"| {what} | {value:.2f} |" for what, value in seconds.items()),
        "",
        "Commands, and what of them is importing, by library:",
        "",
        f"| command | all | {' | '.join(LIBRARIES)} | others |",
        f"| --- | {' | '.join(['---:'] * (len(LIBRARIES) + 2))} |",
    ]
    for name, cells in found["commands"].items():
        shown = [f"{cells[library]:.2f}" if library in cells else "" for library in ("all", *LIBRARIES, "others")]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    many = found["finished runs"]
    lines += ["", f"`run` on finished runs, few and {many['runs']}:", "", "| | seconds |", "| --- | ---: |"]
    lines += [f"| {what} | {value:.2f} |" for what, value in many.items() if not what.startswith("runs")]
    return "\n".join(lines) + "\n"


def call(output: Path, runs: int) -> list[str]:
    """The words of a command that plans about so many runs, at least."""
    seeds = -(-runs // ((len(METHODS) + 2) * DATASETS))
    words = ["run", "--method", *METHODS, "--threads", "1", "--device", "cpu", "--output", str(output)]
    return [*words, "--seeds", *map(str, range(1, seeds + 1))]


def command(words: Sequence[str]) -> list[str]:
    """The command as a process."""
    return [sys.executable, "-m", "promptbench", *words]


def make(words: Sequence[str]) -> int:
    """Write a result file for each run that a command plans; returns how many."""
    options = promptbench().parse_args(words)
    request = request_of(options)
    session = session_of(options, request.suite, options.output, request.device)
    runs = plan_runs(request)
    for run in runs:
        run = identified(session, run)
        path = result_path(session.output, run.spec)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = to_plain(made_up(run))
        path.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    return len(runs)


def made_up(run: Run) -> Result:
    """A result as long as a real one."""
    names = [evaluation.name for evaluation in run.plan.evaluations]
    conditions: dict[str, Any] = {
        "title": run.method.title,
        "reconstructed": run.method.reconstructed,
        "dense_scores": run.method.dense_scores,
        "split_source": "its own",
        "sample_size": 128,
        "training_key": "ef" * 32,
        "provenance": run.settings.provenance,
        "images": dict.fromkeys(names, 200),
    }
    metrics = {f"{name}/{metric}": 50.0 + run.spec.train_seed % 7 for name in names for metric in ("accuracy", "ece")}
    losses = [{"ce": 1.0 / epoch} for epoch in range(1, EPOCHS + 1)] if run.method.trains else []
    return Result(
        spec=run.spec,
        conditions=conditions,
        metrics={**metrics, "h": 50.0},
        cost={"learned_parameters": 8192, "train_seconds": 30.0, "eval_seconds": 1.0, "peak_memory_mb": 900.0},
        versions=library_versions(),
        commit=git_commit(),
        created=utc_now(),
        losses=losses,
    )


def finished(words: Sequence[str]) -> int:
    """Run a command whose runs are all finished; returns how many it did nevertheless."""
    done = subprocess.run(command(words), capture_output=True, text=True, check=True)
    return done.stderr.count("] ")


def least(words: Sequence[str], repeat: int) -> float:
    """The least CPU seconds of several processes."""
    times = []
    for _ in range(repeat):
        before = cpu_of_children()
        subprocess.run(words, capture_output=True, check=True)
        times.append(cpu_of_children() - before)
    return round(min(times), 2)


def cpu_of_children() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
