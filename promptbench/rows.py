"""Which results may stand in one row of a table: those of one method under one configuration.

Within a dataset, results of one row agree in every setting; only their seeds differ. From dataset to dataset they agree
in everything but what the method's own recipes say per dataset (200 epochs here, 50 there). Where results of one method
disagree, they become several rows, and the settings that set them apart stand behind the method's name. So do shots,
sampler, precision, weights and split file where methods differ in them: what is compared is said. A setting may be
asked for besides: then every value of it has a row of its own, and says so even where it is the only one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from promptbench.config import UsageError
from promptbench.results import Result

Seed = tuple[int, int]  # data seed, training seed
Facts = dict[str, str]  # setting to the JSON of its value

NOT_SETTINGS = ("origin", "overrides", "source")
BY_RECIPE = "by recipe"
BY_DATASET = "by dataset"

_ENCODE = json.JSONEncoder(sort_keys=True).encode
_DATA = ("split_digest", "class_names", "templates", "transform")
_BY_DATASET = (*_DATA, "evaluated", "threads")  # a source leaves itself out of `evaluated`; machines have other cores
_MACHINE = ("precision", "threads", "device", "deterministic")
_OF_SPEC = ("plugin", "shots", "sampler", *_MACHINE, "evaluated", "trained_by")
_OF_SAMPLES = {"shots", "sampler"}
_OF_ALL = {"precision", "weights_hash", "split_digest"}  # what is compared must agree in these


@dataclass(frozen=True)
class Row:
    """The results of one method and configuration.

    Attributes:
        method: As typed on the command line.
        apart: What tells this row from others of the method, such as `n_ctx=16, epochs by recipe`; "" for an only row.
        runs: The results by dataset and seed; several of one seed differ in what runs along the table's columns.
    """

    method: str
    apart: str
    runs: Mapping[str, Mapping[Seed, tuple[Result, ...]]]

    @cached_property
    def results(self) -> list[Result]:
        """All of them, dataset by dataset."""
        return [result for of_dataset in self.runs.values() for of_seed in of_dataset.values() for result in of_seed]

    @cached_property
    def reconstructed(self) -> bool:
        """Whether the method was rebuilt without its authors' code."""
        return any(result.conditions.get("reconstructed") for result in self.results)

    @cached_property
    def label(self) -> str:
        """What the table calls the row."""
        name, at, preset = self.method.partition("@")
        title = next((str(title) for result in self.results if (title := result.conditions.get("title"))), name)
        trained = sorted({result.spec.trained_by for result in self.results} - {""})
        said = [*([self.apart] if self.apart else []), *(f"trained by {protocol}" for protocol in trained)]
        return f"{title}{at}{preset} ({', '.join(said)})" if said else f"{title}{at}{preset}"


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
    by_method: dict[str, list[_Run]] = defaultdict(list)
    runs = [_Run(result, getattr(result.spec, along, None), _settings(result, along)) for result in results]
    for run in runs:
        by_method[run.result.spec.label].append(run)
    drawn = [run for run in runs if run.result.spec.shots != 0]  # others see no image
    unlike = (_within_datasets(drawn) & _OF_SAMPLES) | (_within_datasets(runs) & _OF_ALL)
    asked = {run.result.spec.label: name for run in runs if group_by and (name := setting_named(run.result, group_by))}
    order = {method: place for place, method in reversed(list(enumerate(methods)))}
    labels = sorted(by_method, key=lambda label: (order.get(label, len(order)), label))
    return [row for label in labels for row in _rows_of(label, by_method[label], unlike, asked.get(label, ""))]


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


class _Run(NamedTuple):
    result: Result
    along: object
    settings: Facts


def _rows_of(method: str, runs: Sequence[_Run], unlike: set[str], asked: str) -> list[Row]:
    """The rows of one method, told apart by the settings it differs in and by those that set methods apart."""
    shared = _shared(runs)
    exact = _within_datasets(runs) | unlike | ({asked} - {""})
    differing = exact | (_differing(shared) & _differing([run.settings for run in runs]))
    apart = sorted(differing, key=lambda name: (name != asked, _short(name)))
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for run, of_row in zip(runs, shared, strict=True):
        values = tuple((run.settings if name in exact else of_row).get(name, "null") for name in apart)
        groups[values].append(run.result)
    return [
        Row(method, ", ".join(map(_said, apart, values)), _by_dataset_and_seed(groups[values]))
        for values in sorted(groups, key=lambda values: [_natural(value) for value in values])
    ]


def _within_datasets(runs: Iterable[_Run]) -> set[str]:
    """The settings in which runs on the same dataset differ, where nothing along the columns does."""
    by_cell: dict[tuple[str, object], list[Facts]] = defaultdict(list)
    for run in runs:
        by_cell[run.result.spec.dataset, run.along].append(run.settings)
    return set().union(*map(_differing, by_cell.values()))


def _settings(result: Result, along: str) -> Facts:
    """Everything but dataset, seeds and what runs along the columns that may differ between runs of one method."""
    spec, conditions = result.spec, result.conditions
    facts = {name: getattr(spec, name) for name in _OF_SPEC if name != along}
    facts |= {name: conditions.get(name) for name in ("weights_hash", *_DATA)}
    facts |= {f"config.{name}": value for name, value in spec.config.items()}
    facts |= {f"recipe.{name}": value for name, value in spec.recipe.items() if name not in NOT_SETTINGS}
    facts |= {f"dataset_options.{name}": value for name, value in spec.dataset_options.items()}
    return {name: _json(value) for name, value in facts.items()}


def _json(value: Any) -> str:
    try:
        if isinstance(value, dict):  # 1, 1.0 and true are equal, and so are tuples of them
            return _json_of_items(tuple((name, type(item), item) for name, item in value.items()))
        return _json_of_scalar(value)
    except TypeError:  # a list, or a mapping that holds one
        return _ENCODE(value)


@lru_cache(maxsize=1 << 16, typed=True)
def _json_of_scalar(value: Any) -> str:
    """Thousands of results share a few values."""
    return _ENCODE(value)


@lru_cache(maxsize=1 << 16)
def _json_of_items(items: tuple[tuple[str, type, Any], ...]) -> str:
    return _ENCODE({name: item for name, _, item in items})


def _shared(runs: Sequence[_Run]) -> list[Facts]:
    """The settings as they must agree from dataset to dataset: what follows from dataset or recipe is only named so."""
    sources = [_sources(run) for run in runs]
    from_recipes = {name for source in sources for name, origin in source.items() if origin.startswith("recipe")}
    of_data = {
        name for run in runs for name in run.settings if name in _BY_DATASET or name.startswith("dataset_options.")
    }
    shared = []
    for run, source in zip(runs, sources, strict=True):
        follows = {name for name in from_recipes if source.get(name, "default").startswith(("recipe", "default"))}
        shared.append({**run.settings, **dict.fromkeys(of_data, BY_DATASET), **dict.fromkeys(follows, BY_RECIPE)})
    return shared


def _sources(run: _Run) -> dict[str, str]:
    """Where each setting came from; a recipe's where the result does not say."""
    said = run.result.conditions.get("provenance")
    return {name: "recipe" for name in run.settings if name.startswith("recipe.")} | (
        said if isinstance(said, dict) else {}
    )


def _differing(facts: Sequence[Facts]) -> set[str]:
    """The settings that do not have one value everywhere."""
    names = {name for item in facts for name in item}
    return {name for name in names if len({item.get(name) for item in facts}) > 1}


def _by_dataset_and_seed(results: Iterable[Result]) -> dict[str, dict[Seed, tuple[Result, ...]]]:
    runs: dict[str, dict[Seed, tuple[Result, ...]]] = defaultdict(dict)
    seen: dict[str, Result] = {}
    for result in sorted(results, key=lambda result: (result.spec.dataset, result.spec.seeds, result.name)):
        other = seen.setdefault(result.name, result)
        if other is not result:
            raise UsageError(
                f"The run {result.name} is there twice, made at {other.created} and at {result.created}; "
                "give the table only one of the two files."
            )
        of_dataset = runs[result.spec.dataset]
        of_dataset[result.spec.seeds] = (*of_dataset.get(result.spec.seeds, ()), result)
    return dict(runs)


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _said(name: str, value: str) -> str:
    if value in (BY_RECIPE, BY_DATASET):
        return f"{_short(name)} {value}"
    text = "none" if value == "null" else value[1:-1] if value.startswith('"') else value
    return f"{_short(name)}={text if len(text) <= 24 else text[:8] + '...'}"


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value
