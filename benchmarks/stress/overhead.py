"""What a sweep costs over its runs: claims, heartbeats, records of failures and what is said of each run.

    python benchmarks/stress/overhead.py --seeds 20 -o results/measured/overhead.json

Many short runs go through `loop.run_all` in one process with one thread. The overhead is the CPU time of the process
that was not spent within `run.execute`, which does one run, over the time that was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from promptbench.cli.flags import request_of, session_of
from promptbench.cli.main import parser as promptbench
from promptbench.results.result import Result
from promptbench.runs.listener import Silent, Work
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.run import execute
from promptbench.runs.session import Session
from promptbench.storage.versions import git_commit, library_versions
from promptbench.sweep.loop import announced, run_all


def main() -> None:
    """Run, measure, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Measure what a sweep adds to its runs.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        found = measure(Path(output), options.seeds, options.epochs)
    print(text := json.dumps(found, indent=1) + "\n", end="")
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")


def measure(output: Path, seeds: int, epochs: int) -> dict[str, object]:
    """Times of a sweep of CoOp and zero-shot over two mini datasets."""
    words = ["run", "--method", "zeroshot", "coop", "--set", f"coop.epochs={epochs}", "--threads", "1"]
    words += ["--dataset", "mini_fabrics", "mini_shapes", "--seeds", *map(str, range(1, seeds + 1))]
    request = request_of(promptbench().parse_args([*words, "--output", str(output)]))
    session = session_of(promptbench().parse_args(words), request.suite, output, request.device)
    runs = plan_runs(request)
    execute_times: list[float] = []

    def timed(session: Session, run: Run, work: Work) -> Result:
        began = time.thread_time()
        result = execute(session, run, work)
        execute_times.append(time.thread_time() - began)
        return result

    began = time.process_time()
    with announced(output, [run.spec.name for run in runs]):
        failures = run_all(session, runs, Silent(), how=timed)
    whole = time.process_time() - began
    within = sum(execute_times)
    return {
        "runs": len(runs),
        "failed": failures,
        "cpu seconds": round(whole, 2),
        "of which in the runs": round(within, 2),
        "overhead": round(whole / within - 1, 4),
        "milliseconds a run": round(1000 * (whole - within) / len(runs), 2),
        "commit": git_commit(),
        "versions": library_versions(),
    }


if __name__ == "__main__":
    main()
