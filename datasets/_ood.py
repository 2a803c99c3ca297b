"""What the sets of out-of-distribution images share: a folder of images, in folders or not, none of a known class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from promptbench.config import UsageError, path_of, text_of
from promptbench.data.dataset import Dataset, Item
from promptbench.data.selection import own_items
from promptbench.data.splits import image_tree

THING = "thing"


class OutOfDistribution(Dataset):
    """Images of no class that matters: all have the label 0 and the name "thing"."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        """Which of the images are taken."""

        listing: str = field(
            default="",
            metadata={
                "source": "a list such as OpenOOD's test_openimage_o.txt, from the current folder or a data root; else "
                "all images",
                "later": True,
            },
        )

    def read(self, split: str) -> Sequence[Item]:
        """Test images only: all below the image folder, sorted, or those that `listing` names, in its order."""
        if split != "test":
            return []
        files = image_tree(self.image_root)
        if not files:
            raise UsageError(f"The dataset {self.name!r} has no images below {self.image_root}; extract them there.")
        items = [Item(file, 0, THING) for file in files]
        return self._listed(items) if self.config.listing else items

    def _listed(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that the list names: a line each, a path and a label that says nothing."""
        path = self._listing
        try:
            lines = text_of(path).splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"The dataset {self.name!r}: the list {path} cannot be read as text ({error}).") from error
        named = [Item(line.rpartition(" ")[0] or line, 0, THING) for line in lines if line.strip()]
        return own_items(named, items, lambda index: f"{path}, image {index + 1}")

    @property
    def _listing(self) -> Path:
        given = path_of(self.config.listing)
        return next((place for place in (given, *(root / given for root in self.roots)) if place.exists()), given)
