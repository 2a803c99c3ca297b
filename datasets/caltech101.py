"""Caltech101: 100 object classes; the background class and the easy faces are left out.

Fei-Fei, Fergus and Perona, "Learning Generative Visual Models from Few Training Examples", CVPR Workshop 2004.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp, who also renamed four classes.
License: CC BY 4.0.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class Caltech101(Dataset):
    """Caltech101."""

    info = DatasetInfo(
        title="Caltech101",
        classes=100,
        template="a photo of a {}.",
        folder="caltech-101",
        split_file="split_zhou_Caltech101.json",
        image_folder="101_ObjectCategories",
        url="https://data.caltech.edu/records/mzrjq-6wc02",
        paper="Fei-Fei et al., CVPR Workshop 2004",
        license="CC BY 4.0",
    )
