"""What changed between two sets of results: figures of the protocols' tables, with intervals of the differences.

Figures are means over the seeds that both sides have, and what protocols derive from these, as tables show them. The
interval of a difference is a 95 % percentile one of a paired bootstrap: over images where both sides have stored what
they said of the same ones, else over seeds where they share three or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench import registry
from promptbench.config import unknown
from promptbench.matching import Matched, Pair, Seed, match, told_apart
from promptbench.protocol import Column, Protocol
from promptbench.results import Result, predictions_path, read_results

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from promptbench.spec import Spec

Figures = Mapping[str, Mapping[str, float]]  # block, to column key, to figure

SAME = 1e-9  # points; sums of the same numbers in another order differ by less
LEAST_SEEDS = 3


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
        from promptbench.bootstrap import over_images, over_seeds

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

    from promptbench.predictions import load_predictions

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
    return next((path for folder in _holders(place) if (path := predictions_path(folder, spec)).exists()), None)


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
