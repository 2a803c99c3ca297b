"""Do methods lose more under corruptions than zero-shot CLIP does? From stored results of the protocol `robustness`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean

from promptbench.config import UsageError
from promptbench.metrics.statistics import paired_interval
from promptbench.results.result import Result
from promptbench.show.tables.formats.texts import Texts, laid_out, rounded, seeds_text, shots_text
from promptbench.show.tables.rows import corruption_text, rows
from promptbench.show.tables.show import Question, chosen_results, presentation
from promptbench.show.tables.table import Row, Seed, by_size
from promptbench.suite import Suite, load_suite, suite_names

PROTOCOL, REFERENCE = "robustness", "zeroshot"
CLEAN, MEAN, DROP = "clean/accuracy", "average/accuracy", "drop"
FIGURES = """\
- clean, corrupted: top-1 accuracy on the source's test images as they are, and the mean over corruptions, of a kind
  first over its severities; in percent, 0 to 100, more is better.
- drop: clean minus corrupted, in points; less is better.
- to zero-shot: the difference in corrupted accuracy (more is better) and in drop (less is better) to zero-shot CLIP of
  the dataset's template, the mean over paired seeds with its 95 % interval (Student's t), in points.
- n: seeds. A method that is better on clean images has more to lose: read both differences.
- Images are corrupted here, by published kinds and severities; they are not ImageNet-C's files, and there is no mCE."""


def page(question: Question) -> str:
    """The page as Markdown.

    Raises:
        UsageError: There are no results of the protocol, or none of zero-shot CLIP.
    """
    suites = [load_suite(name) for name in suite_names()]
    results = chosen_results(replace(question, protocols=(PROTOCOL,)), suites)
    compared: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        spec = result.spec
        compared.setdefault((spec.suite, spec.backbone, spec.corruption), []).append(result)
    parts = ["# Robustness to corruptions"]
    for alike in compared.values():
        parts += _section(alike, suites, question)
    return "\n\n".join([*parts, FIGURES]) + "\n"


def _section(results: Sequence[Result], suites: Sequence[Suite], question: Question) -> list[str]:
    """Finding and tables of results on the same images."""
    spec = results[0].spec
    order = presentation(results, suites, question.methods, question.datasets)["methods"]
    shown = [row for row in rows(results, order) if _by_seed(row, DROP)]
    reference = next((row for row in shown if row.method == REFERENCE), None)
    if reference is None:
        raise UsageError(f"The page {PROTOCOL} compares with {REFERENCE}, of which there is no result; run it too.")
    shots = by_size({result.spec.shots for row in shown for result in row.results if result.spec.shots != 0})
    seeds = sorted(set(chain.from_iterable(_by_seed(row, DROP) for row in shown)))
    sources = sorted({result.spec.dataset for result in results})
    said = [spec.suite, *sources, f"backbone {spec.backbone}", *([f"{shots_text(shots)} shots"] if shots else [])]
    title = f"{', '.join(said)}, seeds {seeds_text(seeds, ', ')}: {corruption_text(spec.corruption)}"
    return [_finding(shown, reference, spec.suite), _accuracies(title, shown, reference), _kinds(shown)]


def _by_seed(row: Row, metric: str) -> dict[Seed, float]:
    """The mean of a metric over a row's datasets, of the seeds that have it on all."""
    datasets = {result.spec.dataset for result in row.results}
    found: dict[Seed, list[float]] = {}
    for result in row.results:
        if metric in result.metrics:
            found.setdefault(result.spec.seeds, []).append(result.metrics[metric])
    return {seed: fmean(values) for seed, values in found.items() if len(values) == len(datasets)}


def _differences(ones: Iterable[Mapping[Seed, float]], other: Mapping[Seed, float]) -> list[float]:
    """The mean of some rows minus another row, seed by seed, of the seeds that all have."""
    several = list(ones)
    common = set(other).intersection(*several)
    return [fmean(one[seed] for one in several) - other[seed] for seed in sorted(common)]


def _to(row: Row, reference: Row, metric: str) -> str:
    found = _differences([_by_seed(row, metric)], _by_seed(reference, metric))
    return str(paired_interval(found)) if found and row is not reference else "–"


def _finding(shown: Sequence[Row], reference: Row, suite: str) -> str:
    """One sentence: what the methods that train lose and keep, beside zero-shot CLIP."""
    trained = [row for row in shown if any(result.spec.shots != 0 for result in row.results)]
    drop = fmean(_by_seed(reference, DROP).values())
    own = f"On {suite}, zero-shot CLIP loses {drop:.1f} points of accuracy to corruption"
    drops = _differences([_by_seed(row, DROP) for row in trained], _by_seed(reference, DROP)) if trained else []
    if not drops:
        return f"{own}; no method that trains has the same seeds."
    kept = _differences([_by_seed(row, MEAN) for row in trained], _by_seed(reference, MEAN))
    losses = {row.label: fmean(_by_seed(row, DROP).values()) for row in trained}
    least, most = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    lost = f"{least} {losses[least]:.1f}"
    if len(trained) > 1:
        span = f"from {losses[least]:.1f} ({least}) to {losses[most]:.1f} ({most})"
        lost = f"the {len(trained)} rows that train {fmean(losses.values()):.1f} on average, {span}"
    return (
        f"{own} and {lost}: a difference of {paired_interval(drops)} points, beside one in accuracy on the corrupted "
        f"images of {paired_interval(kept)}."
    )


def _accuracies(title: str, shown: Sequence[Row], reference: Row) -> str:
    head = ["method", "clean (%)", "corrupted (%)", "drop (points)", "corrupted to zero-shot", "drop to zero-shot", "n"]
    body = []
    for row in shown:
        figures = [rounded(fmean(_by_seed(row, metric).values())) for metric in (CLEAN, MEAN, DROP)]
        differences = [_to(row, reference, metric) for metric in (MEAN, DROP)]
        body.append([row.label, *figures, *differences, str(len(_by_seed(row, DROP)))])
    return "\n".join(laid_out(title, Texts(head, [body], []), names=1))


def _kinds(shown: Sequence[Row]) -> str:
    """The drop under each kind."""
    kinds = dict.fromkeys(one.partition(":")[0] for one in shown[0].results[0].spec.corruption.split())
    body = []
    for row in shown:
        clean = fmean(_by_seed(row, CLEAN).values())
        corrupted = [fmean(_by_seed(row, f"{kind}/accuracy").values()) for kind in kinds]
        body.append([row.label, *(rounded(clean - one) for one in corrupted)])
    return "\n".join(laid_out("Drop under each kind, points", Texts(["method", *kinds], [body], []), names=1))
