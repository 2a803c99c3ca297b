"""Does the mini suite show what it was made to show? Each expectation, measured, with its bar.

    python -m promptbench.benchmarks.mini_bars --seeds 1 2 3 -o results/mini/bars.json

Everything was designed and tuned on render seed 1. The bars are for the sealed render seed 2, other drawings of the
same classes, measured once. A bar that fails is printed as it is. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from promptbench.mini.sets import SEALED_SEED

CORE = "base2new"
COOP_EPOCHS_LONG = 4  # times the recipe's
DIAGRAMS = "mini_diagrams"
SOURCE = "mini_shapes"


@dataclass(frozen=True)
class Bar:
    """One expectation: what was measured, what it must lie between, whether it does."""

    what: str
    measured: float
    least: float | None
    most: float | None
    holds: bool


def main() -> None:
    """Measure every bar, print them, and write them as JSON."""
    parser = argparse.ArgumentParser(description="Measure the expectations of the mini suite.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--render-seed", type=int, default=SEALED_SEED, help="the sealed draw; 1 is the one to develop with"
    )
    parser.add_argument("--output", default="promptbench-runs/bars", help="folder of the runs")
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    report = measure(options.seeds, options.render_seed, Path(options.output))
    for bar in report["bars"]:
        limits = f"{'' if bar['least'] is None else bar['least']} .. {'' if bar['most'] is None else bar['most']}"
        print(f"{'ok  ' if bar['holds'] else 'FAIL'}  {bar['what']:62} {bar['measured']:7.1f}   {limits}")
    if options.report:
        Path(options.report).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


def measure(seeds: Sequence[int], render_seed: int, output: Path) -> dict[str, Any]:
    """Run what the bars need and compare; returns the report as plain data."""
    from promptbench.suite import load_suite

    suite = load_suite("mini")
    roles = {
        role: tuple(replace(entry, options={**entry.options, "render_seed": render_seed}) for entry in entries)
        for role, entries in suite.roles.items()
    }
    sealed = replace(suite, name=f"mini_render{render_seed}", roles=roles)
    began = time.perf_counter()
    long = COOP_EPOCHS_LONG * int(str(sealed.methods["coop"].recipe["epochs"]))
    figures = {
        "zeroshot": run(sealed, output, ["zeroshot"], seeds, {}),
        "generic": run(sealed, output, ["zeroshot@generic"], seeds, {}),
        "coop": run(sealed, output, ["coop"], seeds, {}),
        "long": run(sealed, output, ["coop"], seeds, {"coop": {"epochs": long}}),
        "maple": run(sealed, output, ["maple"], seeds, {}),
    }
    auroc = out_of_distribution(sealed, output)
    bars = judge(figures, auroc)
    return {
        "render_seed": render_seed,
        "seeds": list(seeds),
        "seconds": round(time.perf_counter() - began, 1),
        "figures": figures,
        "auroc": auroc,
        "bars": [asdict(bar) for bar in bars],
    }


def run(
    suite: Any, output: Path, methods: list[str], seeds: Sequence[int], assignments: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Per dataset and on average, means over seeds: base, new, h, and seconds of training."""
    from promptbench.cli.progress import Display
    from promptbench.metrics.classification import harmonic_mean
    from promptbench.results.result import find, read_result
    from promptbench.runs.listener import listening
    from promptbench.runs.plan import plan_runs
    from promptbench.runs.request import Request
    from promptbench.runs.session import Place, Session
    from promptbench.sweep.loop import run_all

    settings = {}
    for method, values in assignments.items():
        settings |= {f"{method}.{name}": value for name, value in values.items()}
    request = Request.of(
        suite=suite, methods=methods, protocol=CORE, seeds=seeds, settings=settings, device="cpu", companions=False
    )
    runs = plan_runs(request)
    session = Session(Place(output), suite)
    todo = [item for item in runs if find(output, item.spec) is None]
    display = Display()
    with listening(display, todo, len(runs), output):
        run_all(session, todo, display)
    found: dict[str, list[Any]] = {}
    for item in runs:
        path = find(output, item.spec)
        if path is None:
            raise SystemExit(f"{item.spec.label} on {item.spec.dataset} failed; see {output}")
        found.setdefault(item.spec.dataset, []).append(read_result(path))
    table = {}
    for dataset, results in found.items():
        base = fmean(result.metrics["base/accuracy"] for result in results)
        new = fmean(result.metrics["new/accuracy"] for result in results)
        seconds = fmean(result.cost["train_seconds"] for result in results)
        table[dataset] = {"base": base, "new": new, "h": harmonic_mean(base, new), "seconds": seconds}
    base, new = (fmean(row[key] for row in table.values()) for key in ("base", "new"))
    seconds = sum(row["seconds"] for row in table.values())
    table["average"] = {"base": base, "new": new, "h": harmonic_mean(base, new), "seconds": seconds}
    return table


def out_of_distribution(suite: Any, output: Path) -> dict[str, float]:
    """AUROC of MCM at T = 1 (zero-shot, the source's own template), the source's test images against each OOD set."""
    import torch
    from sklearn.metrics import roc_auc_score

    from promptbench.clip.image_tower import ImageFeatures, Images
    from promptbench.data.features import image_features
    from promptbench.method import create_method
    from promptbench.runs.session import Place, Session

    session = Session(Place(output), suite)
    method = create_method("zeroshot", session.backbone, session.dataset(SOURCE).class_names)

    @torch.no_grad()
    def scores(name: str) -> list[float]:
        dataset = session.dataset(name)
        features = image_features(session.backbone, dataset, dataset.items("test")).cls
        cosines = method(Images(features=ImageFeatures(features))).cosines
        return cosines.softmax(dim=-1).max(dim=-1).values.tolist()

    inside = scores(SOURCE)
    areas = {}
    for name in suite.datasets("ood"):
        outside = scores(name)
        areas[name] = 100 * float(roc_auc_score([1] * len(inside) + [0] * len(outside), inside + outside))
    return areas


def judge(figures: dict[str, dict[str, dict[str, float]]], auroc: dict[str, float]) -> list[Bar]:
    """The bars, in percent, points and seconds."""
    average = {name: table["average"] for name, table in figures.items()}
    generic, own, coop, maple = (average[name] for name in ("generic", "zeroshot", "coop", "maple"))
    diagrams = {name: table[DIAGRAMS] for name, table in figures.items()}

    def bar(what: str, measured: float, least: float | None = None, most: float | None = None) -> Bar:
        holds = (least is None or measured >= least) and (most is None or measured <= most)
        return Bar(what, measured, least, most, holds)

    diagrams_gain = diagrams["coop"]["base"] - diagrams["generic"]["base"]
    diagrams_context = diagrams["zeroshot"]["base"] - diagrams["generic"]["base"]
    forgotten = average["long"]["new"] - generic["new"]
    return [
        bar("zero-shot (generic), mean base", generic["base"], 60, 82),
        bar("zero-shot (generic), mean new", generic["new"], 60, 82),
        bar("zero-shot (own templates), mean base", own["base"]),
        bar("zero-shot (own templates), mean new", own["new"]),
        bar("coop base minus zero-shot (generic) base", coop["base"] - generic["base"], 5),
        bar("diagrams: coop base minus zero-shot (generic) base", diagrams_gain, 20),
        bar("diagrams: own template minus generic, base", diagrams_context, 10),
        bar("coop, four times the epochs: new minus zero-shot (generic) new", forgotten, None, -3),
        bar("maple base minus zero-shot (generic) base", maple["base"] - generic["base"], 5),
        bar("maple H minus zero-shot (generic) H", maple["h"] - generic["h"], 1),
        bar("MCM AUROC, smooth noise", auroc["mini_ood_smooth_noise"], 85),
        bar("MCM AUROC, unseen blobs", auroc["mini_ood_blobs"], 75),
        bar("coop, seconds of training for one seed", coop["seconds"], None, 60),
        bar("maple, seconds of training for one seed", maple["seconds"], None, 180),
    ]


if __name__ == "__main__":
    main()
