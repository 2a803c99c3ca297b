"""Are methods as right as they are sure, on new classes as on base classes, and does a temperature carry over?

From stored base-to-new results; figures after a temperature are there where runs fitted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, product
from statistics import fmean

from promptbench.metrics.classification import CALIBRATION, LOG_TEMPERATURE
from promptbench.metrics.statistics import paired_interval
from promptbench.protocol import SCALED, digits_of
from promptbench.show.evidence.averages import Averaged, averaged, conditions, number, paired, said, section
from promptbench.show.tables.show import Question
from promptbench.show.tables.table import Seed

TITLES = {"ece": "ECE", "adaptive_ece": "adaptive ECE", "nll": "NLL", "brier": "Brier"}
HALVES = ("base", "new")
FIGURES = """\
- ECE, adaptive ECE: how far confidence is from accuracy, in 15 bins of equal width or of equal count; in percent, 0 to
  100, lower is better.
- NLL: mean negative log likelihood of the true class; in nats, 0 and more, lower is better.
- Brier: mean squared distance of the probabilities from the truth; no unit, 0 to 2, lower is better.
- ECE new − base: in points, seeds paired; positive where a method is worse calibrated on new classes.
- T: what logits are divided by, mean over runs, the least and the largest in brackets; no unit, 0.050 to 20.086, below
  1 where a method was not sure enough. It minimises NLL on min(shots, 4) validation images of each trained class among
  their names, and is applied unchanged to new classes.
"""


def page(question: Question) -> str:
    """The page in Markdown.

    Raises:
        UsageError: No results have these metrics.
    """
    source, shown, left_out = averaged(question, "base/adaptive_ece")
    fitted = [one for one in shown if one.by_seed("base/ece" + SCALED)]
    parts = ["# Calibration on base and on new classes", finding(shown, fitted), before(shown)]
    if fitted:
        parts += [after(fitted), *at_the_bound(fitted)]
    parts += [FIGURES.rstrip(), conditions(source, shown, left_out)]
    return "\n\n".join(parts) + "\n"


def before(shown: Sequence[Averaged]) -> str:
    """The table of figures as methods give their probabilities."""
    body = [
        [one.label, one.text_prior, *figures(one, ""), said(paired(one.by_seed("new/ece"), one.by_seed("base/ece")))]
        for one in shown
    ]
    return section("As methods say it", ["method", "text prior", *heads(), "ECE new − base"], body)


def after(fitted: Sequence[Averaged]) -> str:
    """The table of figures after the temperature."""
    steps = (paired(one.by_seed("new/ece" + SCALED), one.by_seed("base/ece" + SCALED)) for one in fitted)
    body = [
        [one.label, one.text_prior, *figures(one, SCALED), said(step), temperatures(one)]
        for one, step in zip(fitted, steps, strict=True)
    ]
    return section("After the temperature", ["method", "text prior", *heads(), "ECE new − base", "T"], body)


def heads() -> list[str]:
    """The titles of the columns of figures."""
    return [f"{half} {title}" for title, half in product(TITLES.values(), HALVES)]


def figures(one: Averaged, ending: str) -> list[str]:
    """The figures of a row, in the order of `heads`; `ending` is what names of metrics end in."""
    names = [f"{half}/{metric}{ending}" for metric, half in product(CALIBRATION, HALVES)]
    return [number(one.mean(name), digits_of(name)) for name in names]


def temperatures(one: Averaged) -> str:
    """The mean temperature of a row's runs, and from where to where they go."""
    values = one.values("temperature")
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def at_the_bound(fitted: Sequence[Averaged]) -> list[str]:
    """A sentence where temperatures are the least that there may be."""
    values = list(chain.from_iterable(one.values("temperature") for one in fitted))
    least = math.exp(LOG_TEMPERATURE[0])
    count = sum(value <= least * (1 + 1e-6) for value in values)
    if not count:
        return []
    return [
        f"In {count} of {len(values)} runs T is the least there may be: all few validation images are recognised, and "
        "the likelihood only grows the surer a method is of them."
    ]


def finding(shown: Sequence[Averaged], fitted: Sequence[Averaged]) -> str:
    """One sentence: how much more a training costs in calibration on new classes, and what a temperature mends."""
    trained = [one for one in shown if one.trained and not one.row.reconstructed and one.by_seed("new/ece")]
    steps = [step for one in trained if (step := beyond(one, one.alike(shown)))]
    sentences = []
    if common := mean_over(steps):
        rows = f"{len(steps)} trained row{'s' * (len(steps) > 1)}"
        sentences.append(
            f"training changes the step in ECE from base to new classes by {said(paired_interval([*common.values()]))} "
            f"points against zero-shot of the same text prior, mean of {rows}"
        )
    both = [one for one in fitted if one.by_seed("new/ece" + SCALED)]
    changes = []
    for half in HALVES:
        change = mean_over([difference(one, f"{half}/ece{SCALED}", f"{half}/ece") for one in both])
        changes += [f"{said(paired_interval([*change.values()]))} points on {half} classes"] if change else []
    if changes:
        sentences.append(f"the temperature of trained classes changes ECE by {' and '.join(changes)}")
    if not sentences:
        return "Without zero-shot of its text prior on the same seeds there is no trained row to compare."
    text = "; ".join(sentences)
    return f"{text[:1].upper()}{text[1:]}."


def beyond(one: Averaged, reference: Averaged | None) -> dict[Seed, float]:
    """By how much ECE grows more from base to new classes than in a reference, seed by seed."""
    if reference is None:
        return {}
    own, other = (difference(row, "new/ece", "base/ece") for row in (one, reference))
    return {seed: own[seed] - other[seed] for seed in own if seed in other}


def difference(one: Averaged, metric: str, other: str) -> dict[Seed, float]:
    """One metric minus another, seed by seed."""
    first, second = one.by_seed(metric), one.by_seed(other)
    return {seed: first[seed] - second[seed] for seed in first if seed in second}


def mean_over(of_rows: Sequence[Mapping[Seed, float]]) -> dict[Seed, float]:
    """The mean over rows, of the seeds that all have; nothing where there is none."""
    common = set(of_rows[0]).intersection(*of_rows) if of_rows else set()
    return {seed: fmean(of_row[seed] for of_row in of_rows) for seed in sorted(common)}
