"""Which results may stand in one row of a table: those of one method under one configuration.

Within a dataset, results of one row agree in every setting; only their seeds differ. From dataset to dataset they agree
in everything but what the method's own recipes say per dataset (200 epochs here, 50 there). Where results of one method
disagree, they become several rows, and the settings that set them apart stand behind the method's name.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from promptbench.config import UsageError
from promptbench.results import Result

Seed = tuple[int, int]  # data seed, training seed
Facts = dict[str, str]  # setting to the JSON of its value

NOT_SETTINGS = ("origin", "overrides", "source")
BY_RECIPE = "by recipe"
BY_DATASET = "by dataset"

_JSON = json.JSONEncoder(sort_keys=True).encode
_DATA = ("split_digest", "class_names", "templates")


@dataclass(frozen=True)
class Row:
    """The results of one method and configuration.

    Attributes:
        method: As typed on the command line.
        apart: What tells this row from others of the method, such as `n_ctx=16, epochs by recipe`; "" for an only row.
        runs: The results by dataset and seed.
    """

    method: str
    apart: str
    runs: Mapping[str, Mapping[Seed, Result]]

    @property
    def label(self) -> str:
        return f"{self.method} ({self.apart})" if self.apart else self.method


def rows(results: Iterable[Result], methods: Sequence[str] = ()) -> list[Row]:
    """The rows of a table, the methods named first in that order, the others after them by name.

    Raises:
        UsageError: If a run is there twice.
    """
    by_method: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_method[result.spec.label].append(result)
    order = {method: place for place, method in reversed(list(enumerate(methods)))}
    labels = sorted(by_method, key=lambda label: (order.get(label, len(order)), label))
    return [row for label in labels for row in _rows_of(label, by_method[label])]


def _rows_of(method: str, results: Sequence[Result]) -> list[Row]:
    own = [_settings(result) for result in results]
    shared = _shared(results, own)
    by_dataset: dict[str, list[Facts]] = defaultdict(list)
    for result, facts in zip(results, own, strict=True):
        by_dataset[result.spec.dataset].append(facts)
    within = set().union(*map(_differing, by_dataset.values()))
    apart = sorted(within | (_differing(shared) & _differing(own)), key=_short)
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result, mine, ours in zip(results, own, shared, strict=True):
        groups[tuple((mine if name in within else ours).get(name, "null") for name in apart)].append(result)
    return [
        Row(method, ", ".join(map(_said, apart, values)), _by_dataset_and_seed(groups[values]))
        for values in sorted(groups, key=lambda values: [_natural(value) for value in values])
    ]


def _settings(result: Result) -> Facts:
    """Everything but dataset and seeds that may differ between runs of one method."""
    spec, conditions = result.spec, result.conditions
    facts = {name: getattr(spec, name) for name in ("shots", "sampler", "precision", "threads", "device")}
    facts |= {name: conditions.get(name) for name in ("weights_hash", "transform", *_DATA)}
    facts |= {f"config.{name}": value for name, value in spec.config.items()}
    facts |= {f"recipe.{name}": value for name, value in spec.recipe.items() if name not in NOT_SETTINGS}
    facts |= {f"dataset_options.{name}": value for name, value in spec.dataset_options.items()}
    return {name: _JSON(value) for name, value in facts.items()}


def _shared(results: Sequence[Result], settings: Sequence[Facts]) -> list[Facts]:
    """The settings as they must agree from dataset to dataset: what follows from dataset or recipe is only named so."""
    sources = [_sources(result, facts) for result, facts in zip(results, settings, strict=True)]
    from_recipes = {name for source in sources for name, origin in source.items() if origin.startswith("recipe")}
    shared = []
    for facts, source in zip(settings, sources, strict=True):
        follows = {name for name in from_recipes if source.get(name, "default").startswith(("recipe", "default"))}
        of_data = {name for name in facts if name in _DATA or name.startswith("dataset_options.")}
        shared.append({**facts, **dict.fromkeys(of_data, BY_DATASET), **dict.fromkeys(follows, BY_RECIPE)})
    return shared


def _sources(result: Result, facts: Facts) -> dict[str, str]:
    """Where each setting came from; a recipe's where the result does not say."""
    said = result.conditions.get("provenance")
    return {name: "recipe" for name in facts if name.startswith("recipe.")} | (said if isinstance(said, dict) else {})


def _differing(facts: Sequence[Facts]) -> set[str]:
    """The settings that do not have one value everywhere."""
    names = {name for item in facts for name in item}
    return {name for name in names if len({item.get(name) for item in facts}) > 1}


def _by_dataset_and_seed(results: Iterable[Result]) -> dict[str, dict[Seed, Result]]:
    runs: dict[str, dict[Seed, Result]] = defaultdict(dict)
    for result in sorted(results, key=lambda result: (result.spec.dataset, result.spec.seeds)):
        other = runs[result.spec.dataset].setdefault(result.spec.seeds, result)
        if other is not result:
            raise UsageError(
                f"The run {result.name} is there twice, made at {other.created} and at {result.created}; "
                "give the table only one of the two files."
            )
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
