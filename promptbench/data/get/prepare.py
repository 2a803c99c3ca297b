"""Fetch what the makers of a dataset offer, into the layout of CoOp's DATASETS.md; say how to get the rest.

A file is fetched into a temporary folder beside its place, checked, unpacked there and moved into place in one step:
whatever fails, nothing half-done stays behind.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from promptbench.config import UsageError
from promptbench.data.dataset import DatasetInfo, Download, Sources
from promptbench.data.get.download import BadArchive, fetch_url, unpack
from promptbench.data.splits import GUIDE, SPLITS, read_class_names, read_split_json


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is to be done for one dataset.

    Attributes:
        name: Its name.
        folder: Its folder below the data root.
        info: Its facts.
        sources: Where its files come from.
    """

    name: str
    folder: Path
    info: DatasetInfo
    sources: Sources

    @property
    def split_file(self) -> Path:
        """Where its split file belongs."""
        return self.folder / self.info.split_file

    def missing(self) -> list[Download]:
        """The downloads whose place is empty."""
        return [download for download in self.sources.downloads if not _is_there(self.place(download))]

    def needs_split(self) -> bool:
        """Whether its split file can be fetched and is not there."""
        return bool(self.sources.split_url) and not self.split_file.exists()

    def place(self, download: Download) -> Path:
        """What tells that a download is in place: its target, or the images where it is the whole folder."""
        return self.folder / (download.target or _first(self.info.image_folder))

    def fetches(self) -> list[str]:
        """One line per file to fetch."""
        lines = [f"{download.url} -> {self.folder / download.target}" for download in self.missing()]
        if self.needs_split():
            lines.append(f"{self.sources.split_url} -> {self.split_file}")
        return lines

    def steps(self) -> list[str]:
        """How to get by hand what is missing."""
        steps = [step.format(folder=self.folder) for step in self.sources.by_hand]
        steps += [_by_hand(download, self.folder / download.target) for download in self.missing()]
        if self.needs_split():
            steps.append(f"Get {self.info.split_file} from {self.sources.split_url} and put it at {self.split_file}.")
        return steps


def preparation(name: str, info: DatasetInfo, sources: Sources, root: Path) -> Preparation:
    """What is to be done for a dataset below a data root.

    Raises:
        UsageError: There is nothing to fetch and nothing to say.
    """
    if not (sources.downloads or sources.by_hand):
        raise UsageError(f"There is nothing to prepare for {name!r}: it names no files to get; see `list datasets`.")
    return Preparation(name=name, folder=root / _first(info.folder), info=info, sources=sources)


def check_writable(root: Path) -> None:
    """Raises UsageError unless files can be made in the data root, or else in the folder above that it is made in."""
    existing = next(place for place in (root, *root.parents) if place.exists())
    try:
        with TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsageError(
            f"The data root {root} cannot be written ({existing}: {error.strerror}); give another one with --data-root."
        ) from error


def run(todo: Preparation) -> Iterator[str]:
    """Fetches what is missing; yields one sentence per file that could not be had."""
    for download in todo.missing():
        try:
            fetch(download, todo.folder)
        except UsageError as error:
            yield str(error)
    if todo.needs_split():
        try:
            fetch_split(todo.sources.split_url, todo.split_file, todo.info)
        except UsageError as error:
            yield str(error)


def fetch(download: Download, folder: Path) -> None:
    """Puts a download in its place in a dataset's folder, whole or not at all.

    Raises:
        UsageError: It cannot be fetched, checked, unpacked or written.
    """
    target = folder / download.target
    if _is_there(target):
        raise UsageError(f"{target} is there already but lacks images; move it away, or complete it by hand.")
    if download.folder is not None and not hasattr(tarfile, "data_filter"):
        raise UsageError("Only Python 3.10.12, 3.11.4, 3.12 and later unpack archives safely; get another one.")
    with _workplace(target.parent) as work:
        got = work / "download"
        fetch_url(download.url, got, download.md5)
        try:
            got = _unpacked(got, download, work)
        except BadArchive as error:
            raise UsageError(f"The archive {download.url} {error}; nothing of it was kept.") from error
        os.rename(got, target)


def _unpacked(got: Path, download: Download, work: Path) -> Path:
    """The folder, or the plain file, that a fetched file is about."""
    if download.folder is None:
        return got
    if download.inner:
        outer, _, name = download.inner.rpartition("/")
        unpack(got, outer, work / "outer")
        got.unlink()  # room for what comes
        got = work / "outer" / name
        if not got.is_file():
            raise BadArchive(f"holds no file {download.inner!r}")
    unpack(got, download.folder, work / "unpacked")
    return work / "unpacked"


def fetch_split(url: str, path: Path, info: DatasetInfo) -> None:
    """Puts a split file in its place if it is what the dataset's facts say.

    Raises:
        UsageError: It cannot be fetched or written, or is another file.
    """
    with _workplace(path.parent) as work:
        got = work / path.name
        fetch_url(url, got)
        try:
            _check_split(got, info)
        except UsageError as error:
            reason = str(error).replace(str(got), "it")
            raise UsageError(f"What {url} gives is not {path.name} ({reason.rstrip('.')}); get it by hand.") from error
        os.replace(got, path)


def _check_split(path: Path, info: DatasetInfo) -> None:
    """Raises UsageError where a split file or a list of class names is not what the dataset's facts say."""
    if info.split_file.endswith(".json"):
        splits = read_split_json(path)
        classes = len({item.label for item in splits["train"]})
        sizes = tuple(len(splits[split]) for split in SPLITS)
    else:
        classes = len(read_class_names(path))
        sizes = info.images
    if classes < info.classes or (any(info.images) and sizes != info.images):
        raise UsageError(f"it has {classes:,} classes and {sum(sizes):,} images, not those of {info.title}.")


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A temporary folder in `parent`, which is made if need be and then does not stay behind empty."""
    made = not parent.exists()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".promptbench-", dir=parent) as work:
            yield Path(work)
    except OSError as error:
        raise UsageError(f"Cannot write to {parent}: {error.strerror or error}.") from error
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty: all went well
                parent.rmdir()


def _by_hand(download: Download, target: Path) -> str:
    if download.folder is None:
        return f"Get {download.url} and put it at {target}."
    outer = f" and {download.inner} in it" if download.inner else ""
    what = f"its folder {download.folder!r}" if download.folder else "its content"
    return f"Get {download.url}, unpack it{outer}, and make {what} the folder {target}."


def guide(todo: Preparation, root: Path) -> list[str]:
    """The numbered steps by hand, and how to see that all is there."""
    first = "By hand:" if todo.sources.downloads else "torchvision does not serve it; by hand:"
    last = f"See what is still missing: promptbench data check {todo.name} --data-root {root} (layout: {GUIDE})."
    steps = [*todo.steps(), last]
    return [first, *(f"  {number}. {step}" for number, step in enumerate(steps, start=1))]


def _first(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else value[0]


def _is_there(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))
