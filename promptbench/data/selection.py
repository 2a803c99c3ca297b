"""From a protocol's words to images: the few-shot sample, the base or new half, their labels and names.

Samples are drawn as CoOp or as GalLoP draws them, and halves are those of CoOp.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022; code: https://github.com/KaiyangZhou/CoOp on
https://github.com/KaiyangZhou/Dassl.pytorch. Both seed Python's global generator and use it first for the sample; here
the same stream is private, so that the same seed gives the same images, in the same order, whatever else runs.

Lafon et al., "GalLoP: Learning Global and Local Prompts for Vision-Language Models", ECCV 2024; code:
https://github.com/MarcLafon/gallop. Its sample is stratified, not `shots` per class, so its figures are not on CoOp's
images.

Two more rules spoil CoOp's sample on purpose, by the data seed: `longtail:RHO` leaves most classes fewer images, and
`noise:RATE` gives images wrong labels. Both speak of the classes trained on, base ones in base-to-new, so that a tail
is as steep, and a label as wrong, as its name says whatever half is taken. Validation images stay CoOp's, with their
true labels; so does all that is evaluated.

What draws works on any named tuple with `label` and `image`, and reads no image.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from promptbench.config import UsageError, path_of, unknown
from promptbench.data.class_names import ClassNames, as_read
from promptbench.data.splits import Item, read_text
from promptbench.storage import unpickle
from promptbench.storage.atomic import write_atomically
from promptbench.suite import ALPHABETICAL

if TYPE_CHECKING:
    from promptbench.data.corruptions import Corruption
    from promptbench.data.dataset import Dataset

FILE = "file:"  # what names a stored sample among the samplers
TAIL, NOISE = "longtail:", "noise:"  # what names the samplers that spoil CoOp's sample
CONFUSABLE = "confusable"  # noise that takes the nearest class
LONGEST_SEED = 18  # digits of the seed of random halves
HELD_OUT_SHOTS = 16  # drawn per class where a dataset has no validation images

Split = Literal["train", "val", "test", "held_out", "few_held_out"]

VAL_SHOTS = 4
"""CoOp draws at most this many validation images per class."""
VERSION = 1
"""Of the format; stands in the header."""
_HEADER = "promptbench_sample"
_LONGEST_PATH = 4096  # characters, as systems have it; what stands before them is not looked at


class Labelled(Protocol):
    """A named tuple with the fields that sampling needs."""

    @property
    def image(self) -> str:
        """The image's path inside its dataset."""

    @property
    def label(self) -> int:
        """The image's class."""

    @property
    def _replace(self) -> Callable[..., Any]:
        """A copy with other field values."""


L = TypeVar("L", bound=Labelled)


def sample_few_shot(items: Sequence[L], shots: int, generator: random.Random) -> list[L]:
    """Exactly `shots` items of each class, classes in order of their first appearance in `items`.

    A class that has fewer is taken whole, in list order, without a draw.
    """
    _refuse_no_shots(shots)
    by_label: dict[int, list[L]] = {}
    for label, neighbours in groupby(items, attrgetter("label")):  # most lists have a class in one piece
        by_label.setdefault(label, []).extend(neighbours)
    sample: list[L] = []
    for members in by_label.values():
        sample += generator.sample(members, shots) if len(members) >= shots else members
    return sample


def coop_sample(train: Sequence[L], val: Sequence[L], shots: int, seed: int) -> tuple[list[L], list[L]]:
    """CoOp's few-shot train and validation items at a seed: train first, then `min(shots, 4)` of val from the same
    stream.

    It draws over all classes; base and new classes are selected afterwards. A 1-shot sample is not part of the 16-shot
    one.
    """
    generator = random.Random(seed)
    few_train = sample_few_shot(train, shots, generator)
    return few_train, sample_few_shot(val, min(shots, VAL_SHOTS), generator)


def stratified_sample(items: Sequence[L], shots: int, seed: int) -> list[L]:
    """GalLoP's few-shot items: `shots` times the number of classes in all, in proportion to the sizes of the classes.

    A class has more or fewer than `shots` of them: 6 to 155 on Caltech101 at 16 shots. They are the training indices,
    in their shuffled order, of scikit-learn's `StratifiedShuffleSplit`, classes numbered by their first appearance in
    `items`. Where so many images, or more, are asked for as there are, it is all of them, in list order and without a
    word (at exactly as many, GalLoP itself fails).

    Raises:
        ValueError: A class has a single image, or fewer images than classes would be left over.
    """
    _refuse_no_shots(shots)
    numbers: dict[int, int] = {}
    classes = [numbers.setdefault(item.label, len(numbers)) for item in items]
    wanted = shots * len(numbers)
    if wanted >= len(items):
        return list(items)
    from sklearn.model_selection import StratifiedShuffleSplit

    splitter = StratifiedShuffleSplit(n_splits=1, train_size=wanted, random_state=seed)
    try:
        chosen, _ = next(splitter.split(classes, classes))
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"A stratified sample of {wanted} of {len(items)} images cannot be drawn: {reason}; take other shots."
        ) from error
    return [items[index] for index in chosen]


def _refuse_no_shots(shots: int) -> None:
    if shots < 1:
        raise ValueError(f"A few-shot sample takes at least 1 shot per class, not {shots}.")


SAMPLERS: Mapping[str, Callable[[Sequence[Any], int, int], list[Any]]] = MappingProxyType(
    {
        "coop": lambda items, shots, seed: coop_sample(items, [], shots, seed)[0],
        "stratified": stratified_sample,
    }
)
"""Rules that draw few-shot training items, by name; each takes the items, the shots and the seed."""


class Trained(NamedTuple):
    """The classes that a sample is drawn to train on.

    Attributes:
        labels: Theirs in the dataset, sorted.
        nearest: Gives the position, for each of them, of the other one whose frozen text is nearest to its own; None
            where there is no backbone to ask.
    """

    labels: Sequence[int]
    nearest: Callable[[], Sequence[int]] | None = None


@dataclass(frozen=True)
class LongTail:
    """Few classes have many training images, and many have few.

    n_c = max(1, round(n_max RHO^(-pi(c) / (K - 1)))) for each of the K classes trained on, rounded half to even, pi a
    permutation of them by the data seed, n_max the smaller of the shots and of the images of the smallest of them. The
    images are drawn from those that CoOp draws at the same shots and seed. Other classes have none.

    Attributes:
        word: What names it: `longtail:RHO`.
        ratio: RHO, of the largest to the smallest class, at least 1.
    """

    word: str
    ratio: float

    def __call__(self, items: Sequence[Item], shots: int, seed: int, trained: Trained) -> list[Item]:
        """The training images.

        Raises:
            ValueError: The largest class would have fewer than RHO images, so that no class could have so few.
        """
        generator = random.Random(f"longtail/{seed}")
        counts = self._counts(items, shots, trained.labels, generator)
        sample = coop_sample(items, [], shots, seed)[0]
        places = places_by_label(sample)
        kept: set[int] = set()
        for label, count in counts.items():
            kept.update(generator.sample(places[label], count))
        return [item for place, item in enumerate(sample) if place in kept]

    def _counts(
        self, items: Sequence[Item], shots: int, labels: Sequence[int], generator: random.Random
    ) -> dict[int, int]:
        """How many images each class has, by label."""
        sizes = Counter(item.label for item in items)
        smallest = min(labels, key=sizes.__getitem__)
        most = min(shots, sizes[smallest])
        if most < self.ratio:
            name = next((item.class_name for item in items if item.label == smallest), smallest)
            few = f"more than {shots} shots" if most == shots else f"and {str(name)[:80]!r} has {most}"
            raise ValueError(
                f"{self.word} needs {math.ceil(self.ratio)} images of each class, {few}; take a smaller ratio."
            )
        places = generator.sample(range(len(labels)), len(labels))
        steps = max(1, len(labels) - 1)
        return {
            label: max(1, round(most * self.ratio ** (-place / steps)))
            for label, place in zip(labels, places, strict=True)
        }


@dataclass(frozen=True)
class Noise:
    """CoOp's training images, round(RATE n) of the n of each class trained on with another label, half to even.

    Which images, is drawn by the data seed, and is the same for both kinds of labels.

    Attributes:
        word: What names it: `noise:RATE` or `noise:RATE:confusable`.
        rate: From 0 to below 1.
        confusable: Whether the other label is that of the nearest frozen text; otherwise it is drawn uniformly from
            the other classes trained on.
    """

    word: str
    rate: float
    confusable: bool = False

    def __call__(self, items: Sequence[Item], shots: int, seed: int, trained: Trained) -> list[Item]:
        """The training images, with the names of the labels that they have now.

        Raises:
            ValueError: There is no other class, or no backbone to ask for the nearest text.
        """
        if len(trained.labels) < 2:
            raise ValueError(f"{self.word} needs at least two classes to train on.")
        if self.confusable and trained.nearest is None:
            raise ValueError(
                f"{self.word} needs a backbone to tell which class is nearest; give it to `run --sampler`."
            )
        sample = coop_sample(items, [], shots, seed)[0]
        names = {item.label: item.class_name for item in items}
        generator = random.Random(f"noise/{seed}")
        others = self._others(trained)
        for place in self._places(sample, trained.labels, generator):
            label = generator.choice(others[sample[place].label])
            sample[place] = sample[place]._replace(label=label, class_name=names[label])
        return sample

    def _places(self, sample: Sequence[Item], labels: Sequence[int], generator: random.Random) -> list[int]:
        """Positions of the images whose labels change, class by class."""
        by_label = places_by_label(sample)
        places = []
        for label in labels:
            own = by_label.get(label, [])
            places += generator.sample(own, round(self.rate * len(own)))
        return places

    def _others(self, trained: Trained) -> dict[int, list[int]]:
        """The labels that an image of each class may get."""
        labels = trained.labels
        if self.confusable and trained.nearest is not None:
            return {label: [labels[other]] for label, other in zip(labels, trained.nearest(), strict=True)}
        return {label: [other for other in labels if other != label] for label in labels}


def places_by_label(sample: Sequence[Labelled]) -> dict[int, list[int]]:
    """The positions of the items of each class."""
    places: dict[int, list[int]] = {}
    for place, item in enumerate(sample):
        places.setdefault(item.label, []).append(place)
    return places


def sampler_of(word: str) -> Callable[[Sequence[Any], int, int, Trained], list[Any]]:
    """The rule of that name, which takes the items, the shots, the seed and the classes trained on.

    Raises:
        UsageError: There is none, or it cannot have that number.
    """
    name, _, given = word.partition(":")
    if word in SAMPLERS:
        return lambda items, shots, seed, trained: SAMPLERS[word](items, shots, seed)
    if f"{name}:" == TAIL:
        ratio = _number(given, f"sampler {word!r}: write longtail:RHO, for instance longtail:10.")
        if not 1 <= ratio < math.inf:
            raise UsageError(f"sampler {word!r}: RHO is a number of at least 1, not {given}.")
        return LongTail(word, ratio)
    if f"{name}:" == NOISE:
        said, _, kind = given.partition(":")
        usage = f"sampler {word!r}: write noise:RATE or noise:RATE:confusable, for instance noise:0.2."
        rate = _number(said if kind in ("", CONFUSABLE) and not given.endswith(":") else "", usage)
        if not 0 <= rate < 1:
            raise UsageError(f"sampler {word!r}: RATE is a number from 0 to below 1, not {said}.")
        return Noise(word, rate, kind == CONFUSABLE)
    known = (*SAMPLERS, "longtail:RHO", "noise:RATE", f"noise:RATE:{CONFUSABLE}")
    raise UsageError(f"{unknown('sampler', word, known)} A stored sample is file:PATH.")


def spoils(sampler: str) -> bool:
    """Whether a sampler makes a long tail or wrong labels of CoOp's sample."""
    return sampler.startswith((TAIL, NOISE))


def _number(text: str, usage: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(usage) from None


def split_base_new(labels: Iterable[int], halves: str = ALPHABETICAL) -> tuple[list[int], list[int]]:
    """The distinct labels in two halves, each sorted: base, the first `ceil(n / 2)`, and new, the rest.

    Args:
        halves: First in which order: `alphabetical`, that of the labels, as in the papers, or `random:N`, that of
            `random.Random(N).sample` of the sorted labels.
    """
    ordered = sorted(set(labels))
    seed = seed_of_halves(halves)
    if seed is not None:
        ordered = random.Random(seed).sample(ordered, len(ordered))
    middle = (len(ordered) + 1) // 2
    return sorted(ordered[:middle]), sorted(ordered[middle:])


def seed_of_halves(halves: str) -> int | None:
    """The seed that draws halves of the classes; None where they are alphabetical.

    Raises:
        UsageError: They are neither.
    """
    kind, _, seed = halves.partition(":")
    if halves == ALPHABETICAL:
        return None
    if kind != "random" or not (seed.isascii() and seed.isdigit()) or len(seed) > LONGEST_SEED:
        known = (ALPHABETICAL, "random:N")
        raise UsageError(f"{unknown('split', halves, known)} N is an integer from 0 on, for instance random:1.")
    return int(seed)


def select(items: Iterable[L], labels: Iterable[int]) -> list[L]:
    """The items of the given labels, in order, relabelled from 0 in sorted order of the labels."""
    relabelled = {label: index for index, label in enumerate(sorted(set(labels)))}
    moved = {label for label, new in relabelled.items() if new != label}
    kept = (item for item in items if item.label in relabelled)
    return [item._replace(label=relabelled[item.label]) if item.label in moved else item for item in kept]


def digest(items: Iterable[Labelled]) -> str:
    """SHA-256, in hex, of the image paths in order, joined by newlines."""
    return hashlib.sha256("\n".join(item.image for item in items).encode()).hexdigest()


def write_sample(path: Path, header: Mapping[str, Any], items: Iterable[Item]) -> None:
    """Writes items in order; the same items give the same bytes.

    Args:
        path: A name that ends in ".jsonl"; an existing file is replaced.
        header: What the sample is: dataset, shots, seed, sampler.
        items: The images.

    Raises:
        UsageError: The name has another ending, or the file cannot be written.
    """
    if path.suffix != ".jsonl":
        raise UsageError(f"The sample file {path} must end in .jsonl; name it so.")
    rows = [{_HEADER: VERSION, **header}, *(item._asdict() for item in items)]
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UsageError(f"Cannot write the sample file {path}: {error.strerror}.") from error


def read_sample(path: Path, items: Iterable[Item], wrong_labels: bool = False) -> list[Item]:
    """The dataset's own items that a sample file lists, in the file's order.

    Args:
        path: A file written by `write_sample`, or CoOp's `shot_{k}-seed_{s}.pkl`, of which "train" is taken.
        items: The images that the dataset has to offer, normally its training items.
        wrong_labels: Whether an image may have the label of another class, which it then keeps.

    Raises:
        UsageError: The file is malformed, names an image twice or none at all, or does not fit the dataset; file and
            line are named.
    """
    if path.suffix == ".pkl":
        return read_coop(path, {"train": items})["train"]
    if path.suffix != ".jsonl":
        raise UsageError(f"The sample file {path} must end in .jsonl or .pkl; name it after its format.")
    header, *lines = read_text(path).split("\n")
    _check_header(header, path)
    if lines and not lines[-1]:
        lines.pop()
    listed = [_listed(line, _line(path, index)) for index, line in enumerate(lines)]
    return own_items(listed, items, partial(_line, path), wrong_labels)


def read_header(path: Path) -> Mapping[str, Any]:
    """What a jsonl sample says of itself, such as shots, seed and sampler; nothing for a pickle, which says nothing.

    Raises:
        UsageError: The file cannot be read, or its first line is no header.
    """
    if path.suffix != ".jsonl":
        return {}
    first = read_text(path).partition("\n")[0]
    _check_header(first, path)
    header: Mapping[str, Any] = json.loads(first)
    return header


def read_coop(path: Path, splits: Mapping[str, Iterable[Item]]) -> dict[str, list[Item]]:
    """The dataset's own items of each split that a pickle of CoOp lists, in its order.

    Args:
        path: `shot_{k}-seed_{s}.pkl` or `preprocessed.pkl`.
        splits: The items that the dataset has to offer, by the name of the list in the pickle.

    Raises:
        UsageError: As `read_sample`; entries are counted from 0.
    """
    lists = unpickle.coop_lists(path, Item)
    for split in splits:
        if split not in lists:
            raise UsageError(f"{path} has no list {split!r}, only {', '.join(map(repr, lists))}; give another file.")
    return {split: own_items(lists[split], items, partial(_entry, path, split)) for split, items in splits.items()}


def _entry(path: Path, split: str, index: int) -> str:
    return f"{path}, {split!r}, entry {index}"


def _line(path: Path, index: int) -> str:
    return f"{path}, line {index + 2}"


def own_items(
    listed: Sequence[Item], items: Iterable[Item], where: Callable[[int], str], wrong_labels: bool = False
) -> list[Item]:
    """The items of a dataset that `listed` ones stand for, in the order of `listed`.

    Their paths may be absolute, from another machine: an image is found by the longest end of its path that the
    dataset knows as an image. A relative path may also lack the first folders, if one image alone ends in it.

    Args:
        listed: Images as a file has them.
        items: The dataset's own.
        where: The place of a listed image, for errors.
        wrong_labels: Whether an image may have the label of another class of the dataset, which it then keeps.

    Raises:
        UsageError: An image is unknown, ambiguous, listed twice, or of another class than in the dataset; or none is
            listed.
    """
    items = list(items)
    finder = _Finder(items)
    names = {item.label: item.class_name for item in items} if wrong_labels else {}
    places: dict[str, int] = {}
    found: list[Item] = []
    for index, item in enumerate(listed):
        own = finder.find(item.image, partial(where, index))
        if item.label in names:
            own = own._replace(label=item.label, class_name=names[item.label])
        if (own.label, own.class_name) != (item.label, item.class_name):
            _check_class(own, item, where(index))
        first = places.setdefault(own.image, index)
        if first != index:
            raise UsageError(f"{where(index)}: the image {own.image!r} is already in {where(first)}; leave one out.")
        found.append(own)
    if not found:
        raise UsageError(f"{where(0)}: there is no image; a sample needs at least one.")
    return found


def _check_class(own: Item, listed: Item, where: str) -> None:
    if own.label != listed.label or as_read(own.class_name) != as_read(listed.class_name):
        raise UsageError(
            f"{where}: the image {own.image!r} has the class {listed.label} {listed.class_name!r}, but "
            f"{own.label} {own.class_name!r} in the dataset; give a sample of this dataset and split file."
        )


class _Finder:
    """Finds the items of a dataset by the ends of paths, each in a few look-ups."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._whole = {item.image: item for item in items}
        self._ends: dict[int, dict[str, Item | None]] = {}

    def find(self, image: str, where: Callable[[], str]) -> Item:
        """The item whose path `image` ends in, or else the only one whose path ends in `image`."""
        path = image if image in self._whole else image[-_LONGEST_PATH:].replace("\\", "/")
        end = path
        while end and end not in self._whole:
            end = end.partition("/")[2]
        return self._whole[end] if end else self._find_short(path, where)

    def _find_short(self, end: str, where: Callable[[], str]) -> Item:
        known = {} if end.startswith("/") else self._ending(end.count("/") + 1)
        if end not in known:
            raise UsageError(f"{where()}: the dataset has no image {end!r}; give a sample of this dataset.")
        found = known[end]
        if found is None:
            raise UsageError(f"{where()}: several images of the dataset end in {end!r}; write more of the path.")
        return found

    def _ending(self, length: int) -> dict[str, Item | None]:
        """Items by the last `length` parts of their paths; None where two share them."""
        if length not in self._ends:
            ends: dict[str, Item | None] = {}
            for item in self._whole.values():
                end = "/".join(item.image.split("/")[-length:])
                ends[end] = None if end in ends else item
            self._ends[length] = ends
        return self._ends[length]


def _check_header(line: str, path: Path) -> None:
    header = _parsed(line)
    if not isinstance(header, dict) or _HEADER not in header:
        raise UsageError(f'{path}, line 1: expected a header such as {{"{_HEADER}": {VERSION}, "dataset": ...}}.')
    if header[_HEADER] != VERSION:
        raise UsageError(
            f"{path}, line 1: this promptbench reads format {VERSION}, not {str(header[_HEADER])[:20]!r}; update it."
        )


def _listed(line: str, where: str) -> Item:
    row = _parsed(line)
    fits = isinstance(row, dict) and row.keys() == set(Item._fields)
    if not fits or [type(row[name]) for name in Item._fields] != [str, int, str]:
        raise UsageError(
            f'{where}: expected {{"image": path, "label": integer, "class_name": text}}, not {line[:80]!r}.'
        )
    return Item(**row)


def _parsed(line: str) -> Any:
    """What a line of JSON says, or None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class SelectedImages:
    """Images of a dataset that belong to a `Selection`.

    Attributes:
        dataset: Where they are.
        pool: What they were chosen from: the whole split, or the few-shot sample over all classes.
        chosen: Positions in `pool`.
        items: The chosen ones, labels counted from 0 within the selection.
        class_names: Names of those labels, with the dataset's template.
        skipped: Images that would be in the pool but cannot be read, where the dataset leaves such out.
        classes: The dataset's own label of each class, in the order of `class_names`.
        corruption: Of these images, which are evaluated; None leaves them as they are.
    """

    dataset: Dataset
    pool: list[Item]
    chosen: list[int]
    items: list[Item]
    class_names: ClassNames
    skipped: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    corruption: Corruption | None = None

    @property
    def labels(self) -> list[int]:
        """Label of each chosen image, from 0 within the selection."""
        return [item.label for item in self.items]


Nearest = Callable[[ClassNames], Sequence[int]]
"""Gives the position, for each class name, of the other one whose frozen text is nearest."""


def open_selection(
    open_dataset: Callable[[str], Dataset], selection: Selection, seed: int, *, nearest: Nearest | None = None
) -> SelectedImages:
    """The images of a selection; `seed` draws the few-shot sample, over all classes, before a half is taken.

    Args:
        nearest: Asks a backbone, for samplers that need one.

    Raises:
        UsageError: If the dataset cannot be read, or nothing is left.
    """
    dataset = open_dataset(selection.dataset)
    pool = spread(images_of(dataset, selection, seed, nearest), selection.limit)
    skipped = [item.image for item in dataset.unreadable(pool)] if dataset.skip_unreadable else []
    if skipped:
        left_out = set(skipped)
        pool = [item for item in pool if item.image not in left_out]
    labels = class_labels(dataset, selection.classes, selection.halves)
    wanted = set(labels)
    chosen = [index for index, item in enumerate(pool) if item.label in wanted]
    if not chosen:
        among = f" among the {selection.limit} that --limit leaves; take more" if selection.limit else ""
        raise UsageError(
            f"The dataset '{dataset.name}' has no {selection.split} images of its {selection.classes} classes{among}."
        )
    items = select(pool, labels)
    names = dataset.names_shown.select(labels)
    return SelectedImages(dataset, pool, chosen, items, names, tuple(skipped), tuple(sorted(wanted)))


def spread(items: list[Item], most: int | None) -> list[Item]:
    """At most so many of the images, in their order, as evenly over the classes as that number allows.

    The first image of each class is taken, then the second, and so on; where not all classes have a place in the last
    round, those that do stand at equal distances.
    """
    if most is None or most >= len(items):
        return items
    by_label = places_by_label(items)
    kept: set[int] = set()
    for number in range(len(items)):
        of_round = [by_label[label][number] for label in sorted(by_label) if number < len(by_label[label])]
        places = min(len(of_round), most - len(kept))
        kept.update(of_round[index * len(of_round) // places] for index in range(places))
        if len(kept) == most:
            break
    return [item for place, item in enumerate(items) if place in kept]


def images_of(dataset: Dataset, selection: Selection, seed: int, nearest: Nearest | None = None) -> list[Item]:
    """The images of a split, or a few-shot sample of them, over all classes."""
    if selection.split == "held_out":
        return held_out(dataset, selection, seed)
    if selection.split == "few_held_out":
        return few_held_out(dataset, selection, seed)
    if selection.shots is None:
        return dataset.items(selection.split)
    return few_shot_sample(dataset, selection, selection.shots, seed, nearest)


def few_shot_sample(
    dataset: Dataset, selection: Selection, shots: int, seed: int, nearest: Nearest | None = None
) -> list[Item]:
    """A few-shot sample over all classes, drawn by the selection's sampler or read from its `file:PATH`."""
    split, sampler = selection.split, selection.sampler
    labels = class_labels(dataset, selection.classes, selection.halves)
    if sampler.startswith(FILE):
        return stored_sample(path_of(sampler.removeprefix(FILE)), dataset, split, shots, seed, labels)
    trained = Trained(labels, nearest and partial(nearest, dataset.names_shown.select(labels)))
    try:
        return sampler_of(sampler)(dataset.few_shot_pool(split, sampler), shots, seed, trained)
    except ValueError as error:
        raise UsageError(f"The dataset '{dataset.name}', {shots} shots: {error}") from error


def stored_sample(
    path: Path, dataset: Dataset, split: str, shots: int, seed: int, trained: Collection[int]
) -> list[Item]:
    """A few-shot sample from a file, in its order.

    Args:
        trained: Labels of the classes trained on.

    Raises:
        UsageError: The file is no sample of this dataset, or says that it has other shots or another seed, or its
            wrong labels lead from classes that are trained on to others, or back.
    """
    header = read_header(path)
    for name, wanted in (("shots", shots), ("seed", seed)):
        if header.get(name, wanted) != wanted:
            raise UsageError(f"{path} is a sample with {name} {header[name]}, not {wanted}; name it with {{{name}}}.")
    pool = dataset.few_shot_pool(split, str(header.get("sampler", "coop")))
    if str(header.get("sampler")).startswith(NOISE):
        sample = read_sample(path, pool, wrong_labels=True)
        _refuse_across(path, sample, pool, trained)
        return sample
    sample = read_sample(path, pool)
    most = max(Counter(item.label for item in sample).values(), default=0)
    if most > shots and header.get("sampler", "coop") == "coop":
        raise UsageError(f"{path} has {most} images of a class, more than {shots} shots.")
    return sample


def _refuse_across(path: Path, sample: Iterable[Item], pool: Iterable[Item], trained: Collection[int]) -> None:
    """Raises UsageError where a wrong label would bring an image of a class that is not trained on into training."""
    true = {item.image: item.label for item in pool}
    across = sum((true[item.image] in trained) != (item.label in trained) for item in sample)
    if across:
        raise UsageError(
            f"{path} has {across} labels that lead from classes trained on to others, or back; draw it for the classes "
            "trained on, with `data sample --classes base`."
        )


def held_out(dataset: Dataset, selection: Selection, seed: int) -> list[Item]:
    """Images to choose settings by: the validation split, or a draw of training images outside the few-shot sample."""
    drawn = replace(selection, split="train", sampler=_unspoilt(selection.sampler))
    sample = few_shot_sample(dataset, drawn, selection.shots or HELD_OUT_SHOTS, seed)
    used = {item.image for item in sample}  # validation images too, where the sampler draws from them
    validation = [item for item in dataset.items("val") if item.image not in used]
    if validation:
        return validation
    unused = [item for item in dataset.items("train") if item.image not in used]
    return sample_few_shot(unused, HELD_OUT_SHOTS, random.Random(seed))


def few_held_out(dataset: Dataset, selection: Selection, seed: int) -> list[Item]:
    """`min(shots, 4)` images of a class to choose settings by: those that CoOp draws after its training images."""
    shots = selection.shots or HELD_OUT_SHOTS
    if _unspoilt(selection.sampler) == "coop" and dataset.items("val"):
        return coop_sample(dataset.few_shot_pool("train", "coop"), dataset.items("val"), shots, seed)[1]
    return sample_few_shot(held_out(dataset, selection, seed), min(shots, VAL_SHOTS), random.Random(seed))


def _unspoilt(sampler: str) -> str:
    """The sampler whose images a sampler takes: CoOp's for what makes a long tail or wrong labels of them."""
    return "coop" if spoils(sampler) else sampler


def class_labels(dataset: Dataset, classes: str, halves: str = ALPHABETICAL) -> list[int]:
    """The dataset's labels that `all`, `base`, `new` or a half of a half, such as `base.new`, stands for; `halves` as
    `split_base_new` takes it, for each of them."""
    labels = list(range(len(dataset.class_names)))
    for half in classes.split("."):
        if half not in ("all", "base", "new"):
            raise ValueError(
                f"classes are 'all', 'base', 'new' or halves of halves such as 'base.new', not {classes!r}"
            )
        base, new = split_base_new(labels, halves)
        labels = {"all": labels, "base": base, "new": new}[half]
    return labels


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Images of one dataset.

    Attributes:
        dataset: Name of an entry of the suite.
        split: One of the dataset's splits; `held_out` is its validation images or, where it has none, training images
            that the few-shot sample leaves over; `few_held_out` is at most four of a class of these.
        classes: `all` classes, or the first (`base`) or second (`new`) half of them, or a half of a half (`base.new`).
            The labels of the images selected count from 0 in that order.
        shots: Images drawn per class, over all classes before `classes` is applied; None takes the whole split.
        sampler: How they are drawn: as `selection.sampler_of` names it, or `file:PATH`.
        halves: Which classes are base and which new: `alphabetical` or `random:N`.
        limit: The most images of the whole split, for a quick look, before `classes` is applied; None for all.

    Raises:
        UsageError: There are no such halves.
    """

    dataset: str
    split: Split
    classes: str = "all"
    shots: int | None = None
    sampler: str = "coop"
    halves: str = ALPHABETICAL
    limit: int | None = None

    def __post_init__(self) -> None:
        seed_of_halves(self.halves)


def sample_facts(selection: Selection, chosen: SelectedImages) -> dict[str, Any]:
    """What long tails and wrong labels came to in training images: the `effective_ratio` of the largest class to the
    smallest, and how many `labels_changed`."""
    if selection.sampler in SAMPLERS:
        return {}
    facts: dict[str, Any] = {}
    if selection.sampler.startswith(TAIL):
        sizes = Counter(chosen.labels).values()
        facts["effective_ratio"] = max(sizes) / min(sizes)
    true = {item.image: item.label for item in chosen.dataset.few_shot_pool(selection.split, selection.sampler)}
    labels = class_labels(chosen.dataset, selection.classes, selection.halves)
    changed = sum(true.get(item.image, labels[item.label]) != labels[item.label] for item in chosen.items)
    return {**facts, "labels_changed": changed} if changed else facts


def validation_of(train: Selection, all_images: bool) -> Selection:
    """The validation images of the classes of a training: all there are, or CoOp's few, `min(shots, 4)` of a class.

    Where a dataset has no validation images, they are training images that the sample leaves over; see `held_out`.
    """
    return replace(train, split="held_out" if all_images or train.shots is None else "few_held_out")


def few_validation_of(train: Selection) -> Selection:
    """`min(shots, 4)` validation images of each class of a training, and 4 where it takes all images.

    Where a dataset has no validation images, they are training images that the sample leaves over; see `held_out`.
    """
    return replace(train, split="few_held_out")


def shown_names(
    open_dataset: Callable[[str], Dataset], shown: Selection | None, chosen: SelectedImages, same_classes: bool = False
) -> tuple[ClassNames, list[int]]:
    """The class names that selected images are scored against, and each image's position among them.

    The position of an image of none of these classes is -1.

    Args:
        shown: The selection whose class names are shown; None for that of the images.
        same_classes: Whether images of another dataset are of these classes; otherwise they are of none.

    Raises:
        UsageError: They are to be, and one is not.
    """
    if shown is None:
        return chosen.class_names, chosen.labels
    dataset = open_dataset(shown.dataset)
    labels = class_labels(dataset, shown.classes, shown.halves)
    names = dataset.names_shown.select(labels)
    if dataset.name != chosen.dataset.name:
        return names, shared_positions(dataset, labels, chosen) if same_classes else [-1] * len(chosen.items)
    positions = {label: position for position, label in enumerate(labels)}
    return names, [positions.get(chosen.pool[index].label, -1) for index in chosen.chosen]


def shared_positions(dataset: Dataset, labels: Sequence[int], chosen: SelectedImages) -> list[int]:
    """The position of each image among the classes with these labels of another dataset, which has its class too.

    Raises:
        UsageError: It has not.
    """
    ids = {item.label: dataset.class_id(item) for item in dataset.items("test")}
    positions = {ids[label]: position for position, label in enumerate(labels) if label in ids}
    found = []
    for index in chosen.chosen:
        item = chosen.pool[index]
        own = chosen.dataset.class_id(item)
        if own not in positions:
            raise UsageError(
                f"The dataset '{chosen.dataset.name}' is to have classes of '{dataset.name}', but {item.class_name!r} "
                f"({item.image}) is none of them."
            )
        found.append(positions[own])
    return found
