"""What may be said of our figures beside a paper's.

`matches` says whether a result may be compared with a published row, `choose` finds the row that all results of a
figure may be compared with, `compare` says the verdict. For our seeds x_1 ... x_n with mean x and sample variance s^2,
and a paper's mean y of m seeds with population standard deviation t,

    x - y  +-  q(df) * sqrt(s^2 / n + t^2 / (m - 1)),   q = 95 % quantile of Student's t with Welch's df

is the 90 % confidence interval of the difference; t^2 / (m - 1) is the squared standard error of the paper's mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptbench.literature import Published
    from promptbench.results import Result

NO_VALUE, NOT_COMPARABLE = "no published value", "not comparable"
REPRODUCED, DIFFERS, INCONCLUSIVE = "reproduced", "differs", "inconclusive"

MARGIN_AVERAGE, MARGIN_DATASET, MARGIN_ZERO_SHOT = 0.5, 1.5, 0.2  # points
MIN_SEEDS = 3
TRAINED_ON_DATASET = ("base2new", "few_shot")  # elsewhere the dataset of a figure is not the one trained on
_SLACK = 1e-9  # of floating point at a margin


@dataclass(frozen=True)
class Verdict:
    """What may be said of our figure beside a paper's.

    Attributes:
        text: `reproduced`, `differs`, `inconclusive`, `not comparable` or `no published value`.
        gap: Ours minus theirs, in points.
        margin: What still counts as equal, in points.
        interval: 90 % confidence interval of the gap; None for a single seed.
        why: What a reader has to know of it, or "".
    """

    text: str
    gap: float | None = None
    margin: float | None = None
    interval: tuple[float, float] | None = None
    why: str = ""


def choose(candidates: Sequence[Published], results: Sequence[Result]) -> tuple[Published | None, bool, str]:
    """The first row that all results may be compared with, True, and what has to be said; else the first row, False
    and why not; None where nothing is published.

    Args:
        candidates: As `literature.find` gives them.
        results: The records behind one figure of ours. For an average of base2new or few_shot they must be of the very
            datasets that papers average over. An average over the targets of one training has to be made of all
            targets by the caller.
    """
    refused = ""
    for row in candidates:
        answers = [_covers(results, row), *(matches(result, row) for result in results)]
        if all(comparable for comparable, _ in answers):
            return row, True, _joined(row.note, *dict.fromkeys(said for _, said in answers))
        refused = refused or next(said for comparable, said in answers if not comparable)
    return (candidates[0] if candidates else None), False, refused


def matches(result: Result, published: Published) -> tuple[bool, str]:
    """Whether a result may be compared with a published row, and the reason; for those that may, a remark or "".

    The recipe must be the paper's or its authors', and so must be sampler, backbone, weights and shots. Precision may
    differ; the remark says so.
    """
    reason = next((reason for reason in _obstacles(result, published) if reason), "")
    if reason:
        return False, reason
    half = result.spec.precision.startswith(("16", "authors"))
    return True, "" if half else f"precision {result.spec.precision} here, half precision in the papers"


def compare(
    paper: Published | None,
    ours: Sequence[float],
    *,
    comparable: bool,
    average: bool,
    zero_shot: bool,
    why: str = "",
) -> Verdict:
    """The verdict on our figures beside a paper's.

    The margin is 0.2 points for zero-shot, 0.5 for averages and ImageNet, 1.5 for any other dataset. It is `reproduced`
    if at least three seeds were run and the 90 % interval of the difference lies inside the margin, `differs` if it
    lies outside altogether, and else `inconclusive`. Zero-shot is deterministic: one run is enough, and its interval
    is the rounding of the printed value. The interval of others is Welch's, see the module; where the paper prints no
    standard deviation, or not over how many seeds, its mean is taken as exact, so that the interval is too narrow.

    Args:
        ours: The figure of every seed, in percent.
        comparable: As `matches` says.
        average: Whether the figure is an average or ImageNet's.
        why: Reason or remark to hand on.
    """
    if paper is None:
        return Verdict(NO_VALUE, why=why)
    if not comparable:
        return Verdict(NOT_COMPARABLE, why=why)
    gap = _mean(ours) - paper.value
    margin = MARGIN_ZERO_SHOT if zero_shot else MARGIN_AVERAGE if average else MARGIN_DATASET
    half = paper.rounding if zero_shot else _half_width(ours, paper)
    interval = None if half is None else (gap - half, gap + half)
    enough = zero_shot or len(ours) >= MIN_SEEDS
    text = _placed(interval, margin) if interval and enough else INCONCLUSIVE
    return Verdict(text, gap, margin, interval, why if enough else _joined(f"{len(ours)} of {MIN_SEEDS} seeds", why))


def _covers(results: Sequence[Result], row: Published) -> tuple[bool, str]:
    """Whether there are results and, for an average over trainings, of all datasets that papers average over."""
    from promptbench.suite import load_suite

    if not results:
        return False, "there are no results"
    if row.protocol in TRAINED_ON_DATASET and row.dataset.startswith("average"):
        here, there = {result.spec.dataset for result in results}, set(load_suite("clip11").datasets(row.protocol))
        if here != there:
            return False, f"the average here is over {len(here)} datasets, not over the {len(there)} of the papers"
    return True, ""


def _obstacles(result: Result, row: Published) -> Iterator[str]:
    """What stands in the way of a comparison, one by one; "" where nothing does."""
    spec = result.spec
    trained_on = row.dataset if row.protocol in TRAINED_ON_DATASET and not row.dataset.startswith("average") else ""
    yield "reconstructed without its authors' code" if result.conditions.get("reconstructed") else ""
    generated = str(result.conditions.get("split_source", "")).startswith("generated")
    yield "the split was generated here, without the papers' split file" if generated else ""
    yield "unreadable images were left out" if result.conditions.get("skipped") else ""
    yield "the mini suite is no public benchmark" if spec.suite == "mini" else ""
    yield f"{spec.label} is not {row.method}" if spec.label not in row.labels else ""
    yield f"protocol {spec.protocol}, not {row.protocol}" if spec.protocol != row.protocol else ""
    yield f"dataset {spec.dataset}, not {row.dataset}" if trained_on and spec.dataset != trained_on else ""
    yield _other_backbone(spec.backbone, row.backbone)
    yield "the source does not state the settings, or no recipe has them" if not row.recipe else ""
    if not row.zero_shot:
        origin = str(spec.recipe.get("origin", ""))
        yield "the source does not state the shots" if row.shots is None else ""
        yield f"{spec.shots} shots here, {row.shots} there" if spec.shots != row.shots else ""
        yield f"recipe {origin or 'unknown'} here, {row.recipe} there" if origin != row.recipe else ""
        yield "the source does not state how images were drawn" if not row.sampler else ""
        yield f"sampler {spec.sampler} here, {row.sampler} there" if spec.sampler != row.sampler else ""
    yield _other_settings(result, row)


def _other_backbone(ours: str, theirs: str) -> str:
    """Papers use OpenAI's weights; a file does not say whose it holds."""
    architecture, _, weights = ours.partition(":")
    if not theirs:
        return "the source does not state the backbone"
    if architecture.removesuffix("-quickgelu") != theirs.replace("/", "-") or weights != "openai":
        return f"backbone {ours} here, OpenAI's {theirs} there"
    return ""


def _other_settings(result: Result, row: Published) -> str:
    """Fields of the Config that are not the row's: those it names, and those set by hand or by a suite."""
    config, provenance = result.spec.config, result.conditions.get("provenance") or {}
    chosen = {
        name.removeprefix("config.")
        for name, origin in provenance.items()
        if name.startswith("config.") and (origin == "--set" or origin.startswith("suite "))
    }
    other = {name for name, value in row.settings.items() if config.get(name) != value} | (chosen - set(row.settings))
    return f"other settings: {', '.join(f'{name}={config.get(name)}' for name in sorted(other))}" if other else ""


def _placed(interval: tuple[float, float], margin: float) -> str:
    low, high = interval
    if -margin - _SLACK <= low and high <= margin + _SLACK:
        return REPRODUCED
    return DIFFERS if low > margin + _SLACK or high < -margin - _SLACK else INCONCLUSIVE


def _half_width(ours: Sequence[float], paper: Published) -> float | None:
    """Half the 90 % interval of the difference of the means, in points; None for a single seed."""
    n, m = len(ours), paper.n_seeds or 0
    if n < 2:
        return None
    mean = _mean(ours)
    errors = [(math.fsum((value - mean) ** 2 for value in ours) / (n - 1) / n, n - 1)]  # squared, degrees of freedom
    if paper.std and m > 1:
        errors.append((paper.std**2 / (m - 1), m - 1))
    total = math.fsum(error for error, _ in errors)
    if total == 0:
        return 0.0
    from scipy.special import stdtrit  # lighter than scipy.stats

    freedom = total**2 / math.fsum(error**2 / free for error, free in errors)
    return float(stdtrit(freedom, 0.95)) * math.sqrt(total)


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("There is no figure of ours to compare.")
    return math.fsum(values) / len(values)
