"""The contract of a dataset: its facts, its splits, its images.

A dataset is one module of `promptbench.datasets` (or a plugin) with one class. Most are facts only: the base class
reads a CoOp-style split file (KaiyangZhou/CoOp, DATASETS.md) below a data root or, where there is none, splits what the
makers' annotations say. Data roots are only read, never written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from promptbench import registry
from promptbench.config import UsageError, build, path_of, unknown
from promptbench.data.class_names import GENERIC_TEMPLATE, ClassNames, read_names, refuse_same_names, renamed
from promptbench.data.decode import find_unreadable, open_image
from promptbench.data.layout import Layout
from promptbench.data.splits import (
    GUIDE,
    SPLITS,
    Annotated,
    Item,
    Splits,
    class_folder_items,
    generate_split,
    read_split_json,
    subfolders,
)
from promptbench.storage.atomic import read_checked, write_checked
from promptbench.storage.cache import cache_dir

__all__ = ["Dataset", "DatasetInfo", "Download", "Item", "Sources", "data_roots", "open_dataset", "open_image"]

_KINDS = (str, int, str)  # of the parts of an item
_LARGEST_LABEL = 2**31
_ROWS = 10_000  # items that are made JSON of at a time
_SHOWN = 3  # missing files named in an error


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file that the makers of a dataset offer to everyone: an archive, or a file that is taken as it is.

    Attributes:
        url: Where it is.
        md5: Its checksum, as torchvision states it, or "" where nobody states one.
        inner: The path of an archive inside this archive that holds what is wanted, or "".
        folder: The folder in the archive that is wanted; "" for all of it, None for a file that is no archive.
        target: What that becomes in the dataset's folder; "" for that folder itself.
    """

    url: str
    md5: str = ""
    inner: str = ""
    folder: str | None = ""
    target: str


@dataclass(frozen=True, kw_only=True)
class Sources:
    """How to get a dataset.

    Attributes:
        downloads: What `promptbench data prepare` fetches.
        split_url: Where CoOp's split file, or the class names where the folders are the split, is to be had.
        by_hand: What nobody offers for download without an account, or at all, in steps; `{folder}` stands for the
            dataset's folder.
    """

    downloads: tuple[Download, ...] = ()
    split_url: str = ""
    by_hand: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a dataset without reading it.

    Attributes:
        title: Its name as tables print it.
        classes: How many classes it has; 0 where the user's data decides.
        images: How many images train, val and test have, as counted or in the papers; all 0 where nobody says.
        template: The words around a class name for zero-shot CLIP.
        folder: Its folder below a data root, or all that it may lie in, CoOp's first.
        split_file: The file in that folder that defines the split, or the classes where the folders are the split.
        image_folder: The folder in `folder` that image paths start from, or all that may be; "" for `folder` itself.
        url: Where to get it.
        paper: Who made it.
        license: Its terms as its makers state them, or "".
    """

    title: str
    classes: int
    images: tuple[int, int, int] = (0, 0, 0)
    template: str | tuple[str, ...] = GENERIC_TEMPLATE
    folder: str | tuple[str, ...] = ""
    split_file: str = ""
    image_folder: str | tuple[str, ...] = ""
    url: str = ""
    paper: str = ""
    license: str = ""


class Dataset:
    """A dataset; a subclass says `info`, overrides `annotated` where class folders do not tell the labels, and `read`
    where there is no split JSON.

    Attributes:
        info: Its facts.
        in_memory: Whether its images need no decoding, so that no process is worth while to load them.
        distinct_names: Whether two classes that read the same are refused. False only where the field's own list has
            such pairs.
        renamed: Class folder to class name, where they differ, for a split made from class folders.
        ignored: Folders beside the class folders that are no class.
        sources: Where its files come from.
        by_files: Whether its images are files, as long as no subclass says otherwise what an image is known by.
        usual_protocol: The protocol that it is run under where none is named; "" for the one that is usual elsewhere.
        config: Its settings.
        roots: The data roots it looks in, first hit wins.
        skip_unreadable: Whether images that cannot be read are left out; otherwise they are an error.
    """

    skip_unreadable: bool = False

    plugin_kind: ClassVar[str] = "dataset"
    in_memory: ClassVar[bool] = False
    info: ClassVar[DatasetInfo]
    distinct_names: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {}
    ignored: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[Sources] = Sources()

    by_files: ClassVar[bool] = True
    usual_protocol: ClassVar[str] = ""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """What every dataset can be told; others have more settings."""

        class_names: str | tuple[str, ...] | Mapping[str, str] = field(
            default="",
            metadata={
                "source": "other names of its classes, such as synonyms: a file, one a line in their order, or YAML "
                "with lines `old name: new name`; '' for its own",
                "later": True,
                "renames": True,
            },
        )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.by_files = cls.identity is Dataset.identity

    def __init__(self, config: Any = None, roots: Sequence[Path] = (), alias: str = "") -> None:
        """Remembers where to look; nothing is read yet.

        Args:
            config: An instance of `Config`; its defaults without one.
            roots: The data roots.
            alias: The name in results, for several instances of one class.
        """
        self.config: Any = config if config is not None else self.Config()
        self.roots = tuple(Path(root) for root in roots)
        self._alias = alias
        self._items: dict[str, tuple[Item, ...]] = {}
        self._split_source = ""

    @property
    def plugin(self) -> type[Dataset]:
        """Its class, also where something stands before it."""
        return type(self)

    @property
    def name(self) -> str:
        """The name on the command line and in results: the module's, or the alias given."""
        return self._alias or type(self).__module__.rpartition(".")[2]

    @cached_property
    def layout(self) -> Layout:
        """Where it may lie below the data roots."""
        return Layout(self.roots, _all(self.info.folder), self.info.split_file, _all(self.info.image_folder))

    @cached_property
    def folder(self) -> Path:
        """Its folder on disk: the first below the data roots that has its split file or, if none has, its images.

        Raises:
            UsageError: No root is given, or none has it.
        """
        found = self.layout.find()
        if found:
            return found
        raise UsageError(self.layout.not_found(f"The dataset {self.name!r}", self.info.url))

    @cached_property
    def image_root(self) -> Path:
        """The folder that `Item.image` starts from."""
        return self.layout.image_root(self.folder)

    def read(self, split: str) -> Sequence[Item]:
        """The items of a split from disk, in the order that sampling relies on; called once per split."""
        if not self._items:
            path = self.layout.first([self.info.split_file], [self.folder])
            self._split_source = self.info.split_file
            splits = read_split_json(path) if path else self._generate()
            self._items = {key: tuple(items) for key, items in splits.items()}
        return self._items[split]

    @property
    def split_source(self) -> str:
        """What its split comes from: the name of the split file, `generated (rule, seed)`, or `its own` where folders
        or lists of its makers are the split."""
        self.items("test")
        return self._split_source or "its own"

    @property
    def split_made(self) -> str:
        """How its images were shared out among train, val and test, where the user should hear of it; "" otherwise."""
        return ""

    def annotated(self) -> Annotated:
        """What the makers say, to be split where there is no split file: labelled images, and their test set apart, or
        None if they have none. Here: the images of the class folders, sorted, labelled in sorted order of the folders.

        Raises:
            UsageError: An annotation is missing or malformed.
        """
        folders = [folder for folder in subfolders(self.image_root) if folder not in self.ignored]
        labels = {folder: label for label, folder in enumerate(folders)}
        names = {folder: self.renamed.get(folder, folder) for folder in folders}
        return class_folder_items(self.image_root, "", labels, names.__getitem__, ignored=self.ignored), None

    def annotation(self, *names: str, places: Iterable[Path] = ()) -> Path:
        """A file by the makers, under one of its usual names, in the dataset's folder or another of its places.

        Raises:
            UsageError: It is nowhere.
        """
        places = list(dict.fromkeys([self.folder, *self.layout.places, *places]))
        found = self.layout.first(names, places)
        if found:
            return found
        lacks = names[0]
        if lacks != self.info.split_file and not self.layout.first([self.info.split_file], places):
            lacks = f"{self.info.split_file} or, to make its split, {lacks}"
        looked = ", ".join(str(place) for place in places if place.is_dir())
        raise UsageError(f"The dataset {self.name!r} lacks {lacks} (looked in {looked}); where to get it: {GUIDE}.")

    def _generate(self) -> Splits:
        where = f"The dataset {self.name!r} in {self.folder}"
        splits, self._split_source = generate_split(self.annotated, where, self.info.split_file)
        return splits

    def items(self, split: str) -> list[Item]:
        """The items of "train", "val" or "test", in the order of the split file; none where there is no such split."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if split not in self._items:
            self._items[split] = self._checked(self.read(split), split)
        return list(self._items[split])

    def _checked(self, found: Iterable[Item], split: str) -> tuple[Item, ...]:
        """What `read` has given; UsageError where that is no list of items, as it may be in a dataset of one's own."""
        items = tuple(found) if isinstance(found, Iterable) else (found,)
        if _are_items(items):
            return items
        for item in items:
            if not isinstance(item, Item) or tuple(map(type, item)) != _KINDS or not 0 <= item.label <= _LARGEST_LABEL:
                raise UsageError(
                    f"The dataset {self.name!r} has {repr(item)[:100]} among the items of {split!r}; give each image "
                    "as an Item of a path, a label from 0 on and the name of the class."
                )
        return items

    def few_shot_pool(self, split: str, sampler: str) -> list[Item]:
        """The items that a sampler of `selection.SAMPLERS` draws the few-shot sample of a split from: the split."""
        return self.items(split)

    @cached_property
    def class_names(self) -> ClassNames:
        """The class names in label order, from the training items (from the test items where there are no others),
        with the dataset's template.

        Raises:
            UsageError: Two of them read the same in a prompt.
        """
        by_label = {item.label: item.class_name for item in self.items("train") or self.items("test")}
        plugin = self.plugin.__module__.rpartition(".")[2]
        names = ClassNames([by_label[label] for label in sorted(by_label)], self.template, plugin)
        if self.distinct_names:
            refuse_same_names(names, f"The dataset {self.name!r}")
        return names

    @cached_property
    def names_shown(self) -> ClassNames:
        """The class names that prompts are made of, in training and evaluation: its own, or those of its settings.

        Raises:
            UsageError: Those do not fit its classes, or two of them read the same in a prompt.
        """
        given = [getattr(self.config, name) for name in _renaming(self.config)]
        if not any(given):
            return self.class_names
        where = f"The dataset {self.name!r}, class_names"
        names = renamed(self.class_names, given[0], where)
        if self.distinct_names:
            refuse_same_names(names, where)
        return names

    @property
    def template(self) -> str | tuple[str, ...]:
        """The words around a class name."""
        return self.info.template

    def open(self, item: Item) -> Image.Image:
        """The image in RGB; see `open_image`."""
        way_out = "replace the file, or leave such images out with --on-bad-image skip"
        return open_image(self.image_root / item.image, way_out)

    def class_id(self, item: Item) -> str:
        """What tells the class of an item from all others, in shifted versions of the dataset too: its name."""
        return item.class_name

    def identity(self, item: Item) -> str:
        """A key of the image's bytes: it changes whenever they may have changed."""
        path = self.image_root / item.image
        try:
            status = path.stat()
        except OSError as error:
            raise UsageError(f"Cannot read the image {path}: {error.strerror}.") from error
        return f"{path.absolute().as_posix()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"

    def unreadable(self, items: Iterable[Item]) -> list[Item]:
        """Those of the images that are missing or cannot be decoded whole, in order.

        Every image is opened, in threads, once: those found readable are remembered in the cache folder until their
        files change.
        """
        memory = cache_dir() / "readable" / f"{type(self).__module__.rpartition('.')[2]}.txt"
        return find_unreadable(list(items), self.identity, self.open, memory)

    def split_digest(self) -> str:
        """SHA-256, in hex, of what defines the splits: paths, labels and names in order, wherever the data lies."""
        digest = hashlib.sha256()
        for before, split in zip("{,,", SPLITS, strict=True):  # one JSON object, which is never whole in memory
            digest.update(f'{before}"{split}":['.encode())
            items = self.items(split)
            for start in range(0, len(items), _ROWS):
                rows = json.dumps(items[start : start + _ROWS], separators=(",", ":"))[1:-1]
                digest.update(f"{',' if start else ''}{rows}".encode())
            digest.update(b"]")
        digest.update(b"}")
        return digest.hexdigest()

    def check(self, items: Iterable[Item]) -> None:
        """Raises UsageError if images are not on disk: how many, the first few, and where they should be."""
        items = list(items)
        root = os.fspath(self.image_root)
        missing = [item.image[:200] for item in items if not os.path.isfile(os.path.join(root, item.image))]
        if missing:
            first = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            source = f" from {self.info.url}" if self.info.url else ""
            raise UsageError(
                f"The dataset {self.name!r} lacks {len(missing)} of {len(items)} images that its split names: "
                f"{first} (looked in {root}); complete the folder{source}."
            )


def _are_items(found: tuple[Any, ...]) -> bool:
    """Whether all are items, looked at column by column, for there may be a million."""
    if set(map(type, found)) != {Item}:
        return False
    columns = [map(itemgetter(place), found) for place in range(len(_KINDS))]
    if [set(map(type, column)) for column in columns] != [{kind} for kind in _KINDS]:
        return False
    labels = set(map(itemgetter(1), found))
    return min(labels) >= 0 and max(labels) <= _LARGEST_LABEL


def _all(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def data_roots(given: Iterable[str | Path] | None = None) -> tuple[Path, ...]:
    """The data roots: those given, or else those in the environment variable PROMPTBENCH_DATA, separated like PATH."""
    roots = list(given or ())
    if not roots:
        roots = [root for root in os.environ.get("PROMPTBENCH_DATA", "").split(os.pathsep) if root]
    return tuple(path_of(root).absolute() for root in roots)


def open_dataset(
    name: str,
    options: Mapping[str, Any] | None = None,
    roots: Iterable[str | Path] | None = None,
    alias: str = "",
) -> Dataset:
    """The dataset of that name; nothing of its data is read yet.

    Args:
        name: As listed by `promptbench list datasets`.
        options: Values of its `Config`.
        roots: The data roots; without any, those of PROMPTBENCH_DATA.
        alias: Another name for it in results.

    Raises:
        UsageError: The name or an option is unknown, or a value does not fit.
    """
    cls = registry.load("datasets", name)
    config = config_of(cls, options or {}, where=f"dataset {name!r}")
    return cls(config, roots=data_roots(roots), alias=alias)


def config_of(cls: type[Dataset], options: Mapping[str, Any], where: str) -> Any:
    """The settings of a dataset from plain values; class names from a file are read, so that they and no path are part
    of the settings, wherever the file lies and whatever it says later.

    Raises:
        UsageError: An option is unknown, a value does not fit, or the file cannot be read.
    """
    config = build(cls.Config, dict(options), where)
    for name in _renaming(config):
        given = getattr(config, name)
        if isinstance(given, str) and given:
            config = replace(config, **{name: read_names(path_of(given))})
    return config


def _renaming(config: Any) -> list[str]:
    """The names of the settings that rename classes: one, or none where a dataset has its own way."""
    return [item.name for item in fields(config) if item.metadata.get("renames")]


def contents_digest(dataset: Dataset, items: Iterable[Item]) -> str:
    """SHA-256, in hex, over path, label and bytes of images, in order.

    Images of a dataset that makes them itself are known by what they are drawn from; see `Dataset.identity`.

    Raises:
        UsageError: An image is missing.
    """
    found = hashlib.sha256()
    listed = list(items)
    digests = dataset_digests(dataset, listed)
    for item, digest in zip(listed, digests, strict=True):
        found.update(f"{item.image}\0{item.label}\0{digest}\n".encode())
    return found.hexdigest()


def dataset_digests(dataset: Dataset, items: list[Item]) -> list[str]:
    """Of each image, in order, a digest of its bytes, or what stands for them."""
    if not dataset.by_files:
        return [dataset.identity(item) for item in items]
    memory = Memory(dataset.image_root)
    digests = [memory.digest(item.image) for item in items]
    memory.write()
    return digests


class Memory:
    """The digests of the files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:32]
        self.path = cache_dir() / "contents" / f"{name}.txt"
        self.known = self._read()
        self.changed = False

    def digest(self, image: str) -> str:
        """Of a file by its path below the folder; read only if it is not known as it is now."""
        path = self.folder / image
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
            before = self.known.get(image)
            if before is not None and before[1] == state:
                return before[0]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(f"Cannot read the image {path}: {error.strerror}.") from error
        self.known[image] = (digest, state)
        self.changed = True
        return digest

    def write(self) -> None:
        """Remember what is new; where the cache cannot be written it is read again next time."""
        if not self.changed:
            return
        lines = [f"{digest} {state} {image}" for image, (digest, state) in self.known.items() if "\n" not in image]
        with suppress(OSError):
            write_checked(self.path, "\n".join(lines).encode(errors="surrogateescape"))
        self.changed = False

    def _read(self) -> dict[str, tuple[str, str]]:
        """What is remembered; nothing where the file is damaged."""
        content = read_checked(self.path) or b""
        known = {}
        for line in content.decode(errors="surrogateescape").splitlines():
            digest, size, changed, inode, image = line.split(" ", 4)
            known[image] = (digest, f"{size} {changed} {inode}")
        return known
