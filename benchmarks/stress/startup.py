"""How long `promptbench run` takes where everything is finished already: it reads the results, checks and prints them.

    python benchmarks/stress/startup.py --runs 2000 -o results/measured/startup.json

The result files are made up, as long as real ones, for runs of the mini suite. Times are CPU seconds of whole
processes, the least of several: `import torch` alone, and the command with one finished run and with all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def main() -> None:
    """Make the files, measure, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Measure the start on finished runs.")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMPTBENCH_CACHE"] = str(Path(folder, "cache"))
        words = call(Path(folder, "all"), options.runs)
        runs = make(words)
        one = [*call(Path(folder, "one"), 1), "--dataset", "mini_colours"]
        make(one)
        finished(one)  # remembers the weights
        torch = least([sys.executable, "-c", "import torch"], options.repeat)
        start = least(command(one), options.repeat)
        whole = least(command(words), options.repeat)
        remade = finished(words)
    found = {
        "runs": runs,
        "runs done again": remade,
        "cpu seconds of `import torch`": torch,
        "cpu seconds of the command with few finished runs": start,
        "cpu seconds of the command with all of them finished": whole,
        "more than `import torch`": round(whole - torch, 2),
        "commit": git_commit(),
        "versions": library_versions(),
    }
    print(text := json.dumps(found, indent=1) + "\n", end="")
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")


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
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(min(times), 2)


if __name__ == "__main__":
    main()
