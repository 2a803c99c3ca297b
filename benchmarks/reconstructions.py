"""Do the two reconstructions gain by what they are named after? Each against its controls, with the bars set before.

    python -m promptbench.benchmarks.reconstructions --render-seed 1
    python -m promptbench.benchmarks.reconstructions -o results/mini/reconstructions.json

Render seed 1 is the draw to develop with, 5 the sealed one, measured once. Everything runs under base2new on the seven
core sets of the mini suite, and with fewer seeds once more with the halves of the classes swapped. A bar that fails is
printed as it is. Finished runs in the output folder are read, so that an interrupted call goes on.

For a method and its control let d(seed) be the mean over the sets of their difference in base, new or H. Stated are the
mean over seeds, the lower end of its one-sided 95 % interval by Student's t over seeds, and how many sets are not below
the control, all with and without mini_diagrams, where there is most to gain.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from promptbench.results.result import Result
    from promptbench.suite import Suite

PROTOCOL = "base2new"
DIAGRAMS = "mini_diagrams"
SEALED = 5  # render seed
FIGURES = {"base": "base/accuracy", "new": "new/accuracy", "h": "h"}
OWN_WORDS, GENERIC_WORDS = "dataset", "a photo of a"
WORDS = dict.fromkeys(("dpl", "ivlp"), (OWN_WORDS, GENERIC_WORDS))
"""Methods that start from the sentence of the dataset and, reported only, from the generic one."""
GENERIC = " (generic)"  # what a row is called more that starts from the generic sentence

CONFIDENCE = 0.95
SLACK = -0.3  # points of the mean that "not below" allows
LEAST_SETS = 5  # of the seven, that a gain leaves not below the control
EXACT = 9  # digits to which means of figures with few digits are exact

Figures = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""Row to set to seed, as text, to base, new and h, in percent."""
Rule = Literal["above", "not below", "every set"]


@dataclass(frozen=True)
class Row:
    """A label that is measured.

    Attributes:
        families: The methods that it is measured for.
        extends: The label that it differs from; "" for none.
        fields: What it sets otherwise than that one.
    """

    families: tuple[str, ...]
    extends: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


MUTUAL, DPL = ("mutual",), ("dpl",)
CLASSIC_TEXT = {"prompts": "replaced", "readers": "all", "gates_text": "own", "beta": "zero"}  # as in IVLP

ROWS: dict[str, Row] = {
    "mutual": Row(MUTUAL),
    "mutual@cocoop": Row(MUTUAL, "mutual@ftp", {"ftp": "tied"}),
    "mutual@cocoop-visual": Row(MUTUAL, "mutual@tvp", {"tvp_text": "zeroed"}),
    "mutual@ftp": Row(MUTUAL, "mutual", {"n_visual": 0}),
    "mutual@ftp-noise": Row(MUTUAL, "mutual@ftp", {"ftp_image": "noise"}),
    "mutual@tvp": Row(MUTUAL, "mutual", {"ftp": "tied"}),
    "mutual@matched": Row(MUTUAL, "mutual@cocoop", {"matched": True}),
    "mutual@tvp-noise": Row(MUTUAL, "mutual", {"tvp_text": "noise"}),
    "mutual@tvp-other-image": Row(MUTUAL, "mutual", {"tvp_text": "other-image"}),
    "mutual@tvp-mean": Row(MUTUAL, "mutual", {"tvp_text": "mean"}),
    "mutual@tvp-zeroed": Row(MUTUAL, "mutual", {"tvp_text": "zeroed"}),
    "mutual@second": Row(MUTUAL, "mutual", {"answer": "second"}),
    "cocoop": Row(MUTUAL),
    "dpl": Row(DPL),
    "dpl@text": Row(DPL, "dpl", {"modality": "text"}),
    "dpl@visual": Row(DPL, "dpl", {"modality": "visual"}),
    "dpl@text-control": Row(DPL, "dpl@text", CLASSIC_TEXT),
    "dpl@control-gated": Row(DPL, "dpl", CLASSIC_TEXT),
    "dpl@other-sentence": Row(DPL, "dpl", {"sentence": "other"}),
    "dpl@text-other-sentence": Row(DPL, "dpl@text", {"sentence": "other"}),
    "dpl@beta-off": Row(DPL, "dpl", {"beta": "zero"}),
    "dpl@all-rows": Row(DPL, "dpl", {"readers": "all"}),
    "ivlp@promptsrc": Row(DPL),
    "zeroshot": Row(DPL),
    "zeroshot@generic": Row(MUTUAL + DPL, "zeroshot", {"template": "a photo of a {}."}),
}
"""What is measured. A row is set as it says here, and refused where a preset of its name says anything else."""


@dataclass(frozen=True)
class Bar:
    """What is expected of a method against a control.

    Attributes:
        figure: base, new or h.
        least: Points that the mean difference must reach, or that of every set.
        rule: above: the mean reaches it, its bound is above 0, and five sets are not below; not below: the mean reaches
            it; every set: the mean of each set does.
        remark: What else is to be known of it.
    """

    method: str
    control: str
    figure: str
    least: float
    rule: Rule = "above"
    remark: str = ""


BARS = (
    Bar("mutual", "mutual@cocoop", "h", 1.0),
    Bar("mutual", "mutual@cocoop", "new", SLACK, "not below"),
    Bar("mutual", "mutual@cocoop-visual", "h", SLACK, "not below"),
    Bar("mutual@ftp", "mutual@cocoop", "h", SLACK, "not below"),
    Bar("mutual", "mutual@tvp-other-image", "h", 0.3, remark="searched for"),
    Bar("mutual", "zeroshot@generic", "base", 0.1),
    Bar("dpl", "ivlp@promptsrc", "new", 1.0),
    Bar("dpl", "ivlp@promptsrc", "h", 0.5),
    Bar("dpl", "ivlp@promptsrc", "base", -1.0, "every set"),
    Bar("dpl", "dpl@control-gated", "h", SLACK, "not below"),
    Bar("dpl@text", "dpl@text-control", "new", 1.5),
    Bar("dpl@text", "dpl@text-other-sentence", "new", 0.5),
    Bar("dpl", "zeroshot", "base", 0.1),
)
REPORTED = (
    *(
        ("mutual", f"mutual@{name}")
        for name in ("ftp", "tvp", "matched", "tvp-noise", "tvp-mean", "tvp-zeroed", "second")
    ),
    ("mutual", "cocoop"),
    ("mutual", "mutual@ftp-noise"),
    ("mutual@ftp", "mutual@ftp-noise"),
    *(("dpl", f"dpl@{name}") for name in ("text", "visual", "other-sentence", "beta-off", "all-rows")),
)
"""Pairs without a bar."""


@dataclass(frozen=True)
class Difference:
    """A method minus its control, in points.

    Attributes:
        mean: Over seeds of the mean over sets.
        bound: The lower end of its one-sided interval; None with a single seed.
        not_below: Of how many sets the mean is not below 0.
        sets: The mean over seeds of each set.
        seeds: The mean over sets of each seed.
    """

    mean: float
    bound: float | None
    not_below: int
    sets: Mapping[str, float]
    seeds: Mapping[str, float]


def main() -> None:
    """Measure what is asked for, print the comparisons and the bars, and write all of it as JSON."""
    from promptbench.config import UsageError
    from promptbench.experiment import RunsFailed

    parser = parser_of_arguments()
    options = parser.parse_args()
    try:
        report = measured(options)
    except UsageError as error:
        parser.error(str(error))
    except RunsFailed as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    for halves, found in report["halves"].items():
        print(f"\n{halves} halves, render seed {options.render_seed}, seeds {' '.join(map(str, found['seeds']))}\n")
        print("\n".join(lines_of(found)))


def parser_of_arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m promptbench.benchmarks.reconstructions", description="Measure the two reconstructions."
    )
    parser.add_argument("--render-seed", type=int, default=SEALED, help="the sealed draw; 1 is the one to develop with")
    seeds: dict[str, Any] = {"nargs": "*", "type": seeds_of, "metavar": "N"}
    parser.add_argument("--seeds", default=[seeds_of("1..10")], help="numbers, or FIRST..LAST; default: 1..10", **seeds)
    parser.add_argument(
        "--swapped-seeds", default=[seeds_of("1..5")], help="with swapped halves, or none; default: 1..5", **seeds
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once; default: 2")
    parser.add_argument("--output", default="promptbench-runs/reconstructions", help="folder of the runs")
    parser.add_argument("-o", "--report", help="JSON file to write")
    parser.add_argument("--only", choices=("mutual", "dpl"), help="what one of the two is measured by")
    parser.add_argument("--labels", nargs="+", choices=ROWS, metavar="LABEL", help="only these")
    return parser


def seeds_of(text: str) -> list[int]:
    """`1..3` as 1, 2 and 3."""
    first, dots, last = text.partition("..")
    return list(range(int(first), int(last if dots else first) + 1))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The report that the options ask for, written where they say so.

    Raises:
        UsageError: Something does not fit, or cannot be written.
        RunsFailed: Runs failed.
    """
    from promptbench.storage.versions import utc_now
    from promptbench.sweep.tune import check_report, write_json

    path = Path(options.report) if options.report else None
    if path:
        check_report(path)
    labels = [label for label, row in ROWS.items() if not options.only or options.only in row.families]
    labels = [label for label in labels if not options.labels or label in options.labels]
    seeds = {"usual": options.seeds, "swapped": options.swapped_seeds}
    report: dict[str, Any] = {
        "date": utc_now(),
        "render_seed": options.render_seed,
        "rows": plain(labels),
        "halves": {},
    }
    results: list[Result] = []
    for halves, given in seeds.items():
        asked = list(chain.from_iterable(given))
        if asked:
            found = run(suite_of(options.render_seed, halves == "swapped"), labels, asked, options.output, options.jobs)
            figures = figures_of(found)
            report["halves"][halves] = {"seeds": asked, "figures": figures, **judge(figures)}
            results += found
    report["settings"] = settings_of(results)
    report["commits"] = sorted({result.commit for result in results})
    report["versions"] = dict(results[0].versions) if results else {}
    if path:
        write_json(path, report)
    return report


def plain(labels: Iterable[str]) -> dict[str, Any]:
    """The rows as they were asked for."""
    return {label: {"extends": ROWS[label].extends, "fields": dict(ROWS[label].fields)} for label in labels}


def suite_of(render_seed: int, swapped: bool) -> Suite:
    """The mini suite with another draw of its sets, and of swapped halves where that is said."""
    from promptbench.suite import load_suite

    suite = load_suite("mini")
    options = {"render_seed": render_seed, **({"swapped": True} if swapped else {})}
    roles = {
        role: tuple(replace(entry, options={**entry.options, **options}) for entry in entries)
        for role, entries in suite.roles.items()
    }
    return replace(suite, name=f"mini_render{render_seed}{'_swapped' if swapped else ''}", roles=roles)


def run(suite: Suite, labels: Sequence[str], seeds: Sequence[int], output: str, jobs: int) -> list[Result]:
    """The results of all labels, in one call, so that no process waits for another while there is work.

    Raises:
        UsageError: A label is not what the table says.
        RunsFailed: Runs failed.
    """
    import promptbench

    check_rows(suite, labels)
    settings: dict[str, Any] = {}
    for label in labels:
        settings |= {f"{label}.{name}": value for name, value in built(label)[1].items()}
    names = {label.partition("@")[0] for label in labels}
    grid = {f"{name}.ctx_init": words for name, words in WORDS.items() if name in names}
    return promptbench.run(
        labels,
        protocol=PROTOCOL,
        suite=suite,
        seeds=seeds,
        settings=settings,
        grid=grid,
        output=output,
        jobs=jobs,
        device="cpu",
        companions=False,
    )


def built(label: str) -> tuple[str, dict[str, Any]]:
    """The label that a row comes from in the end, and what is set of that, step by step."""
    row = ROWS[label]
    if not row.extends:
        return label, {}
    root, values = built(row.extends)
    return root, {**values, **row.fields}


def check_rows(suite: Suite, labels: Iterable[str]) -> None:
    """Raise a UsageError where a preset says anything else than the row of its name."""
    from promptbench.config import UsageError, overrides

    for label in labels:
        root, values = built(label)
        ours, preset = resolved(suite, root, values), resolved(suite, label, {})
        differs = {name: value for name, value in preset.items() if ours[name] != value}
        if differs:
            wanted = {name: ours[name] for name in differs}
            raise UsageError(f"{label} is to have {overrides(wanted)}, but its preset has {overrides(differs)}.")


def resolved(suite: Suite, label: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a label with these values set; recipes are tuned for each label."""
    from promptbench import registry
    from promptbench.config import to_mapping
    from promptbench.recipe import parse_label, resolve

    method = registry.load("methods", parse_label(label)[0])
    entry = suite.entry(suite.datasets(PROTOCOL)[0])
    settings = resolve(method, label, protocol=PROTOCOL, dataset=entry.dataset, suite=suite, assignments=values)
    return to_mapping(settings.config)


def figures_of(results: Iterable[Result]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Base, new and H of every run, by row, set and seed."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for result in results:
        of_row = found.setdefault(row_of(result), {}).setdefault(result.spec.dataset, {})
        of_row[str(result.spec.train_seed)] = {name: result.metrics[metric] for name, metric in FIGURES.items()}
    return found


def row_of(result: Result) -> str:
    """What the row of a result is called."""
    generic = result.spec.method in WORDS and result.spec.config["ctx_init"] == GENERIC_WORDS
    return f"{result.spec.label}{GENERIC if generic else ''}"


def settings_of(results: Iterable[Result]) -> dict[str, Any]:
    """Config and recipe of every row, as they were resolved on all of its sets."""
    from promptbench.sweep.tune import shared

    by_row: dict[str, list[Result]] = {}
    for result in results:
        by_row.setdefault(row_of(result), []).append(result)
    settings = {}
    for row, found in by_row.items():
        config = shared(result.spec.config for result in found)
        settings[row] = {"config": config, "recipe": shared(result.spec.recipe for result in found)}
    return settings


def judge(figures: Figures) -> dict[str, Any]:
    """Comparisons and bars of those rows that are there."""
    pairs = [pair for pair in pairs_of_table() if set(pair) <= figures.keys()]
    bars = [bar for bar in BARS if {bar.method, bar.control} <= figures.keys()]
    comparisons: list[dict[str, Any]] = []
    for pair in pairs:
        comparisons += [compared(figures, *pair, figure) for figure in FIGURES]
    return {
        "comparisons": comparisons,
        "bars": [judged(figures, bar) for bar in bars],
    }


def pairs_of_table() -> list[tuple[str, str]]:
    """Methods and controls, those with bars first; then those from the generic sentence, where they start otherwise."""
    pairs = list(dict.fromkeys([*((bar.method, bar.control) for bar in BARS), *REPORTED]))
    generic = [(from_generic(method), from_generic(control)) for method, control in pairs]
    return [*pairs, *(pair for pair in generic if pair not in pairs)]


def from_generic(label: str) -> str:
    """The row of a label that starts from the generic sentence."""
    if label == "zeroshot":
        return "zeroshot@generic"
    return f"{label}{GENERIC if label.partition('@')[0] in WORDS else ''}"


def compared(figures: Figures, method: str, control: str, figure: str) -> dict[str, Any]:
    """The difference in one figure, with and without the diagrams."""
    return {
        "method": method,
        "control": control,
        "figure": figure,
        "all": asdict(difference(figures, method, control, figure)),
        "without_diagrams": asdict(difference(figures, method, control, figure, without=DIAGRAMS)),
    }


def difference(figures: Figures, method: str, control: str, figure: str, without: str = "") -> Difference:
    """Method minus control in one figure, paired by set and seed.

    Args:
        without: A set that is left out.

    Raises:
        ValueError: They were not measured on the same sets and seeds.
    """
    ours, theirs = figures[method], figures[control]
    if {name: set(seeds) for name, seeds in ours.items()} != {name: set(seeds) for name, seeds in theirs.items()}:
        raise ValueError(f"{method} and {control} were not measured on the same sets and seeds.")
    of_sets: dict[str, dict[str, float]] = {}
    for name, seeds in ours.items():
        if name != without:
            of_sets[name] = {seed: found[figure] - theirs[name][seed][figure] for seed, found in seeds.items()}
    of_seeds = {seed: fmean(found[seed] for found in of_sets.values()) for seed in next(iter(of_sets.values()))}
    means = {name: fmean(found.values()) for name, found in of_sets.items()}
    return Difference(
        mean=fmean(of_seeds.values()),
        bound=lower_bound(list(of_seeds.values())),
        not_below=sum(round(mean, EXACT) >= 0 for mean in means.values()),
        sets=means,
        seeds=of_seeds,
    )


def lower_bound(values: Sequence[float]) -> float | None:
    """The lower end of the one-sided 95 % interval of the mean, by Student's t; None for a single value."""
    from scipy.special import stdtrit  # lighter than scipy.stats

    n = len(values)
    if n < 2:
        return None
    return fmean(values) - float(stdtrit(n - 1, CONFIDENCE)) * stdev(values) / math.sqrt(n)


def judged(figures: Figures, bar: Bar) -> dict[str, Any]:
    """A bar, what was measured for it, and whether it holds."""
    found = difference(figures, bar.method, bar.control, bar.figure)
    measured = min(found.sets.values()) if bar.rule == "every set" else found.mean
    return {
        **asdict(bar),
        "measured": measured,
        "bound": found.bound,
        "not_below": found.not_below,
        "holds": holds(bar, found),
    }


def holds(bar: Bar, found: Difference) -> bool:
    """Whether a difference is what the bar says."""
    if bar.rule == "every set":
        return round(min(found.sets.values()), EXACT) >= bar.least
    reached = round(found.mean, EXACT) >= bar.least
    if bar.rule == "not below":
        return reached
    surely = found.bound is not None and round(found.bound, EXACT) > 0
    return reached and surely and found.not_below >= LEAST_SETS


def lines_of(found: Mapping[str, Any]) -> Iterator[str]:
    """Comparisons and bars, as they are printed."""
    head = f"{'method':20} {'control':32} {'':4} {'mean':>6} {'bound':>6} {'sets':>5}   without diagrams"
    yield head
    for one in found["comparisons"]:
        whole, part = one["all"], one["without_diagrams"]
        yield f"{one['method']:20} {one['control']:32} {one['figure']:4} {shown(whole)}   {shown(part)}"
    yield ""
    for bar in found["bars"]:
        what = f"{bar['method']} against {bar['control']}, {bar['figure']}"
        wanted = f"{bar['rule']} {bar['least']:+.1f}{', ' + bar['remark'] if bar['remark'] else ''}"
        bound = "–" if bar["bound"] is None else f"{bar['bound']:+.2f}"
        measured = f"{bar['measured']:+6.2f}, bound {bound}, {bar['not_below']} sets not below"
        yield f"{'ok  ' if bar['holds'] else 'FAIL'}  {what:52} {measured}   {wanted}"


def shown(found: Mapping[str, Any]) -> str:
    """Mean, bound and number of sets not below."""
    bound = "–" if found["bound"] is None else f"{found['bound']:+.2f}"
    return f"{found['mean']:+6.2f} {bound:>6} {found['not_below']}/{len(found['sets'])}"


if __name__ == "__main__":
    main()
