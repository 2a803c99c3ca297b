"""Make results/mini again, all of it, and say how long it took.

    python -m promptbench.benchmarks.mini_results -o results/mini --report results/measured/mini_results.json

Runs go to a folder of their own first, so that a call that was interrupted goes on; results take the place of the old
ones when all are there. With seed 1 predictions are kept, compressed, with logits in half precision, and what methods
learned, so that `predict` and `eval` work on a fresh clone. Tables, plots and pages are built from them at the end.

What was chosen or sealed stands apart and stays: tuning, the bars of the suite, the comparison of reconstructions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from promptbench import registry

ROWS = ("clap@zs_lp", "ivlp@promptsrc", "tip_adapter@searched", "tip_adapter_f@searched")
"""Presets that stand beside all methods."""
OWN_WORDS = ("coop", "maple", "ivlp@promptsrc", "dpl", "mutual")
"""Rows whose contexts start from each dataset's own template besides."""
HALVES = tuple(f"random:{number}" for number in range(1, 6))
SEEDS = (1, 2, 3)
CORE = "core"
"""The folder of the runs that are the suite's own."""
KEPT_SEED = 1
"""Of whose runs more than results is kept."""
PREDICTED = ("base2new", "cross_dataset", "ood")
"""The protocols whose predictions are kept: 15 MB."""
LEARNED = ("base2new",)
"""The protocols whose trainings are kept: 9 MB."""


@dataclass(frozen=True)
class Part:
    """Runs of one call.

    Attributes:
        name: In the report.
        folder: Below the results, where they are read.
        call: What `promptbench.run` is given.
    """

    name: str
    folder: str
    call: Mapping[str, Any] = field(hash=False)


def parts() -> list[Part]:
    """All calls, those of a folder one after another."""
    everything = [*registry.names("methods"), *ROWS]
    core = {"protocol": "base2new", "seeds": SEEDS, "temperature": True, "save_predictions": True}
    words = {f"{label.partition('@')[0]}.ctx_init": "dataset" for label in OWN_WORDS}
    transfer = ("cross_dataset", "domain_generalization")
    controls = ("zeroshot@ensemble", "cocoop@noise", "cocoop@random", "coop@random")
    studied = {"methods": ("cocoop", "kgcoop"), "protocol": "base2new"}
    return [
        Part("base to new", "", {"methods": everything, **core}),
        Part("base to new from the datasets' words", "", {"methods": OWN_WORDS, "settings": words, **core}),
        Part("robustness", "", {"methods": everything, "protocol": "robustness", "seeds": SEEDS}),
        Part("transfer", "", {"methods": everything, "protocol": transfer, "seeds": 1, "save_predictions": True}),
        Part("ood", "", {"methods": everything, "protocol": "ood", "seeds": 1, "save_predictions": True}),
        Part("few shots", "", {"methods": everything, "protocol": "few_shot", "seeds": 1}),
        Part("controls", "evidence", {"methods": controls, "companions": False, **core, "save_predictions": False}),
        Part("samples", "sensitivity", {**studied, "data_seed": 1, "seeds": SEEDS}),
        Part("trainings", "sensitivity", {**studied, "train_seed": 1, "seeds": SEEDS}),
        Part("halves", "sensitivity", {**studied, "seeds": 1, "split": HALVES}),
        Part("steps of DPL-R", "ablation_dpl", {"suite": "ablation_dpl", "seeds": SEEDS}),
        Part("steps of Mutual-R", "ablation_mutual", {"suite": "ablation_mutual", "seeds": SEEDS}),
    ]


def main() -> None:
    """Do what is missing, put the results in their place, and write what it took."""
    parser = argparse.ArgumentParser(description="Make the results of the mini suite again.")
    parser.add_argument("-o", "--output", default="results/mini", help="whose results are replaced")
    parser.add_argument("--runs", default="promptbench-runs/mini", help="folder of the runs")
    parser.add_argument("--report", help="JSON file to write")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these parts; nothing is replaced")
    parser.add_argument("--dataset", nargs="+", help="instead of the suite's, for a try")
    options = parser.parse_args()
    runs, chosen = Path(options.runs), parts()
    if options.only:
        chosen = [part for part in chosen if part.name in options.only]
    usual = {"datasets": options.dataset} if options.dataset else {}
    for part in chosen:
        carry_out(part, runs, usual)
    report = {"parts": {part.name: spent(part, runs) for part in chosen}}
    report["hours"] = round(sum(one["seconds"] for one in report["parts"].values()) / 3600, 2)
    if not options.only:
        for folder, _ in groupby(chosen, key=lambda part: part.folder):
            put(runs / (folder or CORE), Path(options.output) / folder)
        build(Path(options.output))
    print(json.dumps(report, indent=1))
    if options.report:
        write_report(Path(options.report), report)


def carry_out(part: Part, runs: Path, usual: Mapping[str, Any]) -> None:
    """Do the runs of a part that are missing, and add what that took to what earlier calls took.

    Raises:
        RunsFailed: Runs failed.
    """
    import promptbench

    began, folder = time.perf_counter(), runs / (part.folder or CORE)
    results = promptbench.run(**{**part.call, **usual}, device="cpu", output=folder)
    seconds = time.perf_counter() - began
    path = note_of(part, runs)
    before = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0}
    path.write_text(json.dumps({"runs": len(results), "seconds": round(before["seconds"] + seconds, 1)}))


def note_of(part: Part, runs: Path) -> Path:
    """Where it is noted what a part took."""
    return runs / f"{part.name.replace(' ', '-')}.json"


def spent(part: Part, runs: Path) -> dict[str, Any]:
    """Runs and seconds of a part, over all calls."""
    found: dict[str, Any] = json.loads(note_of(part, runs).read_text())
    return found


def put(source: Path, target: Path) -> None:
    """Results, predictions and what was learned, in the place of what is there of them."""
    from promptbench.results.predictions import pack_predictions
    from promptbench.results.result import (
        find_predictions,
        find_training,
        learned_path,
        predictions_path,
        read_results,
        result_path,
    )
    from promptbench.training.files import copy_training

    for part in ("results", "predictions", "learned"):
        shutil.rmtree(target / part, ignore_errors=True)
    for result in read_results(source):
        spec = result.spec
        copy(result_path(source, spec), result_path(target, spec))
        if spec.train_seed != KEPT_SEED or source.name != CORE:
            continue
        predictions = find_predictions(source, spec)
        if predictions is not None and spec.protocol in PREDICTED:
            copied = predictions_path(target, spec)
            copy(predictions, copied)
            pack_predictions(copied, half=True)
        training = find_training(source, result)
        if training is not None and spec.protocol in LEARNED:
            copy_training(training, learned_path(target, spec))


def copy(source: Path, target: Path) -> None:
    """A file, with the folders that lead to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def build(folder: Path) -> None:
    """Tables, plots and pages."""
    from promptbench.cli.main import main as command

    command(["regenerate", str(folder)])


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """What it took, and on what."""
    from promptbench.benchmarks.speed.machine import facts

    text = json.dumps({**report, "machine": facts()}, indent=1, sort_keys=True)
    path.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
