"""What the sets of out-of-distribution images share: a folder of images, in folders or not, none of a known class."""

from __future__ import annotations

from collections.abc import Sequence

from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, Item
from promptbench.data.splits import image_tree


class OutOfDistribution(Dataset):
    """Images of no class that matters: all have the label 0 and the name "thing"."""

    def read(self, split: str) -> Sequence[Item]:
        """Test images only: all below the image folder, sorted."""
        if split != "test":
            return []
        files = image_tree(self.image_root)
        if not files:
            raise UsageError(f"The dataset {self.name!r} has no images below {self.image_root}; extract them there.")
        return [Item(file, 0, "thing") for file in files]
