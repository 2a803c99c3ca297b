"""From a protocol's words to images: the few-shot sample, the base or new half, their labels and names.

Samples are drawn as CoOp or as GalLoP draws them, and halves are those of CoOp.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022; code: https://github.com/KaiyangZhou/CoOp on
https://github.com/KaiyangZhou/Dassl.pytorch. Both seed Python's global generator and use it first for the sample; here
the same stream is private, so that the same seed gives the same images, in the same order, whatever else runs.

Lafon et al., "GalLoP: Learning Global and Local Prompts for Vision-Language Models", ECCV 2024; code:
https://github.com/MarcLafon/gallop. Its sample is stratified, not `shots` per class, so its figures are not on CoOp's
images.

What draws works on any named tuple with `label` and `image`, and reads no image.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from promptbench.config import UsageError, path_of
from promptbench.data.class_names import ClassNames, as_read
from promptbench.data.splits import Item, read_text
from promptbench.storage import unpickle
from promptbench.storage.atomic import write_atomically

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset

FILE = "file:"  # what names a stored sample among the samplers
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
    for item in items:
        by_label.setdefault(item.label, []).append(item)
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


def split_base_new(labels: Iterable[int]) -> tuple[list[int], list[int]]:
    """The distinct labels, sorted, in two halves: base, the first `ceil(n / 2)`, and new, the rest."""
    ordered = sorted(set(labels))
    middle = (len(ordered) + 1) // 2
    return ordered[:middle], ordered[middle:]


def select(items: Iterable[L], labels: Iterable[int]) -> list[L]:
    """The items of the given labels, in order, relabelled from 0 in sorted order of the labels."""
    relabelled = {label: index for index, label in enumerate(sorted(set(labels)))}
    return [item._replace(label=relabelled[item.label]) for item in items if item.label in relabelled]


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


def read_sample(path: Path, items: Iterable[Item]) -> list[Item]:
    """The dataset's own items that a sample file lists, in the file's order.

    Args:
        path: A file written by `write_sample`, or CoOp's `shot_{k}-seed_{s}.pkl`, of which "train" is taken.
        items: The images that the dataset has to offer, normally its training items.

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
    return own_items(listed, items, partial(_line, path))


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


def own_items(listed: Sequence[Item], items: Iterable[Item], where: Callable[[int], str]) -> list[Item]:
    """The items of a dataset that `listed` ones stand for, in the order of `listed`.

    Their paths may be absolute, from another machine: an image is found by the longest end of its path that the
    dataset knows as an image. A relative path may also lack the first folders, if one image alone ends in it.

    Args:
        listed: Images as a file has them.
        items: The dataset's own.
        where: The place of a listed image, for errors.

    Raises:
        UsageError: An image is unknown, ambiguous, listed twice, or of another class than in the dataset; or none is
            listed.
    """
    finder = _Finder(items)
    places: dict[str, int] = {}
    found: list[Item] = []
    for index, item in enumerate(listed):
        own = finder.find(item.image, partial(where, index))
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
    """

    dataset: Dataset
    pool: list[Item]
    chosen: list[int]
    items: list[Item]
    class_names: ClassNames
    skipped: tuple[str, ...] = ()

    @property
    def labels(self) -> list[int]:
        """Label of each chosen image, from 0 within the selection."""
        return [item.label for item in self.items]


def open_selection(open_dataset: Callable[[str], Dataset], selection: Selection, seed: int) -> SelectedImages:
    """The images of a selection; `seed` draws the few-shot sample, over all classes, before a half is taken.

    Raises:
        UsageError: If the dataset cannot be read, or nothing is left.
    """
    dataset = open_dataset(selection.dataset)
    pool = images_of(dataset, selection, seed)
    skipped = [item.image for item in dataset.unreadable(pool)] if dataset.skip_unreadable else []
    if skipped:
        left_out = set(skipped)
        pool = [item for item in pool if item.image not in left_out]
    labels = class_labels(dataset, selection.classes)
    wanted = set(labels)
    chosen = [index for index, item in enumerate(pool) if item.label in wanted]
    if not chosen:
        raise UsageError(
            f"The dataset '{dataset.name}' has no {selection.split} images of its {selection.classes} classes."
        )
    items = select(pool, labels)
    return SelectedImages(dataset, pool, chosen, items, dataset.class_names.select(labels), tuple(skipped))


def images_of(dataset: Dataset, selection: Selection, seed: int) -> list[Item]:
    """The images of a split, or a few-shot sample of them, over all classes."""
    if selection.split == "held_out":
        return held_out(dataset, selection, seed)
    if selection.split == "few_held_out":
        return few_held_out(dataset, selection, seed)
    if selection.shots is None:
        return dataset.items(selection.split)
    return few_shot_sample(dataset, selection.split, selection.shots, selection.sampler, seed)


def few_shot_sample(dataset: Dataset, split: str, shots: int, sampler: str, seed: int) -> list[Item]:
    """A few-shot sample over all classes, drawn by a sampler or read from `file:PATH`."""
    if sampler.startswith(FILE):
        return stored_sample(path_of(sampler.removeprefix(FILE)), dataset, split, shots, seed)
    try:
        return SAMPLERS[sampler](dataset.few_shot_pool(split, sampler), shots, seed)
    except ValueError as error:
        raise UsageError(f"The dataset '{dataset.name}', {shots} shots: {error}") from error


def stored_sample(path: Path, dataset: Dataset, split: str, shots: int, seed: int) -> list[Item]:
    """A few-shot sample from a file, in its order.

    Raises:
        UsageError: The file is no sample of this dataset, or says that it has other shots or another seed.
    """
    header = read_header(path)
    for name, wanted in (("shots", shots), ("seed", seed)):
        if header.get(name, wanted) != wanted:
            raise UsageError(f"{path} is a sample with {name} {header[name]}, not {wanted}; name it with {{{name}}}.")
    sample = read_sample(path, dataset.few_shot_pool(split, str(header.get("sampler", "coop"))))
    most = max(Counter(item.label for item in sample).values(), default=0)
    if most > shots and header.get("sampler", "coop") == "coop":
        raise UsageError(f"{path} has {most} images of a class, more than {shots} shots.")
    return sample


def held_out(dataset: Dataset, selection: Selection, seed: int) -> list[Item]:
    """Images to choose settings by: the validation split, or a draw of training images outside the few-shot sample."""
    sample = few_shot_sample(dataset, "train", selection.shots or HELD_OUT_SHOTS, selection.sampler, seed)
    used = {item.image for item in sample}  # validation images too, where the sampler draws from them
    validation = [item for item in dataset.items("val") if item.image not in used]
    if validation:
        return validation
    unused = [item for item in dataset.items("train") if item.image not in used]
    return sample_few_shot(unused, HELD_OUT_SHOTS, random.Random(seed))


def few_held_out(dataset: Dataset, selection: Selection, seed: int) -> list[Item]:
    """`min(shots, 4)` images of a class to choose settings by: those that CoOp draws after its training images."""
    shots = selection.shots or HELD_OUT_SHOTS
    if selection.sampler == "coop" and dataset.items("val"):
        return coop_sample(dataset.few_shot_pool("train", "coop"), dataset.items("val"), shots, seed)[1]
    return sample_few_shot(held_out(dataset, selection, seed), min(shots, VAL_SHOTS), random.Random(seed))


def class_labels(dataset: Dataset, classes: str) -> list[int]:
    """The dataset's labels that `all`, `base`, `new` or a half of a half, such as `base.new`, stands for."""
    labels = list(range(len(dataset.class_names)))
    for half in classes.split("."):
        if half not in ("all", "base", "new"):
            raise ValueError(
                f"classes are 'all', 'base', 'new' or halves of halves such as 'base.new', not {classes!r}"
            )
        base, new = split_base_new(labels)
        labels = {"all": labels, "base": base, "new": new}[half]
    return labels


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Images of one dataset.

    Attributes:
        dataset: Name of an entry of the suite.
        split: One of the dataset's splits; `held_out` is its validation images or, where it has none, training images
            that the few-shot sample leaves over; `few_held_out` is at most four of a class of these.
        classes: `all` classes, or the first (`base`) or second (`new`) half of the sorted labels, or a half of a half
            (`base.new`). The labels of the images selected count from 0 in that order.
        shots: Images drawn per class, over all classes before `classes` is applied; None takes the whole split.
        sampler: How they are drawn: a name in `selection.SAMPLERS`, or `file:PATH`.
    """

    dataset: str
    split: Split
    classes: str = "all"
    shots: int | None = None
    sampler: str = "coop"


def validation_of(train: Selection, all_images: bool) -> Selection:
    """The validation images of the classes of a training: all there are, or CoOp's few, `min(shots, 4)` of a class.

    Where a dataset has no validation images, they are training images that the sample leaves over; see `held_out`.
    """
    return replace(train, split="held_out" if all_images or train.shots is None else "few_held_out")


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
    labels = class_labels(dataset, shown.classes)
    names = dataset.class_names.select(labels)
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
