"""The contract of a dataset: its facts, its splits, its images.

A dataset is one module of `promptbench.datasets` (or a plugin) with one class. Most are facts only: the base class
reads a CoOp-style split file (KaiyangZhou/CoOp, DATASETS.md) below a data root. Data roots are only read, never
written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from promptbench import registry
from promptbench.classnames import GENERIC_TEMPLATE, ClassNames, refuse_same_names
from promptbench.config import UsageError, build, unknown
from promptbench.splits import SPLITS, Item, read_split_json

__all__ = ["Dataset", "DatasetInfo", "Item", "data_roots", "open_dataset", "open_image"]

LAYOUT = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
"""Describes the folders below a data root, and links the split files."""

_SHOWN = 3  # missing files named in an error


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a dataset without reading it.

    Attributes:
        title: Its name as tables print it.
        classes: How many classes it has; 0 where the user's data decides.
        template: The words around a class name for zero-shot CLIP.
        folder: Its folder below a data root.
        split_file: The file in that folder that defines the split, or the classes where the folders are the split.
        image_folder: The folder in `folder` that image paths start from; "" for `folder` itself.
        url: Where to get it.
        paper: Who made it.
        license: Its terms as its makers state them, or "".
    """

    title: str
    classes: int
    template: str | tuple[str, ...] = GENERIC_TEMPLATE
    folder: str = ""
    split_file: str = ""
    image_folder: str = ""
    url: str = ""
    paper: str = ""
    license: str = ""


class Dataset:
    """A dataset; a subclass says `info` and overrides `read` where there is no split JSON.

    Attributes:
        info: Its facts.
        distinct_names: Whether two classes that read the same are refused. False only where the field's own list has
            such pairs.
        config: Its settings.
        roots: The data roots it looks in, first hit wins.
    """

    plugin_kind: ClassVar[str] = "dataset"
    info: ClassVar[DatasetInfo]
    distinct_names: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """A dataset has no settings unless it says so."""

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

    @property
    def name(self) -> str:
        """The name on the command line and in results: the module's, or the alias given."""
        return self._alias or type(self).__module__.rpartition(".")[2]

    @cached_property
    def folder(self) -> Path:
        """Its folder on disk, in the first data root that has its split file.

        Raises:
            UsageError: No root is given, or none has it.
        """
        wanted = Path(self.info.folder, self.info.split_file)
        for root in self.roots:
            if (root / wanted).exists():
                return root / self.info.folder
        way_out = "with --data-root or in the environment variable PROMPTBENCH_DATA."
        way_out += f" Its images are at {self.info.url}; layout and split files: {LAYOUT}." if self.info.url else ""
        if not self.roots:
            raise UsageError(
                f"The dataset {self.name!r} needs a data root: "
                f"give the folder that holds {self.info.folder!r} {way_out}"
            )
        looked = ", ".join(f"{root}{'' if root.is_dir() else ' (not a folder)'}" for root in self.roots)
        raise UsageError(
            f"The dataset {self.name!r} was not found: looked for {wanted} in {looked}; "
            f"put it there or give another folder {way_out}"
        )

    @property
    def image_root(self) -> Path:
        """The folder that `Item.image` starts from."""
        return self.folder / self.info.image_folder

    def read(self, split: str) -> Sequence[Item]:
        """The items of a split from disk, in the order that sampling relies on; called once per split."""
        if not self._items:
            self._items = {
                key: tuple(items) for key, items in read_split_json(self.folder / self.info.split_file).items()
            }
        return self._items[split]

    def items(self, split: str) -> list[Item]:
        """The items of "train", "val" or "test", in the order of the split file; none where there is no such split."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if split not in self._items:
            self._items[split] = tuple(self.read(split))
        return list(self._items[split])

    @cached_property
    def class_names(self) -> ClassNames:
        """The class names in label order, from the training items, with the dataset's template.

        Raises:
            UsageError: Two of them read the same in a prompt.
        """
        by_label = {item.label: item.class_name for item in self.items("train")}
        names = ClassNames([by_label[label] for label in sorted(by_label)], template=self.template)
        if self.distinct_names:
            refuse_same_names(names, f"The dataset {self.name!r}")
        return names

    @property
    def template(self) -> str | tuple[str, ...]:
        """The words around a class name."""
        return self.info.template

    def open(self, item: Item) -> Image.Image:
        """The image in RGB; see `open_image`."""
        return open_image(self.image_root / item.image)

    def identity(self, item: Item) -> str:
        """A key of the image's bytes: it changes whenever they may have changed."""
        path = self.image_root / item.image
        try:
            status = path.stat()
        except OSError as error:
            raise UsageError(f"Cannot read the image {path}: {error.strerror}.") from error
        return f"{path.absolute().as_posix()}:{status.st_size}:{status.st_mtime_ns}"

    def split_digest(self) -> str:
        """SHA-256, in hex, of what defines the splits: paths, labels and names in order, wherever the data lies."""
        rows = {split: [list(item) for item in self.items(split)] for split in SPLITS}
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def check(self, items: Iterable[Item]) -> None:
        """Raises UsageError if images are not on disk: how many, the first few, and where they should be."""
        items = list(items)
        root = self.image_root
        missing = [item.image for item in items if not os.path.isfile(root / item.image)]
        if missing:
            first = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            source = f" from {self.info.url}" if self.info.url else ""
            raise UsageError(
                f"The dataset {self.name!r} lacks {len(missing)} of {len(items)} images that its split names: "
                f"{first} (looked in {root}); complete the folder{source}."
            )


def open_image(path: Path) -> Image.Image:
    """An image file as RGB, of any mode that PIL reads.

    Converted as PIL's `convert("RGB")` does, which drops transparency, but integer grey of more than 8 bits is scaled
    to 8 (value / 257), where `convert` would clip it to white. EXIF orientation is not applied.

    Raises:
        UsageError: The file is missing, damaged, cut short or so large that PIL refuses it.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
                return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # decoders raise anything on damaged files: OSError, SyntaxError, struct.error, ...
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UsageError(f"Cannot read the image {path}: {reason.rstrip('.')}; replace the file.") from error


def data_roots(given: Iterable[str | Path] | None = None) -> tuple[Path, ...]:
    """The data roots: those given, or else those in the environment variable PROMPTBENCH_DATA, separated like PATH."""
    roots = list(given or ())
    if not roots:
        roots = [root for root in os.environ.get("PROMPTBENCH_DATA", "").split(os.pathsep) if root]
    return tuple(Path(root).expanduser().absolute() for root in roots)


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
    config = build(cls.Config, dict(options or {}), where=f"dataset {name!r}")
    return cls(config, roots=data_roots(roots), alias=alias)  # type: ignore[no-any-return]
