"""Stored results to tables: which runs share a row, and what is averaged over what.

A row holds the results of one method under one configuration. Within a dataset they agree in every setting; only their
seeds differ. From dataset to dataset they agree in everything but what the method's own recipes say per dataset (200
epochs here, 50 there). Where results of one method disagree, they become several rows, and the settings that set them
apart stand behind the method's name. So do shots, sampler, precision, weights and split file where methods differ in
them: what is compared is said. A setting may be asked for besides: then every value of it has a row of its own, and
says so even where it is the only one. So do halves of the classes that are not the papers' (`split`).

Rows of methods that started from the words of their dataset are apart from others of the same method and stand behind
all others. What is ranked is so within one text prior, as `results.knowledge` tells them.

For a metric x of dataset d and seed s, and H derived from metrics:

    dataset                  x_d = mean_s x_ds          H_d = H(base_d, new_d)
    average                  X = mean_d x_d             H(mean_d base_d, mean_d new_d), as in the papers
    mean of per-dataset H                               mean_d H_d
    ±                        population standard deviation (ddof 0) of the quantity shown, computed seed by seed

An average is shown for rows that have every dataset of the table, its ± where every dataset has the same seeds. A table
may be made of other blocks than datasets, such as scores. With the median m of at least three seeds, a measured figure
of a dataset is an outlier where

    |x_ds - m| > max(p, 3 * 1.4826 * median_s |x_ds - m|)

with p of 3 points, or 10 among three or four seeds, whose median deviation says little.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from promptbench import registry
from promptbench.config import UsageError, unknown
from promptbench.data.class_names import FROM_DATASET
from promptbench.protocol import Column, Protocol
from promptbench.recipe import BY_SHOT
from promptbench.results.frame import json_frame, runs_frame
from promptbench.results.result import Result
from promptbench.results.spec import CONTEXT, DATA, MACHINE, SETTING, Spec, fields_of
from promptbench.show.tables.table import (
    Cell,
    Line,
    Numbers,
    Row,
    Seed,
    Table,
    TableLayout,
    by_size,
    dataset_titles,
    population_std,
)

NOT_SETTINGS = ("origin", "overrides", "source")
BY_RECIPE = "by recipe"
BY_DATASET = "by dataset"

_SCORES = "scores."
_OPENED = ("config", "recipe", "dataset_options", "scores")
_SETTINGS = [item for item in fields_of(Spec, SETTING, MACHINE, DATA) if item.name not in _OPENED]
_MET = tuple(item.name for item in _SETTINGS if item.metadata["renews"] and item.name != "plugin")
_OF_SPEC = tuple(item.name for item in _SETTINGS if item.name not in _MET)
_TRANSFORM = "conditions.transform"
_CONTEXT = f"config.{CONTEXT}"
_BY_DATASET = {_TRANSFORM, *(item.name for item in _SETTINGS if item.metadata["by_dataset"])}
_NAMES_FOLLOW = ("split", "dataset_options.class_names")  # what the class names shown follow from
_OF_SAMPLES = {"shots", "sampler"}
_OF_ALL = {"precision", "weights_hash", "split_digest", "corruption", "limit"}  # what is compared must agree in these

SEEDS = ("data_seed", "train_seed")
SPREAD = "± is the population standard deviation over n seeds (ddof 0)."
APART = "Other suites and backbones have tables of their own: no figure mixes them."
MEANS_APART = "; the mean of per-"
STARTED = (
    f"{CONTEXT}={FROM_DATASET}: the context starts from the template of the dataset trained on, its words before the "
    "class name learned, those behind it kept."
)
OUTLIER_POINTS, OUTLIER_POINTS_OF_FEW, OUTLIER_SIGMAS, SIGMA_OF_MAD = 3.0, 10.0, 3.0, 1.4826


class Kind(NamedTuple):
    """What cannot share a row: methods, and those of one that started from the words of their dataset or did not."""

    from_dataset: bool
    label: str

    @classmethod
    def of(cls, result: Result) -> Kind:
        """That of a result."""
        return cls(result.spec.from_dataset, result.spec.label)


def _kinds(results: Iterable[Result], methods: Sequence[str]) -> list[Kind]:
    """The kinds of some results in the order of their rows."""
    order = {method: place for place, method in reversed(list(enumerate(methods)))}
    return sorted(
        set(map(Kind.of, results)),
        key=lambda kind: (kind.from_dataset, order.get(kind.label, len(order)), kind.label),
    )


def rows(results: Iterable[Result], methods: Sequence[str] = (), along: str = "", group_by: str = "") -> list[Row]:
    """The rows of a table, the methods named first in that order, the others after them by name.

    Args:
        results: Of one protocol, suite and backbone.
        methods: Labels.
        along: A field of the spec that runs along the columns, such as `shots`: it sets no rows apart.
        group_by: A setting that always sets rows apart, its values in order: `epochs`, or `maple.depth` of one method.

    Raises:
        UsageError: If a run is there twice.
    """
    ordered = sorted(results, key=lambda result: (result.spec.dataset, result.spec.seeds, result.name))
    runs = runs_frame(ordered)
    kinds = _kinds(ordered, methods)
    runs["kind"] = [kinds.index(Kind.of(result)) for result in ordered]
    settings = _settings(runs, along)
    shared = _shared(settings, runs)
    everywhere, across = _telling_apart(settings, shared, runs, along)
    stored = {result.spec.method: str(result.conditions.get("title", "")) for result in ordered}
    titles = registry.titles("methods", stored, stored)
    asked = {result.spec.label: name for result in ordered if group_by and (name := setting_named(result, group_by))}
    found = []
    for number, (from_dataset, method) in enumerate(kinds):
        halved = any(runs.loc[runs["kind"] == number, "split"] != Spec.split)  # otherwise than in the papers
        always = {asked.get(method, ""), _CONTEXT if from_dataset else "", "split" if halved else ""} - {""}
        exact = everywhere[number] | always
        names = sorted(exact | across[number], key=lambda name: (name != asked.get(method), _short(name), name))
        apart = settings[runs["kind"] == number].reindex(columns=names)
        by_recipe_or_dataset = [name for name in names if name not in exact]
        apart[by_recipe_or_dataset] = shared.loc[apart.index, by_recipe_or_dataset]
        of_method = _rows_of(method, apart.fillna("null"), ordered)
        found += [replace(row, title=titles[row.results[0].spec.method]) for row in of_method]
    return found


def settings_of(result: Result) -> list[str]:
    """The settings that `group_by` may name; what trains on nothing has no setting of training."""
    names = [f"config.{name}" for name in result.spec.config]
    if result.spec.shots == 0:
        return names
    return [*_OF_SPEC, *names, *(f"recipe.{name}" for name in result.spec.recipe if name not in NOT_SETTINGS)]


def setting_named(result: Result, group_by: str) -> str:
    """The setting of a result that `group_by` means, such as `config.depth` by `maple.depth`; "" if it has none."""
    owner, dot, name = group_by.rpartition(".")
    if dot and owner not in (result.spec.method, result.spec.label):
        return ""
    return next((setting for setting in settings_of(result) if _short(setting) == name), "")


def _rows_of(method: str, apart: pd.DataFrame, results: Sequence[Result]) -> list[Row]:
    """The rows of one method, a line of `apart` for each of its runs saying what sets it apart."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for place, values in zip(apart.index, map(tuple, apart.to_numpy()), strict=True):
        groups.setdefault(values, []).append(results[place])
    for of_row in groups.values():
        _refuse_twice(of_row)
    return [
        Row(method, ", ".join(map(_said, apart.columns, values)), tuple(groups[values]))
        for values in sorted(groups, key=lambda values: [_natural(value) for value in values])
    ]


def _settings(runs: pd.DataFrame, along: str) -> pd.DataFrame:
    """All that may differ between runs of one method, as JSON, but dataset, seeds and what runs along the columns."""
    own = [name for name in _OF_SPEC if name != along]
    names = [name for name in runs.columns if name in own or name.startswith(tuple(f"{field}." for field in _OPENED))]
    settings = runs[names].drop(columns=[f"recipe.{name}" for name in NOT_SETTINGS], errors="ignore")
    met = json_frame(runs.reindex(columns=[*_MET, _TRANSFORM]).astype(object))
    unknown = met.isna() | met.isin(['""', "{}"])
    return json_frame(settings).join(met.mask(unknown, "null"))


def _shared(settings: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The settings as they must agree from dataset to dataset: what follows from dataset or recipe is only named so.

    A setting of the recipe is the recipe's own where the result does not say where it came from.
    """
    known: Iterable[Any] = runs.get("conditions.provenance", [{}] * len(runs))
    said = [value if isinstance(value, dict) else {} for value in known]
    origins = pd.DataFrame(said, dtype=object).reindex(index=settings.index, columns=settings.columns).astype(object)
    of_recipe = [name for name in settings.columns if name.startswith("recipe.")]
    unsaid = origins[of_recipe].isna() & settings[of_recipe].notna()
    origins[of_recipe] = origins[of_recipe].mask(unsaid, "recipe")
    origins = origins.where(origins.notna(), "default")
    texts = pd.unique(origins.to_numpy().ravel())
    from_recipe = origins.isin([text for text in texts if text.startswith(("recipe", BY_SHOT))])
    by_default = origins.isin([text for text in texts if text.startswith("default")])
    follows = from_recipe.groupby(runs["kind"]).transform("any") & (from_recipe | by_default)
    of_data = [name for name in settings.columns if name in _BY_DATASET or name.startswith("dataset_options.")]
    return settings.assign(**dict.fromkeys(of_data, BY_DATASET)).mask(follows, BY_RECIPE)


def _telling_apart(
    settings: pd.DataFrame, shared: pd.DataFrame, runs: pd.DataFrame, along: str
) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
    """By the number of a kind the settings that set rows apart: by any difference, or by one of no recipe or dataset.

    The first differ within a dataset, where nothing along the columns does, or are compared with other methods.
    """
    kind, cell = runs["kind"], [runs["dataset"], runs[along] if along else runs["protocol"]]
    drawn = runs["shots"] != 0  # others see no image
    of_samples = _several(settings[drawn], [one[drawn] for one in cell])
    unlike = _named(of_samples.any(), _OF_SAMPLES) | _named(_several(settings, cell).any(), _OF_ALL)
    within = _several(settings, [kind, *cell]).groupby(level=0).any()
    asked_for = [settings[name] for name in _NAMES_FOLLOW if name in settings]  # which already tell rows apart
    within["class_names"] = _several(settings[["class_names"]], [kind, *cell, *asked_for]).groupby(level=0).any()
    across = _several(settings, [kind]) & _several(shared, [kind])
    return (
        {number: _named(within.loc[number], settings.columns) | unlike for number in within.index},
        {number: _named(across.loc[number], settings.columns) for number in across.index},
    )


def _several(settings: pd.DataFrame, by: Sequence[pd.Series]) -> pd.DataFrame:
    """Whether a setting has several values among the runs of a group; to have none is one."""
    return settings.groupby(list(by), sort=False, dropna=False).nunique(dropna=False) > 1


def _named(which: pd.Series, among: Iterable[str]) -> set[str]:
    """Those of some settings that are so."""
    return {name for name in among if which.get(name, False)}


def _refuse_twice(results: Iterable[Result]) -> None:
    seen: dict[str, Result] = {}
    for result in results:
        other = seen.setdefault(result.name, result)
        if other is not result:
            raise UsageError(
                f"The run {result.name} is there twice, made at {other.created} and at {result.created}; "
                "give the table only one of the two files."
            )


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _said(name: str, value: str) -> str:
    if value in (BY_RECIPE, BY_DATASET):
        return f"{_short(name)} {value}"
    text = value[1:-1] if value.startswith('"') else value
    if value == "null" or (name, text) in (("corruption", ""), ("limit", "0")):
        text = "none"
    digest = hashlib.sha256(text.encode()).hexdigest()
    if name.startswith(_SCORES) and text != "none":  # settings, which a digest tells apart
        text = digest[:8]
    elif len(text) > 24:  # lists and mappings, such as class names, often begin alike
        text = f"#{digest[:8]}" if text.startswith(("[", "{")) else f"{text[:8]}..."
    return f"{_short(name)}={text}"


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def build_tables(
    results: Iterable[Result],
    layout: TableLayout,
    *,
    notes: Mapping[str, str] | None = None,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    ranked: Collection[str] = (),
    group_by: str = "",
) -> list[Table]:
    """One table per suite and backbone.

    Args:
        results: Of one protocol.
        layout: The protocol's.
        notes: A sentence to put under the table, by suite.
        methods: Their order; others follow by name.
        datasets: Their order; others follow by name.
        ranked: The suites whose best figures may be shown as such.
        group_by: A setting whose values set rows apart, as `rows` takes it; "" for none.

    Raises:
        UsageError: If there are no results, or of several protocols, or the same run twice, or none with the
            setting.
    """
    everything = list(results)
    by_table: dict[tuple[str, str, str], list[Result]] = {}
    for result in everything:
        source = "" if layout.protocol.blocks_are == "dataset" else result.spec.dataset
        by_table.setdefault((result.spec.suite, result.spec.backbone, source), []).append(result)
    protocols = sorted({result.spec.protocol for result in everything})
    if not protocols:
        raise UsageError("There are no results to make a table of; make some with `promptbench run`.")
    if len(protocols) > 1:
        raise UsageError(f"A table shows one protocol, not {' and '.join(protocols)}; choose one with --protocol.")
    if group_by and not any(setting_named(result, group_by) for result in everything):
        raise _unknown_setting(group_by, everything)
    tables = []
    for suite, backbone, source in sorted(by_table):
        said = ([APART] if len(by_table) > 1 else []) + ([notes[suite]] if notes and notes.get(suite) else [])
        of = rows(by_table[suite, backbone, source], methods, layout.protocol.along, group_by)
        table = _table(of, layout, said, datasets)
        subject = ", ".join(filter(None, (layout.subject, table.title(source))))
        tables.append(replace(table, subject=subject, ranked=suite in ranked))
    return tables


def _unknown_setting(group_by: str, results: Iterable[Result]) -> UsageError:
    known = set()
    for result in results:
        owner = f"{result.spec.label}." if "." in group_by else ""
        known |= {f"{owner}{_short(name)}" for name in settings_of(result)}
    return unknown("setting", group_by, known)


def _table(of: Sequence[Row], layout: TableLayout, notes: Sequence[str], datasets: Sequence[str]) -> Table:
    protocol = layout.protocol
    results = [result for row in of for result in row.results]
    columns = tuple(layout.columns(results))
    derived = {column.key for column in columns if column.derived}
    sheets = [_sheet(row, layout, derived) for row in of]
    order = {name: place for place, name in reversed(list(enumerate(datasets)))}
    seen = dict.fromkeys(block for sheet in sheets for block in sheet)
    blocks = sorted(seen, key=lambda name: (order.get(name, len(order)), name)) if protocol.averaged else list(seen)
    lines = tuple(_Lines(of, sheets, blocks, protocol).of(columns))
    columns = _filled(columns, lines)
    first = results[0].spec
    titles = dataset_titles(results)
    trained = {result.spec.shots for result in results if result.spec.shots != 0} or {0}
    return Table(
        suite=first.suite,
        backbone=first.backbone,
        protocol=first.protocol,
        shots=by_size(trained),
        seeds=tuple(sorted({result.spec.seeds for result in results})),
        columns=columns,
        blocks_are=protocol.blocks_are,
        subject=layout.subject,
        averaged=protocol.averaged,
        ranked=False,
        rows=tuple(of),
        lines=lines,
        remarks=(*_remarks(of, sheets, blocks, columns, protocol, titles), *_helps(columns), *notes),
        titles=titles,
    )


class _Part(NamedTuple):
    """What a result gives to a block of the table, without what a table derives itself."""

    result: Result
    numbers: Numbers
    notes: Mapping[str, str]


Sheet = Mapping[str, Sequence[_Part]]  # of a row, by block


def _sheet(row: Row, layout: TableLayout, derived: Collection[str]) -> Sheet:
    parts: dict[str, list[_Part]] = {}
    for result in row.results:
        notes = layout.notes(result)
        for block, numbers in layout.blocks(result).items():
            measured = {key: value for key, value in numbers.items() if key not in derived}
            parts.setdefault(block, []).append(_Part(result, measured, notes.get(block, {})))
    return parts


def _seeds(parts: Iterable[_Part]) -> tuple[Seed, ...]:
    return tuple(dict.fromkeys(part.result.spec.seeds for part in parts))


def _figures(sheets: Sequence[Sheet]) -> pd.DataFrame:
    """A line per row, block and seed, a column per key; NaN where the results do not have the figure."""
    numbers: dict[tuple[object, ...], dict[str, float]] = {}
    for row, sheet in enumerate(sheets):
        for block, parts in sheet.items():
            for part in parts:
                numbers.setdefault((row, block, *part.result.spec.seeds), {}).update(part.numbers)
    names = ["row", "block", "data_seed", "train_seed"]
    return pd.DataFrame(list(numbers.values()), index=pd.MultiIndex.from_tuples(numbers, names=names), dtype=float)


def _quantities(
    figures: pd.DataFrame, derived: Callable[[pd.DataFrame], pd.DataFrame], blocks: int
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """What lines of a kind show, and the same seed by seed, as the module says."""
    places = figures.index.to_frame(index=False)
    of_row = figures[(places.groupby("row")["block"].transform("nunique") == blocks).to_numpy()]
    of_seed = figures[(places.groupby(["row", *SEEDS])["block"].transform("size") == blocks).to_numpy()]
    return {
        "block": (derived(_mean(figures, SEEDS)), derived(figures)),
        "average": (derived(_mean(_mean(of_row, SEEDS), ["block"])), derived(_mean(of_seed, ["block"]))),
        "mean": (_mean(derived(_mean(of_row, SEEDS)), ["block"]), _mean(derived(of_seed), ["block"])),
    }


def _mean(figures: pd.DataFrame, over: Collection[str]) -> pd.DataFrame:
    """The mean over levels of the index; none of a figure that is not everywhere."""
    kept = [figures.index.get_level_values(name) for name in map(str, figures.index.names) if name not in over]
    groups = figures.groupby(kept, sort=False)
    number = groups.ngroup().to_numpy()
    ordered = figures.to_numpy()[number.argsort(kind="stable")]
    parts = np.split(ordered, np.bincount(number).cumsum()[:-1])  # many times faster than `agg`
    means = [[fmean(values) for values in part.T.tolist()] for part in parts if len(part)]
    return pd.DataFrame(means, index=groups.size().index, columns=figures.columns, dtype=float)


def _known(figures: pd.DataFrame) -> dict[tuple[Any, ...], float]:
    """The figures that are there, by place and key."""
    found = {}
    places = figures.index.to_frame().itertuples(index=False, name=None)
    for place, numbers in zip(places, figures.to_dict("records"), strict=True):
        found.update({(*place, key): value for key, value in numbers.items() if value == value})
    return found


class _Lines:
    """The lines of a table: every block with its rows, then the averages."""

    def __init__(self, rows: Sequence[Row], sheets: Sequence[Sheet], blocks: Sequence[str], protocol: Protocol) -> None:
        self.rows, self.sheets, self.blocks, self.protocol = rows, sheets, blocks, protocol
        self.shown: dict[str, dict[tuple[Any, ...], float]] = {}
        self.by_seed: dict[str, dict[tuple[Any, ...], dict[Seed, float]]] = {}
        for kind, (shown, by_seed) in _quantities(_figures(sheets), self.derived, len(blocks)).items():
            self.shown[kind] = _known(shown)
            self.by_seed[kind] = defaultdict(dict)
            for (*place, data_seed, train_seed, key), value in _known(by_seed).items():
                where = (*place, key)
                self.by_seed[kind][where][data_seed, train_seed] = value

    def derived(self, figures: pd.DataFrame) -> pd.DataFrame:
        """The figures with those that a protocol derives from them, each line for itself."""
        records: list[dict[Any, float]] = figures.to_dict("records")
        known = [{key: value for key, value in record.items() if value == value} for record in records]
        return pd.DataFrame([self.protocol.summarize(numbers) for numbers in known], index=figures.index, dtype=float)

    def of(self, columns: Sequence[Column]) -> Iterator[Line]:
        """All of them, in order."""
        numbers = range(len(self.rows))
        for block in self.blocks:
            yield from (self.line("block", block, n, [block], columns) for n in numbers if block in self.sheets[n])
        if len(self.blocks) < 2 or not self.protocol.averaged:
            return
        yield from (self.line("average", "average", n, self.blocks, columns) for n in numbers)
        for column in columns:
            if column.derived:
                group = f"mean of per-{self.protocol.blocks_are} {column.title}"
                yield from (self.line("mean", group, n, self.blocks, [column]) for n in numbers)

    def line(self, kind: str, group: str, number: int, blocks: Sequence[str], columns: Sequence[Column]) -> Line:
        """A row over some blocks, or over those of them that it has."""
        sheet = self.sheets[number]
        seeds = {len(_seeds(sheet[block])) for block in blocks if block in sheet}
        parts = [part for block in blocks for part in sheet.get(block, ())]
        cells = {column.key: self.cell(kind, number, blocks, column, parts, seeds) for column in columns}
        results = {part.result.name: part.result for part in parts}
        n = "-".join(str(count) for count in sorted({min(seeds), max(seeds)}))
        return Line(kind, group, self.rows[number], tuple(results.values()), n, cells)

    def cell(
        self, kind: str, number: int, blocks: Sequence[str], column: Column, parts: Sequence[_Part], seeds: set[int]
    ) -> Cell:
        """A figure of a row; `seeds` are how many the blocks have."""
        place = (number, *(blocks if kind == "block" else ()), column.key)
        values = self.by_seed[kind].get(place, {})
        mean = self.shown[kind].get(place)
        if mean is not None:
            spread = population_std(values.values()) if seeds == {len(values)} and len(values) > 1 else None
            cell = Cell(mean=mean, std=spread)
        elif kind == "block":
            cell = _gap(len(values), max(seeds), "seeds", parts, column)
        else:
            has = sum((number, block, column.key) in self.shown["block"] for block in blocks)
            cell = _gap(has, len(blocks), f"{self.protocol.blocks_are}s", parts, column)
        far = outliers(values) if kind == "block" and not column.derived else ()
        runs = _behind(parts, column) if values or mean is not None else ()
        return replace(cell, values=values, outliers=far, runs=runs)


def _behind(parts: Iterable[_Part], column: Column) -> tuple[str, ...]:
    """Names of the runs that a figure is made of."""
    names = [part.result.name for part in parts if (part.numbers if column.derived else column.key in part.numbers)]
    return tuple(dict.fromkeys(names))


def _gap(has: int, of: int, what: str, parts: Iterable[_Part], column: Column) -> Cell:
    """An empty cell: how much of it there is, and why not all, as far as the results say."""
    said = [note for part in parts for note in part.notes.items()]
    reasons = [reason for key, reason in said if key == column.key or (key[-1:] == "/" and column.key.startswith(key))]
    if (column.derived or column.key.startswith("average/")) and not reasons:
        reasons = [reason for _, reason in said]
    return Cell(gap=f"n/a ({has} of {of} {what})" if has else "–", reason=reasons[0] if reasons else "")


def outliers(values: Mapping[Seed, float]) -> tuple[Seed, ...]:
    """The seeds whose figure, in percent, lies far from the others', as the module says."""
    if len(values) < 3:
        return ()
    middle = median(values.values())
    sigma = SIGMA_OF_MAD * median(abs(value - middle) for value in values.values())
    points = OUTLIER_POINTS_OF_FEW if len(values) < 5 else OUTLIER_POINTS
    limit = max(points, OUTLIER_SIGMAS * sigma)
    return tuple(seed for seed, value in values.items() if abs(value - middle) > limit)


def _filled(columns: Sequence[Column], lines: Sequence[Line]) -> tuple[Column, ...]:
    """The columns that any line has a figure for, or a reason why not: older results lack younger metrics."""
    cells = {column.key: [line.cells[column.key] for line in lines if column.key in line.cells] for column in columns}
    kept = [column for column in columns if any(cell.values or cell.reason for cell in cells[column.key])]
    return tuple(kept or columns)


def _helps(columns: Sequence[Column]) -> list[str]:
    """What figures are whose names do not say it."""
    return [sentence for sentence in dict.fromkeys(column.help for column in columns) if sentence]


def _data_remarks(results: Sequence[Result], titles: Mapping[str, str]) -> Iterator[str]:
    """Splits that are not the papers', and images that were left out, limited or corrupted."""
    made = [result for result in results if str(result.conditions.get("split_source", "")).startswith("generated")]
    generated = {titles[result.spec.dataset] for result in made}
    skipped = {titles[result.spec.dataset] for result in results if result.conditions.get("skipped")}
    corrupted = dict.fromkeys(result.spec.corruption for result in results if result.spec.corruption)
    if generated:
        yield f"Split generated for want of a split file, so not the papers': {', '.join(sorted(generated))}."
    if skipped:
        yield f"Unreadable images were left out in runs on {', '.join(sorted(skipped))}."
    limits = sorted({result.spec.limit for result in results} - {0})
    if limits:
        most = " or ".join(map(str, limits))
        where = "" if all(result.spec.limit for result in results) else " in rows that say so"
        yield f"A quick look (--limit): at most {most} test images of each dataset were scored{where}, not all of them."
    if corrupted:
        said = "; ".join(map(corruption_text, corrupted))
        yield f"Test images are corrupted here, and are not ImageNet-C's files: {said}."


def corruption_text(corruption: str) -> str:
    """The corruptions of a spec, `fog:3 contrast:3`, with the severities said once where all kinds have the same."""
    severities: dict[str, list[str]] = {}
    for one in corruption.split():
        kind, _, severity = one.partition(":")
        severities.setdefault(kind, []).append(severity)
    if len(set(map(tuple, severities.values()))) > 1:
        return corruption
    (same,) = set(map(tuple, severities.values()))
    return f"{', '.join(severities)} at severity {', '.join(same)}"


def _remarks(
    rows: Sequence[Row],
    sheets: Sequence[Sheet],
    blocks: Sequence[str],
    columns: Sequence[Column],
    protocol: Protocol,
    titles: Mapping[str, str],
) -> Iterator[str]:
    """What a reader has to know of spreads and averages."""
    seeds = [{block: _seeds(parts) for block, parts in sheet.items()} for sheet in sheets]
    if any(len(of_block) > 1 for of_row in seeds for of_block in of_row.values()):
        yield SPREAD
    if any(row.from_dataset for row in rows):
        yield STARTED
    yield from _data_remarks(list(chain.from_iterable(row.results for row in rows)), titles)
    if len(blocks) < 2 or not protocol.averaged:
        return
    for column in columns:
        if column.derived:
            apart = f"{MEANS_APART}{protocol.blocks_are} {column.title} stands apart."
            yield f"Average {column.title} is computed from the averages beside it{apart}"
    for row, of_row in zip(rows, seeds, strict=True):
        missing = [titles.get(block, block) for block in blocks if block not in of_row]
        if missing:
            yield f"{row.label} has no results on {', '.join(missing)}, so no average."
        elif len(set(of_row.values())) > 1:
            where = f"some {protocol.blocks_are}s than on others"
            yield f"{row.label} has other seeds on {where}, so its averages have no ±."
