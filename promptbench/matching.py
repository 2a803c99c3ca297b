"""Which runs of two sets of results belong together, and what differs between them besides their numbers.

Runs of one protocol, dataset, method and number of shots are compared seed by seed. Among several configurations equal
ones go together first, then those that differ in the fewest settings.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from promptbench.config import UsageError
from promptbench.results import DATA_MET, Result
from promptbench.spec import Spec

Seed = tuple[int, int]  # data seed, training seed
Place = tuple[str, str, str, str]  # protocol, dataset, label, shots

_OF_PLACE = ("protocol", "dataset", "method", "preset", "shots", "data_seed", "train_seed")
_CONDITIONS = ("weights_hash", *DATA_MET, "transform")
_LONGEST = 24  # characters of a value shown


@dataclass(frozen=True)
class Pair:
    """The runs of one method and configuration on both sides.

    Attributes:
        place: Protocol, dataset, method and shots.
        a: Runs by seed.
        b: Runs by the same seeds.
        settings: Of A.
        differs: Settings, conditions, versions and commit in which they differ, as `before → after`.
    """

    place: Place
    a: Mapping[Seed, Result]
    b: Mapping[Seed, Result]
    settings: Mapping[str, str]
    differs: Mapping[str, str]


@dataclass(frozen=True)
class Matched:
    """Pairs of runs, and the runs that have no counterpart."""

    pairs: tuple[Pair, ...]
    only_a: tuple[Result, ...]
    only_b: tuple[Result, ...]


@dataclass(frozen=True)
class _Group:
    """Runs that differ in their seeds alone."""

    place: Place
    settings: Mapping[str, str]
    runs: Mapping[Seed, Result]


def match(a: Iterable[Result], b: Iterable[Result]) -> Matched:
    """The runs of both sides, paired.

    Raises:
        UsageError: If a side holds a run twice, with different numbers.
    """
    sides = _groups(a), _groups(b)
    pairs, only_a, only_b = [], [], []
    for place in sorted({*sides[0], *sides[1]}):
        left, right = (side.get(place, []) for side in sides)
        for one, other in _together(left, right):
            seeds = sorted({*one.runs} & {*other.runs})
            if seeds:
                before, after = ({seed: side.runs[seed] for seed in seeds} for side in (one, other))
                differs = differences(one.settings, other.settings, before, after)
                pairs.append(Pair(place, before, after, one.settings, differs))
            only_a += [run for seed, run in one.runs.items() if seed not in seeds]
            only_b += [run for seed, run in other.runs.items() if seed not in seeds]
        only_a += [run for group in left for run in group.runs.values()]
        only_b += [run for group in right for run in group.runs.values()]
    return Matched(tuple(pairs), tuple(only_a), tuple(only_b))


def differences(
    left: Mapping[str, str], right: Mapping[str, str], a: Mapping[Seed, Result], b: Mapping[Seed, Result]
) -> dict[str, str]:
    """What differs, by name: settings first, then conditions, versions and commit."""
    found = {name: f"{_short(left.get(name))} → {_short(right.get(name))}" for name in _unequal(left, right)}
    by_name: dict[str, list[str]] = defaultdict(list)
    for seed in a:
        before, after = _conditions(a[seed]), _conditions(b[seed])
        for name in _unequal(before, after):
            by_name[name].append(f"{_short(before.get(name))} → {_short(after.get(name))}")
    return found | {name: said[0] if len(set(said)) == 1 else "differs seed by seed" for name, said in by_name.items()}


def _groups(results: Iterable[Result]) -> dict[Place, list[_Group]]:
    """The runs of a side by place and settings."""
    found: dict[Place, dict[str, _Group]] = defaultdict(dict)
    settings: dict[str, dict[str, str]] = {}
    for result in results:
        spec = result.spec
        key = _ENCODE([spec.suite, spec.plugin, spec.config, spec.recipe, spec.sampler, spec.backbone, spec.precision])
        key += _ENCODE([spec.threads, spec.device, spec.dataset_options, spec.evaluated, spec.trained_by])
        key += _ENCODE([spec.deterministic])
        if key not in settings:
            settings[key] = _settings(spec)
        place = spec.protocol, spec.dataset, spec.label, str(spec.shots)
        group = found[place].setdefault(key, _Group(place, settings[key], {}))
        other = group.runs.get(spec.seeds)
        if other is not None and other.metrics != result.metrics:
            raise UsageError(
                f"The run {result.name} is there twice on one side, made at {other.created} and at {result.created}, "
                "with different metrics; name a folder that holds it once."
            )
        assert isinstance(group.runs, dict)
        group.runs.setdefault(spec.seeds, result)
    return {
        place: sorted(groups.values(), key=lambda group: list(group.settings.values()))
        for place, groups in found.items()
    }


def _together(left: list[_Group], right: list[_Group]) -> Iterator[tuple[_Group, _Group]]:
    """Groups that are compared, taken out of both lists: those with the fewest differences first."""
    ranked = sorted(
        (
            (len(_unequal(one.settings, other.settings)), i, j)
            for i, one in enumerate(left)
            for j, other in enumerate(right)
        )
    )
    taken: list[tuple[int, int]] = []
    for _, i, j in ranked:
        if all(i != one and j != other for one, other in taken):
            taken.append((i, j))
    pairs = [(left[i], right[j]) for i, j in taken]
    left[:] = [group for i, group in enumerate(left) if i not in {one for one, _ in taken}]
    right[:] = [group for j, group in enumerate(right) if j not in {other for _, other in taken}]
    return iter(pairs)


def _settings(spec: Spec) -> dict[str, str]:
    facts = {item.name: getattr(spec, item.name) for item in fields(spec) if item.name not in _OF_PLACE}
    return _flat(facts)


def _conditions(result: Result) -> dict[str, str]:
    known = {name: result.conditions[name] for name in _CONDITIONS if name in result.conditions}
    return _flat({**known, "versions": dict(result.versions), "commit": result.commit})


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """The JSON of each value, those within a mapping by `outer.inner`."""
    found: dict[str, str] = {}
    for name, value in facts.items():
        inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
        found |= {key: _ENCODE(item) for key, item in inner.items()}
    return found


def _unequal(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]


def told_apart(pairs: Iterable[Pair]) -> list[str]:
    """What to say behind the method of each pair, where several pairs of one place differ in their settings."""
    pairs = list(pairs)
    by_place: dict[Place, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_place[pair.place].append(pair)
    said = []
    for pair in pairs:
        others = by_place[pair.place]
        names = dict.fromkeys(name for other in others for name in _unequal(pair.settings, other.settings))
        said.append(", ".join(f"{name.rpartition('.')[2]}={_short(pair.settings.get(name))}" for name in names))
    return said


def _short(value: str | None) -> str:
    text = "none" if value in (None, "null", '""') else value.strip('"') if value else ""
    return text if len(text) <= _LONGEST else text[:12] + "..."


_ENCODE = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
