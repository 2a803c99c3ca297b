"""Figures of papers, read from one CSV file a source, and the papers' BibTeX entries.

The files lie in `results/published` (`promptbench.published`); the README there says what a row is and how to add one.
What may be said of our figures beside them is in `promptbench.verdicts`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import combinations
from pathlib import Path

from promptbench.config import UsageError, parse_assignment, unknown
from promptbench.metrics.accuracy import harmonic_mean
from promptbench.verdicts import Verdict, choose, compare, matches

__all__ = ["Published", "Verdict", "bib_key", "choose", "compare", "find", "load", "matches"]

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
RECIPES = ("", "paper", "authors")
_SLACK = 1e-9  # of floating point, where printed digits are compared


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

    @property
    def zero_shot(self) -> bool:
        return self.shots == 0

    @property
    def average(self) -> bool:
        """Whether the margin of averages holds: for an average, and for ImageNet, whose test set is as large."""
        return self.dataset.startswith("average") or self.dataset == "imagenet"

    @property
    def secondary(self) -> bool:
        """Whether the source quotes others."""
        return "secondary" in self.source

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
    rows = [row for file in sorted(place.glob("*.csv")) for row in _read(file)]
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
    keys = _bib_keys()
    return keys.get(method) or keys.get(method.partition("@")[0], "")


@cache
def _bib_keys() -> Mapping[str, str]:
    text = resources.files("promptbench.published").joinpath("papers.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{([^,\s]+),(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    listed = {key: re.search(r"^\s*promptbench\s*=\s*\{([^}]*)\}", body, re.MULTILINE) for key, body in entries}
    return {method: key for key, match in listed.items() if match for method in match[1].replace(",", " ").split()}


def _read(file: Path) -> Iterator[Published]:
    """The rows of one file."""
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UsageError(f"{file}, line 1: the columns of published figures must be {','.join(COLUMNS)}.")
            for cells in reader:
                yield _row(cells, f"{file}, line {reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file}: the published figures cannot be read ({error}).") from error


def _row(cells: Mapping[str | None, str | None], where: str) -> Published:
    """One row, checked by itself."""
    text = {name: (cells[name] or "").strip() for name in COLUMNS}
    if None in cells or None in cells.values():
        raise UsageError(f"{where}: a row has {len(COLUMNS)} cells; put those with commas in quotes.")
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


def _check_duplicates(rows: Sequence[Published]) -> None:
    """Sources may print a figure with more or fewer digits; where they contradict each other, a note must say so."""
    same: dict[tuple[object, ...], list[Published]] = {}
    for row in rows:
        method = row.labels or row.method
        setting = (method, row.protocol, row.backbone, row.shots, tuple(row.settings.items()))
        same.setdefault((*setting, row.dataset, row.metric, row.score), []).append(row)
    for one, other in (pair for group in same.values() for pair in combinations(group, 2)):
        apart = abs(one.value - other.value) > one.rounding + other.rounding + _SLACK
        if apart and not one.note and not other.note:
            raise UsageError(
                f"{other.where}: {other.method} has {other.value:.{other.digits}f} here and "
                f"{one.value:.{one.digits}f} in {one.where}; correct one, or say in its note why they differ."
            )


def _check_harmonic_means(rows: Sequence[Published]) -> None:
    """H must lie between those of base and new rounded down and up; else a note must say so."""
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
            if not (low - slack <= h.value <= high + slack or h.note):
                raise UsageError(
                    f"{h.where}: the H of {base.value} and {new.value} is {harmonic_mean(base.value, new.value):.2f}, "
                    f"not {h.value}; correct the row, or say in its note that the source is inconsistent."
                )
