"""Do methods lose more under corruptions than zero-shot CLIP does? From stored results of the protocol `robustness`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean

from promptbench.config import UsageError
from promptbench.metrics.statistics import paired_interval
from promptbench.results.knowledge import most_told, text_prior
from promptbench.results.result import Result
from promptbench.show.tables.formats.texts import Texts, laid_out, rounded, seeds_text, shots_text
from promptbench.show.tables.rows import corruption_text, rows
from promptbench.show.tables.show import Question, chosen_results, presentation
from promptbench.show.tables.table import Row, Seed, by_size
from promptbench.suite import Suite, load_suite, suite_names

PROTOCOL = "robustness"
CLEAN, MEAN, DROP = "clean/accuracy", "average/accuracy", "drop"
FIGURES = """\
- clean, corrupted: top-1 accuracy on the source's test images as they are, and the mean over corruptions, of a kind
  first over its severities; in percent, 0 to 100, more is better.
- drop: clean minus corrupted, in points; less is better.
- to zero-shot: difference in corrupted accuracy (more is better) and in drop (less is better) to the row that learns
  nothing and has the same text prior, the mean over paired seeds with its 95 % interval (Student's t), in points.
- text prior: what a row was told of the words around class names; rows compare within one.
- n: seeds. A method that is better on clean images has more to lose: read both differences.
- Images are corrupted here, by published kinds and severities; they are not ImageNet-C's files, and there is no mCE."""


def page(question: Question) -> str:
    """The page as Markdown.

    Raises:
        UsageError: There are no results of the protocol, or none of a method that learns nothing.
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
    references = {_prior(row): row for row in reversed(shown) if not _trained(row)}
    if not references:
        raise UsageError(f"The page {PROTOCOL} compares with zero-shot CLIP, of which there is no result; run it too.")
    shots = by_size({result.spec.shots for result in results if result.spec.shots != 0})
    seeds = sorted(set(chain.from_iterable(_by_seed(row, DROP) for row in shown)))
    sources = sorted({result.spec.dataset for result in results})
    said = [spec.suite, *sources, f"backbone {spec.backbone}", *([f"{shots_text(shots)} shots"] if shots else [])]
    title = f"{', '.join(said)}, seeds {seeds_text(seeds, ', ')}: {corruption_text(spec.corruption)}"
    return [_finding(shown, references, spec.suite), _accuracies(title, shown, references), _kinds(shown)]


def _prior(row: Row) -> str:
    """What a row was told of the words around class names."""
    return most_told(map(text_prior, row.results))


def _trained(row: Row) -> bool:
    """Whether anything of it is learned."""
    return any(result.spec.shots != 0 for result in row.results)


def _by_seed(row: Row, metric: str) -> dict[Seed, float]:
    """The mean of a metric over a row's datasets, of the seeds that have it on all."""
    datasets = {result.spec.dataset for result in row.results}
    found: dict[Seed, list[float]] = {}
    for result in row.results:
        if metric in result.metrics:
            found.setdefault(result.spec.seeds, []).append(result.metrics[metric])
    return {seed: fmean(values) for seed, values in found.items() if len(values) == len(datasets)}


def _differences(row: Row, reference: Row, metric: str) -> dict[Seed, float]:
    """A row minus another one, of the seeds that both have."""
    one, other = _by_seed(row, metric), _by_seed(reference, metric)
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def _to(row: Row, reference: Row | None, metric: str) -> str:
    if reference is None or row is reference:
        return "–"
    found = _differences(row, reference, metric)
    return str(paired_interval(list(found.values()))) if found else "–"


def _finding(shown: Sequence[Row], references: Mapping[str, Row], suite: str) -> str:
    """One sentence: what the methods that train lose and keep, beside zero-shot CLIP that was told as much."""
    trained = [row for row in shown if _trained(row) and _prior(row) in references]
    lost = {row.label: fmean(_by_seed(row, DROP).values()) for row in trained or references.values()}
    least, most = min(lost, key=lost.__getitem__), max(lost, key=lost.__getitem__)
    if not trained:
        return f"On {suite}, zero-shot CLIP loses {lost[least]:.1f} points of accuracy to corruption."
    drops, kept = _over(trained, references, DROP), _over(trained, references, MEAN)
    if not drops:
        return f"On {suite}, no method that trains has the seeds of zero-shot CLIP."
    own = f"{least} loses {lost[least]:.1f} points of accuracy to corruption"
    if len(trained) > 1:
        mean = f"{fmean(lost.values()):.1f} points of accuracy to corruption on average"
        own = f"the {len(trained)} rows that train lose {mean}"
        own += f", from {lost[least]:.1f} ({least}) to {lost[most]:.1f} ({most})"
    return (
        f"On {suite}, {own}: {paired_interval(drops)} points against zero-shot CLIP of the same text prior, beside "
        f"{paired_interval(kept)} points of accuracy on the corrupted images."
    )


def _over(trained: Sequence[Row], references: Mapping[str, Row], metric: str) -> list[float]:
    """The mean over rows of their differences to zero-shot, of the seeds that all of them have."""
    found = [_differences(row, references[_prior(row)], metric) for row in trained]
    common = set(found[0]).intersection(*found)
    return [fmean(one[seed] for one in found) for seed in sorted(common)]


def _accuracies(title: str, shown: Sequence[Row], references: Mapping[str, Row]) -> str:
    head = ["method", "text prior", "clean (%)", "corrupted (%)", "drop (points)"]
    head += ["corrupted to zero-shot", "drop to zero-shot", "n"]
    body = []
    for row in shown:
        figures = [rounded(fmean(_by_seed(row, metric).values())) for metric in (CLEAN, MEAN, DROP)]
        differences = [_to(row, references.get(_prior(row)), metric) for metric in (MEAN, DROP)]
        body.append([row.label, _prior(row), *figures, *differences, str(len(_by_seed(row, DROP)))])
    return "\n".join(laid_out(title, Texts(head, [body], []), names=2))


def _kinds(shown: Sequence[Row]) -> str:
    """The drop under each kind."""
    kinds = dict.fromkeys(one.partition(":")[0] for one in shown[0].results[0].spec.corruption.split())
    body = []
    for row in shown:
        clean = fmean(_by_seed(row, CLEAN).values())
        corrupted = [fmean(_by_seed(row, f"{kind}/accuracy").values()) for kind in kinds]
        body.append([row.label, *(rounded(clean - one) for one in corrupted)])
    return "\n".join(laid_out("Drop under each kind, points", Texts(["method", *kinds], [body], []), names=1))
