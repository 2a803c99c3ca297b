"""Readers of split definitions: CoOp's split JSON, folders of class folders, lists of class names.

They turn files into `Item`s and refuse what is malformed with a sentence; no image is opened.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import re
import struct
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from promptbench.config import UsageError, text_of
from promptbench.data.listing import Listing, image_files, scan

SPLITS = ("train", "val", "test")

_SLASHES = re.compile(r"[/\\]")
_ROOTED = re.compile(r"[/\\]|[A-Za-z]:")

_LARGEST_MATLAB = 2**23  # bytes of all variables; the annotations of public datasets take up to three million
_COMPRESSED = 15  # kind of an element of a MATLAB file
_HEADS = {b"\0\1IM": "<II", b"\1\0MI": ">II"}
"""Kind and size of an element, by the end of the file's header, in the one version of the format that compresses."""

GUIDE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
"""Describes the folders below a data root, and links the split files."""

log = logging.getLogger(__name__)
SPLIT_SEED = 1
"""Seeds the one generator that shuffles the classes, in the order of their labels."""
TRAIN_SHARE, VAL_SHARE = 0.5, 0.2
Splits: TypeAlias = "dict[str, list[Item]]"
Annotated: TypeAlias = "tuple[Sequence[Item], Sequence[Item] | None]"
"""Labelled images, and the makers' test set apart, or None if they have none."""


class Item(NamedTuple):
    """One labelled image.

    Attributes:
        image: Its path inside the dataset's image folder, with "/", as the split file spells it.
        label: Its class, from 0.
        class_name: The name of that class as the split file spells it ("_" kept).
    """

    image: str
    label: int
    class_name: str


def read_split_json(path: Path) -> dict[str, list[Item]]:
    """The splits of a CoOp-style file `{"train": [[path, label, class name], ...], "val": ..., "test": ...}`, in file
    order.

    Raises:
        UsageError: The file cannot be read, is not of that form, has a path that leaves the dataset's folder, labels
            that are
            not 0, 1, 2, ..., a label without training images, or two names for one label. "val" may be missing.
    """
    content = read_text(path)
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The split file {path} is not valid JSON ({error}); get it again.") from error
    if not isinstance(raw, dict) or not {"train", "test"} <= raw.keys():
        raise UsageError(f'The split file {path} must be an object with the lists "train", "val" and "test".')
    splits = {split: _items(raw.get(split, []), f"{path}, {split!r}") for split in SPLITS}
    check_labels(splits, where=str(path))
    return splits


def _items(rows: Any, where: str) -> list[Item]:
    if not isinstance(rows, list):
        raise UsageError(f"{where}: expected a list of [path, label, class name].")
    return [_item(row, f"{where}, entry {index}") for index, row in enumerate(rows)]


def _item(row: Any, where: str) -> Item:
    fits = (
        isinstance(row, list)
        and len(row) == 3
        and all(type(value) is kind for value, kind in zip(row, (str, int, str), strict=True))
    )
    if not fits:
        raise UsageError(
            f"{where}: expected [path, label, class name] with an integer label, not {json.dumps(row)[:80]}."
        )
    if not _stays_inside(row[0]):
        raise UsageError(f"{where}: the path {row[0]!r} must stay inside the dataset's folder: relative, without '..'.")
    return Item(*row)


def _stays_inside(path: str) -> bool:
    return bool(path) and "\0" not in path and not _ROOTED.match(path) and ".." not in _SLASHES.split(path)


def check_labels(splits: Mapping[str, Sequence[Item]], where: str) -> None:
    """Raises UsageError unless the training labels are 0, 1, ..., n - 1 with one name each, and no split has others."""
    names: dict[int, str] = {}
    for split in SPLITS:
        known = set(names)
        for item in splits[split]:
            if names.setdefault(item.label, item.class_name) != item.class_name:
                raise UsageError(
                    f"{where}: label {item.label} has two names, {names[item.label]!r} and {item.class_name!r}."
                )
        if split != "val" and not splits[split]:
            raise UsageError(f"{where}: there are no {split} images.")
        if split == "train" and set(names) != set(range(len(names))):
            gap = min(set(range(len(names))) - set(names))
            raise UsageError(f"{where}: the training labels must be 0, 1, 2, ... without gaps; {gap} has no image.")
        if split != "train" and set(names) != known:
            raise UsageError(f"{where}: label {min(set(names) - known)} of {split!r} has no training image.")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; UsageError where it cannot be read."""
    try:
        return text_of(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"Cannot read {path}: it is not UTF-8 text.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"Cannot read {path}: {reason}.") from error


def read_rows(path: Path, words: int) -> list[list[str]]:
    """The words of each line that is not empty; UsageError where one has fewer than `words`."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        row = line.split()
        if 0 < len(row) < words:
            raise UsageError(f"{path}, line {number}: expected at least {words} words, not {line.strip()!r}.")
        if row:
            rows.append(row)
    return rows


def read_matlab(path: Path, variable: str) -> list[Any]:
    """An array of a MATLAB file, without axes of length 1, as a list."""
    from numpy import atleast_1d
    from scipy.io import loadmat  # comes with scikit-learn

    try:
        _check_unpacked(path.read_bytes())
        return list(atleast_1d(loadmat(path, squeeze_me=True)[variable]))
    except Exception as error:  # its parser raises anything on damaged files
        raise UsageError(
            f"Cannot read {variable!r} from {path}: {type(error).__name__}; get the file again."
        ) from error


def _check_unpacked(data: bytes) -> None:
    """Raises ValueError where the variables of a MATLAB file, each of which is compressed by itself, are very large."""
    head = _HEADS.get(data[124:128])
    room, place = _LARGEST_MATLAB, 128
    while head and place + 8 <= len(data) and room > 0:
        kind, size = struct.unpack_from(head, data, place)
        if kind == _COMPRESSED:
            room -= len(zlib.decompressobj().decompress(data[place + 8 : place + 8 + size], room))
        else:
            room -= size
        place += 8 + size
    if room <= 0:
        raise ValueError(f"its variables take more than {_LARGEST_MATLAB} bytes")


def read_class_names(path: Path) -> dict[str, str]:
    """Folder name to class name from lines `folder class name`; a tab between the two allows folders with blanks."""
    names: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        folder, _, name = (part.strip() for part in line.strip().partition("\t" if "\t" in line.strip() else " "))
        if not name:
            raise UsageError(f"{path}, line {number}: expected a folder and its class name, not {line.strip()!r}.")
        if names.setdefault(folder, name) != name:
            raise UsageError(
                f"{path}, line {number}: the folder {folder!r} already has the class name {names[folder]!r}."
            )
    return names


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted by code point, hidden ones left out; none if it does not exist."""
    return sorted(entry.name for entry in scan(folder) if entry.is_dir() and not entry.name.startswith("."))


def check_name(folder: Path, name: str) -> None:
    """Raise a UsageError where a name in `folder` is no text: bytes that this locale's encoding cannot read."""
    if name.encode(errors="replace").decode() != name:
        raise UsageError(
            f"The name {os.fsencode(name)!r} in {folder} is no {sys.getfilesystemencoding()}, as this locale has names "
            "of files; rename it, or set PYTHONUTF8=1 if it is UTF-8."
        )


def check_names(folder: Path, names: Sequence[str]) -> None:
    """`check_name` of many."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        for name in names:
            check_name(folder, name)


def image_tree(folder: Path, above: tuple[str, ...] = ()) -> list[str]:
    """The image files anywhere below `folder`, as paths from it, folder by folder, both sorted.

    Raises:
        UsageError: A link leads back to one of the folders `above`.
    """
    here = os.path.realpath(folder)
    if here in above:
        raise UsageError(f"The folder {folder} is a link to a folder that it lies in; remove the link.")
    files, _ = image_files(folder)
    for name in subfolders(folder):
        files += [f"{name}/{file}" for file in image_tree(folder / name, (*above, here))]
    return files


def class_folder_items(
    base: Path, prefix: str, labels: Mapping[str, int], name_of: Callable[[str], str], ignored: Collection[str] = ()
) -> list[Item]:
    """The images under `base/prefix/<class folder>/`, class by class, both sorted; paths are relative to `base`.

    Folders in `ignored` are passed over.

    Raises:
        UsageError: A class folder is not in `labels`, or holds no image, or a name is no text.
    """
    items: list[Item] = []
    listing = Listing(base / prefix)
    with many_objects():
        for folder in subfolders(base / prefix):
            if folder in ignored:
                continue
            check_name(base / prefix, folder)
            if folder not in labels:
                raise UsageError(
                    f"The class folder {base / prefix / folder} is not among the training classes; rename it."
                )
            files = listing.images(folder)
            if not files:
                raise UsageError(f"The class folder {base / prefix / folder} holds no images; fill it or remove it.")
            check_names(base / prefix / folder, files)
            place = f"{prefix}/{folder}" if prefix else folder
            paths = [f"{place}/{file}" for file in files]
            items += map(Item, paths, repeat(labels[folder]), repeat(name_of(folder)))
    listing.remember()
    return items


@contextmanager
def many_objects() -> Iterator[None]:
    """Within it, where a million objects are made that stay, Python does not look again and again for ones that do not,
    which takes longer than to make them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class GeneratedSplit(NamedTuple):
    """Three splits, and what made them, in words."""

    splits: Splits
    source: str


def generate_split(annotated: Callable[[], Annotated], where: str, split_file: str) -> GeneratedSplit:
    """The splits of a dataset that has no split file, by the rule that fits what its makers give; warns of it.

    Args:
        annotated: Reads what they give.
        where: The dataset and its folder, to begin a sentence with.
        split_file: The name of the file that is not there.

    Raises:
        UsageError: The annotations are not as expected, or a class has too few images.
    """
    try:
        items, test = annotated()
    except UsageError:
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:  # lists that do not fit each other
        raise UsageError(
            f"{where}: the makers' annotations are not as expected ({type(error).__name__}: {error}); "
            f"get them again, or {split_file}."
        ) from error
    if test is None:
        splits, rule = cut_classes(items, where), "50/20/30 % of each class"
    else:
        splits, rule = cut_val(items, test, where), "makers' test set, 20 % of each training class as val"
    check_labels(splits, where=where)
    source = f"generated ({rule}, seed {SPLIT_SEED})"
    log.warning(
        "%s has no %s: its split is %s, and figures on it do not compare with published ones. The file: %s",
        where,
        split_file,
        source,
        GUIDE,
    )
    return GeneratedSplit(splits, source)


def cut_classes(items: Sequence[Item], where: str) -> Splits:
    """50 % train, 20 % val and 30 % test of each class, shuffled; shares are rounded, half to even."""
    splits: Splits = {"train": [], "val": [], "test": []}
    for members in _shuffled(items):
        train, val = round(len(members) * TRAIN_SHARE), round(len(members) * VAL_SHARE)
        if not train or train + val >= len(members):
            raise _too_few(members, where)
        splits["train"] += members[:train]
        splits["val"] += members[train : train + val]
        splits["test"] += members[train + val :]
    return splits


def cut_val(items: Sequence[Item], test: Sequence[Item], where: str) -> Splits:
    """The first fifth of each class, shuffled and rounded half to even, as val; the test set as it is."""
    splits: Splits = {"train": [], "val": [], "test": list(test)}
    for members in _shuffled(items):
        val = round(len(members) * VAL_SHARE)
        if not val:
            raise _too_few(members, where)
        splits["val"] += members[:val]
        splits["train"] += members[val:]
    return splits


def _shuffled(items: Sequence[Item]) -> list[list[Item]]:
    """The items of each class, in label order; the order within a class is drawn."""
    generator = random.Random(SPLIT_SEED)
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return [generator.sample(groups[label], len(groups[label])) for label in sorted(groups)]


def _too_few(members: Sequence[Item], where: str) -> UsageError:
    return UsageError(
        f"{where}: the class {members[0].class_name!r} has {len(members)} images, too few to be split; "
        "complete the dataset or get its split file."
    )
