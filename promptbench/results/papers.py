"""Figures of papers, read from one CSV file a source, and the papers' BibTeX entries.

The files lie in `results/published` (`promptbench.published`); the README there says what a row is and how to add one.
What may be said of our figures beside them is in `promptbench.results.papers`.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.config import UsageError, parse_assignment, unknown
from promptbench.data.class_names import FROM_DATASET
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.knowledge import SELECTIONS, Choice, text_prior
from promptbench.results.spec import CONTEXT, Spec
from promptbench.suite import load_suite

if TYPE_CHECKING:
    from promptbench.results.result import Result

METRICS: Mapping[str, tuple[str, ...]] = {
    "base2new": ("base/accuracy", "new/accuracy", "h"),
    "few_shot": ("accuracy",),
    "cross_dataset": ("accuracy",),
    "domain_generalization": ("accuracy",),
    "ood": ("accuracy", "auroc", "fpr95"),
}
COLUMNS = (
    *("method", "label", "protocol", "backbone", "shots", "dataset", "metric", "score", "value", "std", "n_seeds"),
    *("recipe", "sampler", "settings", "note", "source"),
)
LATER = ("selection", "by_dataset", "trials")
"""Columns that a file may have after the others: how the settings of its figures were chosen."""

RECIPES = ("", "paper", "authors")
UNKNOWN = "unknown"
SEARCHED: Mapping[str, str] = {
    "few-shot validation": "a few validation images of each class",
    "full validation": "all validation images",
    "test": "test images",
}
"""Images beyond the shots that settings were chosen on; no figure of ours is judged against such a row."""

BY_DATASET: Mapping[str, bool | None] = {"yes": True, "no": False, "": None}
_CHOSEN_ON = {
    "test": re.compile(r"\b(chosen|searched|best)\b[^;]*\btest\b"),
    "full validation": re.compile(r"\b(chosen|searched|best)\b[^;]*\bvalidation\b"),
}  # what a note says of settings, the first that it does
_ONE_TEMPLATE = re.compile(r'template "[^"]*" for all datasets')
_SLACK = 1e-9  # of floating point, where printed digits are compared, and at a margin

NO_VALUE, NOT_COMPARABLE = "no published value", "not comparable"
REPRODUCED, DIFFERS, INCONCLUSIVE = "reproduced", "differs", "inconclusive"
MARGIN_AVERAGE, MARGIN_DATASET, MARGIN_ZERO_SHOT = 0.5, 1.5, 0.2  # points
MIN_SEEDS = 3
TRAINED_ON_DATASET = ("base2new", "few_shot")  # elsewhere the dataset of a figure is not the one trained on

_ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)
_OURS = re.compile(r",\s*^\s*(promptbench|printed|figures)\s*=\s*\{([^}]*)\}", re.MULTILINE)  # only read here
_YEAR = re.compile(r"^\s*year\s*=\s*\{(\d{4})\}", re.MULTILINE)
_AND = re.compile(r"\s*\+\s*(?=\w)")  # between the methods of a combination; the pluses of PLOT++ are no such


@dataclass(frozen=True, kw_only=True)
class Published:
    """One figure of a paper.

    Attributes:
        method: As its source calls it.
        labels: Our names of it, as typed on the command line, the usual one first; none where we do not have it.
        backbone: As papers write it, `ViT-B/16`; "" where the source does not say.
        shots: 0 for zero-shot, None where the source does not say.
        dataset: Evaluated on; `average11` is the mean over eleven.
        metric: One of `METRICS` of the protocol.
        score: OOD score, such as `mcm`; "" for other protocols, or where the source does not say.
        value: In percent, 0 to 100.
        digits: Decimals printed.
        std: Population standard deviation over seeds, in points, where printed.
        recipe: Origin of the recipe of ours that has the row's settings; "" if none has, or the source does not say.
            For zero-shot, whose templates are the row's: "" if the source does not say.
        sampler: Rule that drew the training images, as in a run's spec; "" where there is none or the source does not
            say.
        settings: Fields of the method's Config that the row's settings differ in from the recipe's.
        note: What is doubtful about the row.
        where: File and line.
        chosen_on: What the row's settings, or its epoch, were chosen on: one of `SELECTIONS`.
        by_dataset: Whether they differ from dataset to dataset; None where the source does not say.
        trials: How many settings were tried on each dataset; None where the source does not say.
    """

    method: str
    labels: tuple[str, ...]
    protocol: str
    backbone: str
    shots: int | None
    dataset: str
    metric: str
    score: str
    value: float
    digits: int
    std: float | None
    n_seeds: int | None
    recipe: str
    sampler: str
    settings: Mapping[str, object]
    note: str
    source: str
    where: str
    chosen_on: str = UNKNOWN
    by_dataset: bool | None = None
    trials: int | None = None

    @property
    def zero_shot(self) -> bool:
        """Whether nothing was trained."""
        return self.shots == 0

    @property
    def selection(self) -> Choice:
        """How its settings were chosen, as its file says, or else as far as its note does."""
        noted = next((kind for kind, said in _CHOSEN_ON.items() if said.search(self.note)), UNKNOWN)
        kind = noted if self.chosen_on == UNKNOWN else self.chosen_on
        by_dataset = self.by_dataset
        if by_dataset is None:
            by_dataset = kind in SEARCHED or "per dataset" in self.note
        return Choice(kind, self.trials or 0, by_dataset)

    @property
    def text_prior(self) -> str:
        """What was told of the words around class names, as far as recipe, settings and note say."""
        words = self.settings.get(CONTEXT)
        if "seven templates" in self.note:
            return "ensemble"
        if words == FROM_DATASET or (self.zero_shot and self.recipe):
            return "dataset"
        return "unknown" if words is None and not _ONE_TEMPLATE.search(self.note) else "generic"

    @property
    def average(self) -> bool:
        """Whether the margin of averages holds: for an average, and for ImageNet, whose test set is as large."""
        return self.dataset.startswith("average") or self.dataset == "imagenet"

    @property
    def secondary(self) -> bool:
        """Whether the source quotes others."""
        return "secondary" in self.source

    @property
    def same(self) -> tuple[str, ...]:
        """Whose figure it is, equal for sources that write one method in several ways: `TPT+CoOp`, `CoOp + TPT`."""
        return self.labels or _parts(self.method)

    @property
    def file(self) -> str:
        """The name of its CSV file, which stands for its source."""
        return Path(self.where.rpartition(", line ")[0]).stem

    @property
    def rounding(self) -> float:
        """Half a unit of the last digit printed: the true figure is no further away."""
        return 0.5 * 10**-self.digits


def load(folder: Path | None = None) -> list[Published]:
    """The published figures: authors' own before those that are quoted, then by file and line.

    Args:
        folder: Where the CSV files are; None for those of the package.

    Raises:
        UsageError: A file is no such table, or a row is not valid: an unknown protocol or metric, a value outside of 0
            to 100, no source; or, without a note, a value that contradicts another row, or an H that does not follow
            from base and new. It names file and line.
    """
    place = folder or Path(str(resources.files("promptbench.published")))
    rows = list(chain.from_iterable(map(_read, sorted(place.glob("*.csv")))))
    _check_duplicates(rows)
    _check_harmonic_means(rows)
    return sorted(rows, key=lambda row: row.secondary)


def find(
    rows: Sequence[Published], *, label: str, protocol: str, dataset: str, metric: str, score: str = ""
) -> list[Published]:
    """The rows with one figure of one of our methods, in order."""
    wanted = (protocol, dataset, metric, score)
    return [row for row in rows if label in row.labels and (row.protocol, row.dataset, row.metric, row.score) == wanted]


def bib_key(method: str) -> str:
    """Key in `papers.bib` of the paper behind a method, `maple` or `ivlp@maple`, or "" if it has none."""
    keys = _bib_keys("promptbench")
    return keys.get((method,)) or keys.get((method.partition("@")[0],), "")


def bib_key_of(row: Published) -> str:
    """Key in `papers.bib` of the paper behind the method of a row, whether it is one of ours or not; "" if none is."""
    known = next(filter(None, map(bib_key, row.labels)), "")
    return known or _bib_keys("printed").get(_parts(row.method), "")


def bib_key_of_source(row: Published) -> str:
    """Key in `papers.bib` of the paper that prints a row; "" where the source is none, such as a list."""
    return _bib_keys("figures").get((row.file,), "")


def year_of(key: str) -> int:
    """The year of the paper with this key in `papers.bib`."""
    found = _YEAR.search(_bibliography()[key])
    assert found, key
    return int(found[1])


def _parts(method: str) -> tuple[str, ...]:
    """The methods that one is made of, in alphabetical order."""
    return tuple(sorted(_AND.split(method)))


@cache
def _bib_keys(field: str) -> Mapping[tuple[str, ...], str]:
    """The key of each method or file that an entry names in one of the fields that are only read here."""
    keys: dict[tuple[str, ...], str] = {}
    for key, entry in _bibliography().items():
        for name, listed in _OURS.findall(entry):
            names = listed.split(";") if name == "printed" else listed.replace(",", " ").split()
            if name == field:
                keys |= dict.fromkeys((_parts(one.strip()) for one in names), key)
    return keys


@cache
def _bibliography() -> Mapping[str, str]:
    """The entries of `papers.bib` by their keys."""
    text = resources.files("promptbench.published").joinpath("papers.bib").read_text(encoding="utf-8")
    return {entry[1]: entry[0] for entry in _ENTRY.finditer(text)}


def entries(keys: Collection[str]) -> str:
    """BibTeX entries with these keys, in the order of `papers.bib`, as a file of their own."""
    return "\n\n".join(_OURS.sub("", entry) for key, entry in _bibliography().items() if key in keys) + "\n"


def _read(file: Path) -> Iterator[Published]:
    """The published figures in one CSV file."""
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            if tuple(reader.fieldnames or ()) not in (COLUMNS, (*COLUMNS, *LATER)):
                raise UsageError(
                    f"{file}, line 1: the columns of published figures must be {','.join(COLUMNS)}, and may go on with "
                    f"{','.join(LATER)}."
                )
            for cells in reader:
                yield _row(cells, f"{file}, line {reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file}: the published figures cannot be read ({error}).") from error


def _row(cells: Mapping[str | None, str | None], where: str) -> Published:
    """The published figure in one row of a file, checked by itself."""
    text = {name: (cells.get(name) or "").strip() for name in (*COLUMNS, *LATER)}
    if None in cells or None in cells.values():
        columns = sum(name is not None for name in cells)
        raise UsageError(f"{where}: a row has {columns} cells; put those with commas in quotes.")
    for name in ("method", "dataset", "source"):
        if not text[name]:
            raise UsageError(f"{where}: {name!r} is empty; every figure says what it is of and where it was read.")
    if text["protocol"] not in METRICS:
        raise UsageError(f"{where}: {unknown('protocol', text['protocol'], METRICS)}")
    if text["metric"] not in METRICS[text["protocol"]]:
        kind = f"metric of {text['protocol']}"
        raise UsageError(f"{where}: {unknown(kind, text['metric'], METRICS[text['protocol']])}")
    if text["recipe"] not in RECIPES:
        raise UsageError(f"{where}: 'recipe' must be paper, authors or empty, not {text['recipe']!r}.")
    selection = text["selection"] or UNKNOWN
    if selection not in SELECTIONS:
        raise UsageError(f"{where}: {unknown('selection', selection, SELECTIONS)}")
    if text["by_dataset"] not in BY_DATASET:
        raise UsageError(f"{where}: 'by_dataset' must be yes, no or empty, not {text['by_dataset']!r}.")
    value = _number(text["value"], "value", where)
    if not 0 <= value <= 100:
        raise UsageError(f"{where}: 'value' must be in percent, from 0 to 100, not {text['value']}.")
    return Published(
        method=text["method"],
        labels=tuple(text["label"].split()),
        protocol=text["protocol"],
        backbone=text["backbone"],
        shots=_whole(text["shots"], "shots", where),
        dataset=text["dataset"],
        metric=text["metric"],
        score=text["score"],
        value=value,
        digits=len(text["value"].partition(".")[2]),
        std=_number(text["std"], "std", where) if text["std"] else None,
        n_seeds=_whole(text["n_seeds"], "n_seeds", where),
        recipe=text["recipe"],
        sampler=text["sampler"],
        settings={path[-1]: setting for path, setting in map(parse_assignment, text["settings"].split())},
        note=text["note"],
        source=text["source"],
        where=where,
        chosen_on=selection,
        by_dataset=BY_DATASET[text["by_dataset"]],
        trials=_whole(text["trials"], "trials", where),
    )


def _number(text: str, name: str, where: str) -> float:
    """A decimal number as printed; no exponents, so that its digits can be counted."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise UsageError(f"{where}: {name!r} takes a number as it is printed, such as 82.28, not {text!r}.")
    return float(text)


def _whole(text: str, name: str, where: str) -> int | None:
    if text and not text.isdecimal():
        raise UsageError(
            f"{where}: {name!r} takes a whole number, or nothing where the source is silent, not {text!r}."
        )
    return int(text) if text else None


def contradictions(rows: Sequence[Published]) -> Iterator[tuple[Published, Published]]:
    """The pairs of rows that print one figure of one method differently, by more than their digits allow."""
    same: dict[tuple[object, ...], list[Published]] = {}
    for row in rows:
        setting = (row.same, row.protocol, row.backbone, row.shots, tuple(row.settings.items()))
        same.setdefault((*setting, row.dataset, row.metric, row.score), []).append(row)
    for one, other in chain.from_iterable(combinations(group, 2) for group in same.values()):
        if abs(one.value - other.value) > one.rounding + other.rounding + _SLACK:
            yield one, other


def harmonic_contradictions(rows: Sequence[Published]) -> Iterator[tuple[Published, Published, Published]]:
    """Base, new and H of one source, where H does not lie between those of base and new rounded down and up."""
    tables: dict[tuple[object, ...], dict[str, Published]] = {}
    for row in rows:
        if row.protocol == "base2new":
            key = (row.source, row.method, row.backbone, row.shots, row.dataset)
            tables.setdefault(key, {})[row.metric] = row
    for table in tables.values():
        if len(table) == len(METRICS["base2new"]):
            base, new, h = (table[metric] for metric in METRICS["base2new"])
            low = harmonic_mean(max(base.value - base.rounding, 0), max(new.value - new.rounding, 0))
            high = harmonic_mean(base.value + base.rounding, new.value + new.rounding)
            slack = h.rounding + _SLACK
            if not low - slack <= h.value <= high + slack:
                yield base, new, h


def _check_duplicates(rows: Sequence[Published]) -> None:
    """Sources may print a figure with more or fewer digits; where they contradict each other, a note must say so."""
    for one, other in contradictions(rows):
        if not one.note and not other.note:
            raise UsageError(
                f"{other.where}: {other.method} has {other.value:.{other.digits}f} here and "
                f"{one.value:.{one.digits}f} in {one.where}; correct one, or say in its note why they differ."
            )


def _check_harmonic_means(rows: Sequence[Published]) -> None:
    """H must follow from base and new; else a note must say so."""
    for base, new, h in harmonic_contradictions(rows):
        if not h.note:
            raise UsageError(
                f"{h.where}: the H of {base.value} and {new.value} is {harmonic_mean(base.value, new.value):.2f}, "
                f"not {h.value}; correct the row, or say in its note that the source is inconsistent."
            )


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
        candidates: As `papers.find` gives them.
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
    margin = MARGIN_AVERAGE if average else MARGIN_DATASET
    margin = MARGIN_ZERO_SHOT if zero_shot else margin
    half = paper.rounding if zero_shot else _half_width(ours, paper)
    interval = None if half is None else (gap - half, gap + half)
    enough = zero_shot or len(ours) >= MIN_SEEDS
    text = _placed(interval, margin) if interval and enough else INCONCLUSIVE
    return Verdict(text, gap, margin, interval, why if enough else _joined(f"{len(ours)} of {MIN_SEEDS} seeds", why))


def _covers(results: Sequence[Result], row: Published) -> tuple[bool, str]:
    """Whether there are results and, for an average over trainings, of all datasets that papers average over."""
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
    yield f"classes halved by {spec.split}, not as in the papers" if spec.split != Spec.split else ""
    options = {spec.dataset: spec.dataset_options, **spec.evaluated}
    renamed = [name for name, of_dataset in options.items() if of_dataset.get("class_names")]
    yield f"other class names of {', '.join(renamed)}" if renamed else ""
    yield "unreadable images were left out" if result.conditions.get("skipped") else ""
    yield "images were corrupted here" if spec.corruption else ""
    yield f"at most {spec.limit} test images were scored here (--limit)" if spec.limit else ""
    yield "the mini suite is no public benchmark" if spec.suite == "mini" else ""
    yield f"{spec.label} is not {row.method}" if spec.label not in row.labels else ""
    yield f"protocol {spec.protocol}, not {row.protocol}" if spec.protocol != row.protocol else ""
    yield f"dataset {spec.dataset}, not {row.dataset}" if trained_on and spec.dataset != trained_on else ""
    if not row.backbone:
        yield "the source does not state the backbone"
    elif not same_backbone(spec.backbone, row.backbone):
        yield f"backbone {spec.backbone} here, OpenAI's {row.backbone} there"
    kind = row.selection.kind
    yield f"its settings were chosen on {SEARCHED[kind]}" if kind in SEARCHED else ""
    yield "the source does not state the settings, or no recipe has them" if not row.recipe else ""
    if not row.zero_shot:
        origin = str(spec.recipe.get("origin", ""))
        yield "the source does not state the shots" if row.shots is None else ""
        yield f"{spec.shots} shots here, {row.shots} there" if spec.shots != row.shots else ""
        yield f"recipe {origin or 'unknown'} here, {row.recipe} there" if origin != row.recipe else ""
        yield "the source does not state how images were drawn" if not row.sampler else ""
        yield f"sampler {spec.sampler} here, {row.sampler} there" if spec.sampler != row.sampler else ""
    yield _other_settings(result, row)
    told = text_prior(result)
    if "unknown" not in (told, row.text_prior):
        yield f"text prior {told} here, {row.text_prior} there" if told != row.text_prior else ""


def same_backbone(ours: str, theirs: str) -> bool:
    """Whether ours is the backbone of a paper: papers use OpenAI's weights, and a file does not say whose it holds."""
    architecture, _, weights = ours.partition(":")
    return weights == "openai" and architecture.removesuffix("-quickgelu") == theirs.replace("/", "-")


def _other_settings(result: Result, row: Published) -> str:
    """Fields of the Config that are not the row's: those it names, and those set by hand or by a suite."""
    config = result.spec.config
    provenance = result.conditions.get("provenance") or {}
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
