r"""How fast training steps and evaluations are against what the official code does.

    python -m promptbench.benchmarks.speed -o results/measured/speed          # within an hour on two cores
    python -m promptbench.benchmarks.speed --render results/measured/speed.json
    python -m promptbench.benchmarks.speed --steps-only --backbone ViT-B-16-quickgelu:random \
        --method clip_lora tip_adapter_f -o results/measured/speed-adapters

Writes a report (`.json`), and a table (`.md`) and a picture (`.svg`) that are made from it. What is measured is kept in
`NAME.part.json` until all of it is: a call that was ended goes on there, if the code, the machine and the flags are the
same, and `--render` shows what there is. The whole benchmark also prints, and writes to `NAME-costs`, what base-to-new
of one dataset costs with each method (`costs.py`, at most another half hour). Both sides are timed in one process, in
turns, after it was checked that their logits and gradients are equal. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.runs.plan import available_cores
from promptbench.storage.atomic import write_atomically

if TYPE_CHECKING:
    from .measure import Settings


def main() -> None:
    """Measure, or read a report again, and write what follows from it."""
    parser = argparse.ArgumentParser(
        prog="python -m promptbench.benchmarks.speed", description="Time promptbench against the plain path."
    )
    parser.add_argument("--backbone", nargs="+", help="default: a random CLIP of ViT-B/16's size, and mini")
    parser.add_argument("--classes", nargs="+", type=int, help="default: 20 100 1000")
    parser.add_argument("--method", nargs="+", help="whose steps are timed; default: all that take any")
    parser.add_argument("--rounds", type=int, help="turns of each group of steps")
    parser.add_argument("--test-images", type=int, help="of an evaluation; default: 100")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: all cores")
    parser.add_argument("--tuned-malloc", action="store_true", help="glibc keeps freed memory, for both sides")
    parser.add_argument("--steps-only", action="store_true", help="neither reading, evaluations nor memory")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--render", metavar="FILE", help="a report; table and picture are written beside it")
    parser.add_argument("-o", "--output", metavar="PATH", help="of the three files, without their ending")
    options = parser.parse_args()
    if options.render:
        path = Path(options.render)
        write(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(""))
        return
    path = Path(options.output) if options.output else None
    if path is None:
        run(options, None)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part.json")
        report = run(options, part)
        store(report, part)
        part.replace(path.with_name(f"{path.name}.json"))
        write(report, path)
    if not (options.steps_only or options.quick or options.method or options.backbone):
        print_costs(path)


def print_costs(path: Path | None) -> None:
    """What base-to-new of one dataset costs with each method, also written beside the report at `path`."""
    from . import costs

    paid = costs.costs(costs.all_methods())
    print(f"\n{costs.page(paid)}")
    if path is not None:
        costs.write(paid, path.with_name(f"{path.name}-costs"))


def run(options: argparse.Namespace, part: Path | None) -> dict[str, Any]:
    """Measure as the flags say, from where a `part` of it ended on, and print the table."""
    import torch

    from .measure import begun, measure
    from .table import markdown

    torch.set_num_threads(options.threads)
    settings = settings_of(options)
    report, began = begun(settings), time.monotonic()
    if part is not None and part.exists():
        report = continued(json.loads(part.read_text(encoding="utf-8")), report, part)

    def tell(what: str) -> None:
        print(f"... {(time.monotonic() - began) / 60:.0f} min: {what}", flush=True)

    def keep(report: dict[str, Any]) -> None:
        if part is not None:
            store(report, part)

    measure(settings, tell, report, keep)
    print(f"\n{markdown(report)}")
    return report


def settings_of(options: argparse.Namespace) -> Settings:
    """What the flags ask for."""
    from .measure import RECIPE_BATCH, Settings

    if unknown := set(options.method or ()) - set(RECIPE_BATCH):
        raise SystemExit(f"'{min(unknown)}' takes no gradient steps: name some of {', '.join(RECIPE_BATCH)}.")
    settings = Settings(tuned=options.tuned_malloc, steps_only=options.steps_only)
    if options.quick:
        settings = replace(
            settings, backbones=("mini",), classes=(2, 4), rounds=1, turn=0, test_images=4, matmul=256, memory=False
        )
    given = {
        "backbones": options.backbone and tuple(options.backbone),
        "classes": options.classes and tuple(sorted(options.classes)),
        "methods": options.method and tuple(options.method),
        "rounds": options.rounds,
        "test_images": options.test_images,
    }
    return replace(settings, **{name: value for name, value in given.items() if value})


def continued(part: dict[str, Any], begun: dict[str, Any], path: Path) -> dict[str, Any]:
    """The part of a report that was kept, if the one that is `begun` would be measured as it was; else that one."""
    for what in ("schema", "allocator", "settings"):
        if part[what] != begun[what]:
            print(f"{path} is not continued: another {what}.", flush=True)
            return begun
    for what, value in begun["machine"].items():
        if what != "created" and part["machine"][what] != value:
            print(f"{path} is not continued: another {what}.", flush=True)
            return begun
    print(f"{path} is continued.", flush=True)
    return part


def store(report: dict[str, Any], path: Path) -> None:
    """The report in a file, whole or not at all."""
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write(report: dict[str, Any], path: Path) -> None:
    """The table and the picture of a report."""
    from promptbench.show.plots.picture import save

    from .plot import draw
    from .table import markdown

    path.with_name(f"{path.name}.md").write_text(markdown(report), encoding="utf-8")
    save(draw, report, path.with_name(f"{path.name}.svg"))


if __name__ == "__main__":
    main()
