"""Where a dataset lies below the data roots.

Laboratories keep the same images in different trees. A dataset names the folders that it may lie in and the image
folders that it may have there; what is found first counts, in the order of the roots, then of the folders. The split
file and the images may lie in different roots, so that a split file can stand beside images that cannot be written to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from promptbench.config import UsageError
from promptbench.data.listing import is_image
from promptbench.data.splits import GUIDE


@dataclass(frozen=True)
class Layout:
    """The places of one dataset.

    Attributes:
        roots: The data roots.
        folders: Folders below a root that may hold the dataset, the usual one first.
        split_file: The file in such a folder that defines its split, or "".
        image_folders: Folders in such a folder that image paths may start from; "" is the folder itself.
    """

    roots: tuple[Path, ...]
    folders: tuple[str, ...]
    split_file: str
    image_folders: tuple[str, ...]

    @property
    def places(self) -> list[Path]:
        """Every folder that may hold the dataset."""
        return [root / folder for root, folder in product(self.roots, self.folders)]

    def find(self) -> Path | None:
        """The first place that has the split file or else images."""
        with_split = (place for place in self.places if self.split_file and (place / self.split_file).exists())
        with_images = (place for place in self.places if self._images(place))
        return next(with_split, None) or next(with_images, None)

    def image_root(self, folder: Path) -> Path:
        """The folder that image paths start from: in `folder` or else in another place that has images."""
        found = next(filter(None, map(self._images, (folder, *self.places))), None)
        return found or folder / self.image_folders[0]

    @staticmethod
    def first(names: Sequence[str], places: Iterable[Path]) -> Path | None:
        """The first file of one of these names, place by place."""
        files = (place / name for place, name in product(places, names))
        return next(filter(Path.is_file, files), None)

    def looked_for(self) -> list[str]:
        """What `find` looks for in each root, as paths from there."""
        names = [*filter(None, [self.split_file]), *self.image_folders]
        return list(dict.fromkeys(Path(folder, name).as_posix() for folder, name in product(self.folders, names)))

    def not_found(self, who: str, url: str) -> str:
        """The sentence for where `find` finds nothing: every place looked at, and the way out."""
        way_out = "with --data-root or in the environment variable PROMPTBENCH_DATA."
        way_out += f" Its images are at {url}; layout and split files: {GUIDE}." if url else ""
        if not self.roots:
            return f"{who} needs a data root: give the folder that holds {self.folders[0]!r} {way_out}"
        roots = ", ".join(f"{root}{'' if root.is_dir() else ' (not a folder)'}" for root in self.roots)
        first, *others = self.looked_for()
        also = f" and there for {', '.join(others)}" if others else ""
        return (
            f"{who} was not found: looked for {first} in {roots}{also}; put it there or give another folder {way_out}"
        )

    def _images(self, place: Path) -> Path | None:
        """The image folder in a place; the place itself only where none has a usual name, not even an empty one."""
        named = [place / name for name in self.image_folders if name and (place / name).is_dir()]
        return next(filter(_has_content, named or ([place] if "" in self.image_folders else [])), None)


def _has_content(folder: Path) -> bool:
    """Whether a folder holds folders or images; it reads no further than the first."""
    try:
        with os.scandir(folder) as entries:
            return any(not entry.name.startswith(".") and (entry.is_dir() or is_image(entry.name)) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(f"Cannot read the folder {folder}: {error.strerror}.") from error
