"""SUN397: 397 kinds of scenes.

Xiao et al., "SUN Database: Large-scale Scene Recognition from Abbey to Zoo", CVPR 2010.
Split: the makers' first partition (`Training_01`, `Testing_01`); a fifth of each training class is val, at random, by
the authors of CoOp, who also turned names such as "church/outdoor" around.
License: not known.
"""

from __future__ import annotations

from promptbench.data.dataset import Dataset, DatasetInfo, Download, Item, Sources
from promptbench.data.splits import read_rows


class SUN397(Dataset):
    """SUN397."""

    info = DatasetInfo(
        title="SUN397",
        classes=397,
        images=(15880, 3970, 19850),
        template="a photo of a {}.",
        folder=("sun397", "dataset_suite/SUN397"),
        split_file="split_zhou_SUN397.json",
        image_folder=("SUN397", ""),
        url="https://vision.princeton.edu/projects/2010/SUN/",
        paper="Xiao et al., CVPR 2010",
    )
    sources = Sources(
        downloads=(
            Download(
                url="http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                md5="8ca2778205c41d23104230ba66911c7a",
                folder="SUN397",
                target="SUN397",
            ),
        ),
        split_url="https://drive.google.com/file/d/1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq/view",
    )

    def annotated(self) -> tuple[list[Item], list[Item]]:
        """The makers' lists, of paths such as `/c/church/outdoor/sun_a.jpg`, which reads "outdoor church"."""
        return self._listed("Training_01.txt"), self._listed("Testing_01.txt")

    def _listed(self, file: str) -> list[Item]:
        folders = [row[0].lstrip("/") for row in read_rows(self.annotation("ClassName.txt"), words=1)]
        labels = {folder: label for label, folder in enumerate(folders)}
        items = []
        for (path,) in read_rows(self.annotation(file), words=1):
            folder = path.lstrip("/").rpartition("/")[0]
            items.append(Item(path.lstrip("/"), labels[folder], " ".join(reversed(folder.split("/")[1:]))))
        return items
