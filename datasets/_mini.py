"""What the rendered datasets of the mini suite share: images drawn at first use and kept in the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from PIL import Image

from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.data.dataset import Dataset, Item
from promptbench.storage.atomic import write_atomically
from promptbench.storage.cache import CLAIMS, cache_dir, hold, make_room, rendered_name, touch
from promptbench.storage.claims import alone

log = logging.getLogger(__name__)

_DRAWING = (
    "drawing.py",
    "render.py",
    "scene.py",
    "sets.py",
    "shapes.npz",
    "shapes.py",
    "styles.py",
    "textures.py",
    "words.py",
)  # the files of promptbench.mini that decide the pixels


class MiniDataset(Dataset):
    """A rendered dataset; the module's name without `mini_` is the name of its set in `promptbench.mini.sets`.

    Attributes:
        splits: The splits it has.
    """

    in_memory: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        """Which of the endless variants of a set is drawn."""

        render_seed: int = field(
            default=1, metadata={"source": "ours; seeds the images that are drawn, not which of them are shots"}
        )

        swapped: bool = field(
            default=False,
            metadata={
                "source": "ours; whether the halves of the classes change places, so that new ones are base",
                "later": True,
            },
        )

        def __post_init__(self) -> None:
            if self.render_seed < 0:
                raise UsageError(f"'render_seed' takes an integer from 0 on, not {self.render_seed}.")

    @property
    def set_name(self) -> str:
        """Its name in `promptbench.mini.sets.SETS`."""
        return type(self).__module__.rpartition(".")[2].removeprefix("mini_")

    @cached_property
    def class_names(self) -> ClassNames:
        """The class names of the set."""
        from promptbench.mini.sets import SETS

        names = SETS[self.set_name].class_names
        first = self._first
        return ClassNames((*names[first:], *names[:first]), template=self.template)

    @cached_property
    def _first(self) -> int:
        """The class of the set that comes first: with swapped halves the first new one."""
        from promptbench.mini.sets import SETS

        return (len(SETS[self.set_name].class_names) + 1) // 2 if self.config.swapped else 0

    def read(self, split: str) -> Sequence[Item]:
        """One item per rendered image, class after class; its path is `<split>/<index>`, as it was drawn."""
        if split not in self.splits:
            return []
        names = self.class_names
        labels = (self._drawn_labels(split) - self._first) % len(names)
        order = np.argsort(labels, kind="stable")
        return [Item(f"{split}/{index:06d}", int(labels[index]), names[labels[index]]) for index in order]

    def _drawn_labels(self, split: str) -> np.ndarray:
        """The labels (n,) of a split, class after class as it is drawn; nothing is drawn to know them."""
        from promptbench.mini.sets import SETS, MiniSet

        of = SETS[self.set_name]
        if type(of) is not MiniSet:  # one that is read tells how many images a class has
            return self._arrays(split)[1]
        return np.repeat(np.arange(len(of.class_names)), of.per_class[split])

    def array(self, split: str) -> np.ndarray:
        """All images of a split, as they were drawn: uint8 (n, 48, 48, 3), read-only."""
        return self._arrays(split)[0]

    def open(self, item: Item) -> Image.Image:
        """The rendered image in RGB, 48 x 48."""
        split, _, index = item.image.partition("/")
        return Image.fromarray(np.ascontiguousarray(self.array(split)[int(index)]))

    def identity(self, item: Item) -> str:
        """The stream that the image is drawn from: set, renderer, seed, split and index."""
        return f"mini/{self.set_name}/{renderer_digest()}/{self.config.render_seed}/{item.image}"

    def split_digest(self) -> str:
        """SHA-256, in hex, of the items and of the stream that their images are drawn from."""
        stream = self.identity(Item("", 0, ""))
        return hashlib.sha256(f"{stream}{super().split_digest()}".encode()).hexdigest()

    def check(self, items: Iterable[Item]) -> None:
        """Nothing can be missing: what is not in the cache is drawn."""

    def _arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        folder = cache_dir() / "rendered" / renderer_digest()
        return _rendered(folder, self.set_name, split, self.config.render_seed)


@cache
def renderer_digest() -> str:
    """16 hex digits of SHA-256 over what decides the pixels: no stale image outlives a change of the renderer."""
    import promptbench.mini

    folder = Path(promptbench.mini.__path__[0])
    digests = [hashlib.sha256((folder / name).read_bytes()).digest() for name in _DRAWING]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


@cache
def _rendered(folder: Path, set_name: str, split: str, render_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split, from the folder or else from the renderer."""
    from promptbench.mini.sets import images as render

    stem = f"{set_name}-seed{render_seed}-{split}"
    images_path, labels_path = folder / f"{stem}-images.npy", folder / f"{stem}-labels.npy"
    name = rendered_name(folder.name, stem)
    hold(name)  # the images are mapped, not read
    cached = _load(images_path, labels_path)
    if cached is not None:
        touch(images_path)
        return cached
    with alone(cache_dir() / CLAIMS, name):
        cached = _load(images_path, labels_path)  # another process may just have drawn them
        if cached is not None:
            return cached
        log.info("Rendering %s, %s.", set_name, split)
        images, labels = render(set_name, split, render_seed)
        images.flags.writeable = labels.flags.writeable = False
        try:
            _save(labels_path, labels)
            _save(images_path, images)
        except OSError as error:  # such as for want of room
            log.warning("rendered images cannot be kept in %s (%s)", folder, error.strerror or error)
    make_room()
    return _load(images_path, labels_path) or (images, labels)


def _load(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The cached pair, the images mapped from disk, or None where it is not complete or damaged."""
    try:
        images, labels = np.load(images_path, mmap_mode="r"), np.load(labels_path)
    except (OSError, ValueError, EOFError):
        return None
    return (images, labels) if len(images) == len(labels) else None


def _save(path: Path, array: np.ndarray) -> None:
    def write(file: BinaryIO) -> None:
        np.save(file, array, allow_pickle=False)

    write_atomically(path, write)
