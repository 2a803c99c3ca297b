"""What changed between two sets of results: figures of the protocols' tables, with intervals of the differences.

Figures are means over the seeds that both sides have, and what protocols derive from these, as tables show them. The
interval of a difference is a 95 % percentile one of a paired bootstrap: over images where both sides have stored what
they said of the same ones, else over seeds where they share three or more.

Runs of one protocol, dataset, method and number of shots are compared seed by seed. Among several configurations equal
ones go together first, then those that differ in the fewest settings.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench import registry
from promptbench.config import UsageError, unknown
from promptbench.protocol import Column, Protocol
from promptbench.results.result import DATA_MET, Result, find_predictions, read_results
from promptbench.results.spec import SEED, Spec, fields_of

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

Seed = tuple[int, int]  # data seed, training seed
Figures = Mapping[str, Mapping[str, float]]  # block, to column key, to figure

SAME = 1e-9  # points; sums of the same numbers in another order differ by less
ROUNDING = 1e-5  # of losses, on processors of another make
LEAST_SEEDS = 3

Place = tuple[str, str, str, str]  # protocol, dataset, label, shots

_OF_PLACE = ("protocol", "dataset", "method", "preset", "shots")  # with seeds: what is compared with what
_ASKED = [item for item in fields_of(Spec) if not item.metadata["renews"] or item.name == "plugin"]
_SETTINGS = tuple(item.name for item in _ASKED if item.metadata["role"] != SEED and item.name not in _OF_PLACE)
_MADE_OF = tuple(item.name for item in fields_of(Spec) if item not in _ASKED)
_CONDITIONS = (*DATA_MET, "transform")
_LONGEST = 24  # characters of a value shown
_ENCODE = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


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


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure that differs.

    Attributes:
        protocol: Its name.
        dataset: The block of the protocol's table, behind the dataset where blocks are something else.
        method: Label, and the settings that tell it from other runs of the method.
        key: Of the column.
        title: Of the column.
        a: Percent; None where this side lacks the figure.
        b: The same.
        interval: Of B minus A, in points.
        over: What was resampled: `images`, `seeds` or "".
        why: Why there is no interval, or not one over images.
        seeds: Those averaged over.
        differs: What differs between the runs besides numbers.
    """

    protocol: str
    dataset: str
    method: str
    key: str
    title: str
    a: float | None
    b: float | None
    interval: tuple[float, float] | None = None
    over: str = ""
    why: str = ""
    seeds: tuple[Seed, ...] = ()
    differs: Mapping[str, str]

    @property
    def difference(self) -> float | None:
        """B minus A, in points."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """The figures that differ, how many do not, and what the sides do not share."""

    cells: tuple[Cell, ...]
    unchanged: int
    matched: Matched

    @property
    def same(self) -> bool:
        """Whether both sides hold the same runs with the same figures."""
        return not (self.cells or self.matched.only_a or self.matched.only_b)


def compare(a: Path | str, b: Path | str, protocols: Iterable[str] = ()) -> Comparison:
    """What changed from the results in one folder or file to those in another.

    Args:
        a: The side that is subtracted.
        b: The other one.
        protocols: Only these; none means all.

    Raises:
        UsageError: A place holds no results, a protocol is unknown, or a file cannot be read.
    """
    wanted = set(protocols)
    for name in wanted:
        if name not in registry.names("protocols"):
            raise unknown("protocol", name, registry.names("protocols"))
    sides = [[run for run in read_results(place) if not wanted or run.spec.protocol in wanted] for place in (a, b)]
    matched = match(*sides)
    columns = {name: _columns(name, [*sides[0], *sides[1]]) for name in {pair.place[0] for pair in matched.pairs}}
    cells: list[Cell] = []
    unchanged = 0
    for pair, apart in zip(matched.pairs, told_apart(matched.pairs), strict=True):
        of_pair = _OfPair(pair, apart, *columns[pair.place[0]], (Path(a), Path(b)))
        changed = of_pair.changed()
        cells += changed
        unchanged += of_pair.known - len(changed)
    return Comparison(tuple(cells), unchanged, matched)


def _columns(name: str, results: Sequence[Result]) -> tuple[Protocol, list[Column]]:
    """A protocol and the columns of its table."""
    own: Protocol = registry.load("protocols", name)()
    of_protocol = [result for result in results if result.spec.protocol == name]
    evaluations = dict.fromkeys(name for result in of_protocol for name in result.conditions.get("images", {}))
    along = {getattr(result.spec, own.along, None): None for result in of_protocol}
    ordered = sorted(along, key=lambda value: (value is None, value or 0))
    return own, own.columns(own.metrics[0], list(evaluations), ordered)


class _OfPair:
    """The figures of a pair of runs, seed by seed."""

    def __init__(
        self, pair: Pair, apart: str, protocol: Protocol, columns: Sequence[Column], places: tuple[Path, Path]
    ) -> None:
        self.pair, self.protocol, self.columns, self.places = pair, protocol, columns, places
        self.method = f"{pair.place[2]} ({apart})" if apart else pair.place[2]
        self.dataset = pair.place[1]
        self.along = getattr(next(iter(pair.a.values())).spec, protocol.along, None)
        self.derived = {column.key for column in columns if column.derived}
        self.drawn = cache(self._drawn)
        self.known = 0

    def changed(self) -> list[Cell]:
        """The figures that differ; `known` counts all."""
        before, after = self.drawn(tuple(range(len(self.pair.a))))
        whole = {key for side in (self.pair.a, self.pair.b) for run in side.values() for key in run.metrics}
        said: set[str] = set()
        cells = []
        for block in dict.fromkeys([*before, *after]):
            for column in self.columns:
                key = column.key
                a, b = before.get(block, {}).get(key), after.get(block, {}).get(key)
                once = self.protocol.blocks_are != "dataset" and key in whole  # a figure that every block repeats
                if (a is None and b is None) or (once and key in said):
                    continue
                said.add(key)
                self.known += 1
                if a is None or b is None or not math.isclose(a, b, rel_tol=0, abs_tol=SAME):
                    cells.append(self._cell(block, once, column, a, b))
        return cells

    def figures(self, metrics: Mapping[str, float]) -> Figures:
        """What the protocol's table shows of these metrics, with what it derives from them."""
        metrics = {key: value for key, value in metrics.items() if key not in self.derived}
        blocks = self.protocol.blocks(self.protocol.metrics[0], self.dataset, self.along, metrics)
        return {block: self.protocol.summarize(numbers) for block, numbers in blocks.items()}

    def _drawn(self, seeds: tuple[int, ...]) -> tuple[Figures, Figures]:
        """Both sides' figures, averaged over seeds given by position."""
        a, b = ([list(side.values())[seed] for seed in seeds] for side in (self.pair.a, self.pair.b))
        return self.figures(_mean(a)), self.figures(_mean(b))

    def _cell(self, block: str, once: bool, column: Column, a: float | None, b: float | None) -> Cell:
        interval, over, why = None, "", "one side lacks the figure"
        if a is not None and b is not None:
            interval, over, why = self._interval(block, column.key)
        named = block == self.dataset or once
        return Cell(
            protocol=self.pair.place[0],
            dataset=self.dataset if named else f"{self.dataset}, {block}",
            method=self.method,
            key=column.key,
            title=column.title,
            a=a,
            b=b,
            interval=interval,
            over=over,
            why=why,
            seeds=tuple(self.pair.a),
            differs=self.pair.differs,
        )

    def _interval(self, block: str, key: str) -> tuple[tuple[float, float] | None, str, str]:
        """An interval, what it is over, and why it is not over images or there is none."""
        from promptbench.results.bootstrap import over_images, over_seeds

        def figure(metrics: Mapping[str, float]) -> float | None:
            return self.figures(metrics).get(block, {}).get(key)

        def difference(seeds: tuple[int, ...]) -> float | None:
            a, b = (side.get(block, {}).get(key) for side in self.drawn(seeds))
            return None if a is None or b is None else b - a

        right, why = self.recognised()
        accuracies = {f"{name}/accuracy": 50.0 for name in right}
        if right and figure(accuracies) is None:
            why = "it does not follow from the accuracies on images of which both sides have stored predictions"
        elif right:
            needed = {name: of for name, of in right.items() if figure(_without(accuracies, name)) is None}
            found = over_images(needed, figure if len(needed) > 1 else None)
            if found:
                return found, "images", ""
        count = len(self.pair.a)
        if count >= LEAST_SEEDS and (found := over_seeds(count, difference)):
            return found, "seeds", why
        few = f"{count} seed{'' if count == 1 else 's'} in common where {LEAST_SEEDS} are needed"
        return None, "", f"{why}, and {few}"

    @cache  # noqa: B019 - lives as long as the pair
    def recognised(self) -> tuple[dict[str, tuple[NDArray[float64], NDArray[float64]]], str]:
        """By evaluation the percentage of seeds in which A, and B, recognise each image; or why there is nothing."""
        paths = [
            [_stored(place, run.spec) for run in side.values()]
            for place, side in zip(self.places, (self.pair.a, self.pair.b), strict=True)
        ]
        lacking = [name for name, of_side in zip("AB", paths, strict=True) if None in of_side]
        if lacking:
            return {}, f"{' and '.join(lacking)} lack{'s' * (len(lacking) == 1)} stored predictions"
        a, b = (_recognised([path for path in of_side if path is not None]) for of_side in paths)
        shared = {name: (a[name][1], b[name][1]) for name in a if name in b and a[name][0] == b[name][0]}
        return shared, "" if shared else "the predictions stored are not of the same images"


def _recognised(paths: Sequence[Path]) -> dict[str, tuple[list[str], NDArray[float64]]]:
    """By evaluation, the images' paths in order and in how many percent of the files each is recognised (N,)."""
    import numpy as np

    from promptbench.results.predictions import load_predictions

    found: dict[str, list[tuple[list[str], NDArray[float64]]]] = {}
    for path in paths:
        for name, of in load_predictions(path).items():
            order = sorted(range(len(of.images)), key=of.images.__getitem__)
            right = (of.logits.argmax(dim=1) == of.labels).double().numpy()[order]
            found.setdefault(name, []).append(([of.images[place] for place in order], 100.0 * right))
    return {
        name: (of_files[0][0], np.mean([right for _, right in of_files], axis=0))
        for name, of_files in found.items()
        if len(of_files) == len(paths)
        and all(images == of_files[0][0] for images, _ in of_files)
        and 0 < len(of_files[0][0]) == len(set(of_files[0][0]))
    }


def _stored(place: Path, spec: Spec) -> Path | None:
    """The predictions of a run beside its result, wherever between the output folder and the file `place` is."""
    return next((path for folder in _holders(place) if (path := find_predictions(folder, spec))), None)


@cache
def _holders(place: Path) -> list[Path]:
    """The folders at or above a place that hold predictions."""
    return [folder for folder in (place, *place.resolve().parents[:4]) if (folder / "predictions").is_dir()]


def _mean(runs: Sequence[Result]) -> dict[str, float]:
    """The mean of every metric that all runs have."""
    first, *others = (run.metrics for run in runs)
    keys = [key for key in first if all(key in metrics for metrics in others)]
    return {key: math.fsum([run.metrics[key] for run in runs]) / len(runs) for key in keys}


def _without(metrics: Mapping[str, float], evaluation: str) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key != f"{evaluation}/accuracy"}


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
        known = [name for name in _MADE_OF if getattr(a[seed].spec, name) and getattr(b[seed].spec, name)]
        before, after = _conditions(a[seed], known), _conditions(b[seed], known)
        for name in _unequal(before, after):
            by_name[name].append(f"{_short(before.get(name))} → {_short(after.get(name))}")
    return found | {name: said[0] if len(set(said)) == 1 else "differs seed by seed" for name, said in by_name.items()}


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """A result beside another one of the same run, made later.

    Attributes:
        apart: Figures that differ, stored and made again; None where that lacks it.
        largest: The largest difference of figures.
        new: Figures that only the later one has, such as of a metric that is younger than the stored result.
        compared: How many figures were compared.
        tolerance: The most by which equal figures differ.
        losses: What the losses of the training say of where a difference begins, in words.
        made_of: What else differs, as `before → after`: settings, conditions, code, versions and commit.
    """

    apart: Mapping[str, tuple[float, float | None]]
    largest: float
    new: tuple[str, ...]
    compared: int
    tolerance: float
    losses: str
    made_of: Mapping[str, str]

    @property
    def equal(self) -> bool:
        """Whether every stored figure was made again."""
        return not self.apart


def repeated(stored: Result, made: Result, tolerance: float = SAME) -> Repeated:
    """A stored result beside one that was made again."""
    apart: dict[str, tuple[float, float | None]] = {}
    largest = 0.0
    for name, value in stored.metrics.items():
        again = made.metrics.get(name)
        largest = max(largest, 0.0 if again is None else abs(again - value))
        if again is None or abs(again - value) > tolerance:
            apart[name] = value, again
    (left,), (right,) = _groups([stored]).values(), _groups([made]).values()
    differs = differences(left[0].settings, right[0].settings, left[0].runs, right[0].runs)
    return Repeated(
        apart=apart,
        largest=largest,
        new=tuple(name for name in made.metrics if name not in stored.metrics),
        compared=len(stored.metrics),
        tolerance=tolerance,
        losses=_losses_beside(stored.losses, made.losses),
        made_of=differs,
    )


def _losses_beside(stored: Sequence[Mapping[str, float]], made: Sequence[Mapping[str, float]]) -> str:
    """Where the losses of two trainings begin to differ, in words."""
    if not stored and not made:
        return "nothing is trained, so that they come from images, weights or the evaluation"
    if len(stored) != len(made):
        return f"epochs of the training: {len(stored)} stored, {len(made)} here"
    for epoch, (before, after) in enumerate(zip(stored, made, strict=True), start=1):
        if not _equal_to_rounding(before, after):
            return f"the losses of the training differ from epoch {epoch} on"
    return "the losses of the training are the same, so that they come from the evaluation"


def _equal_to_rounding(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether the same terms of a loss have the same values, but for what processors of other makes round otherwise."""
    return before.keys() == after.keys() and all(
        math.isclose(value, after[name], rel_tol=ROUNDING, abs_tol=ROUNDING) for name, value in before.items()
    )


def _groups(results: Iterable[Result]) -> dict[Place, list[_Group]]:
    """The runs of a side by place and settings."""
    found: dict[Place, dict[str, _Group]] = defaultdict(dict)
    settings: dict[str, dict[str, str]] = {}
    for result in results:
        spec = result.spec
        facts = {name: getattr(spec, name) for name in _SETTINGS}
        key = _ENCODE(facts)
        if key not in settings:
            settings[key] = _flat(facts)
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


def _conditions(result: Result, made_of: Sequence[str]) -> dict[str, str]:
    known = {name: getattr(result.spec, name) for name in made_of}
    known |= {name: result.conditions[name] for name in _CONDITIONS if name in result.conditions}
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
    text = (value or "").strip('"')
    if value in (None, "null", '""'):
        text = "none"
    return text if len(text) <= _LONGEST else text[:12] + "..."
