"""Few-shot samples in files: written as JSON lines, read from them or from CoOp's pickles.

The first line is a header, each other line an image:

    {"promptbench_sample": 1, "dataset": "eurosat", "shots": 16, "seed": 1, "sampler": "coop"}
    {"image": "AnnualCrop/AnnualCrop_2365.jpg", "label": 0, "class_name": "Annual Crop Land"}

What a file says of an image is only used to find it among the dataset's own, and to notice that it is another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from promptbench.classnames import as_read
from promptbench.config import UsageError
from promptbench.splits import Item, read_text
from promptbench.storage import unpickle
from promptbench.storage.atomic import write_atomically

VERSION = 1
"""Of the format; stands in the header."""

_HEADER = "promptbench_sample"
_LONGEST_PATH = 4096  # characters, as systems have it; what stands before them is not looked at


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
    lists = unpickle.coop_lists(path)
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
    finder, places, found = _Finder(items), dict[str, int](), list[Item]()
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
