"""Caltech101: 100 object classes; the background class and the easy faces are left out.

Fei-Fei, Fergus and Perona, "Learning Generative Visual Models from Few Training Examples", CVPR Workshop 2004.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp, who also renamed four classes.
License: CC BY 4.0.
"""

from __future__ import annotations

from promptbench.data.dataset import Dataset, DatasetInfo, Download, Sources


class Caltech101(Dataset):
    """Caltech101."""

    info = DatasetInfo(
        title="Caltech101",
        classes=100,
        images=(4128, 1649, 2465),
        template="a photo of a {}.",
        folder=("caltech-101", "dataset_suite/caltech101"),
        split_file="split_zhou_Caltech101.json",
        image_folder="101_ObjectCategories",
        url="https://data.caltech.edu/records/mzrjq-6wc02",
        paper="Fei-Fei et al., CVPR Workshop 2004",
        license="CC BY 4.0",
    )
    sources = Sources(
        downloads=(
            Download(
                url="https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                md5="3138e1922a9193bfa496528edbbc45d0",
                inner="caltech-101/101_ObjectCategories.tar.gz",
                folder="101_ObjectCategories",
                target="101_ObjectCategories",
            ),
        ),
        split_url="https://drive.google.com/file/d/1hyarUivQE36mY6jSomru6Fjd-JzwcCzN/view",
    )
    renamed = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane"}
    ignored = ("BACKGROUND_Google", "Faces_easy")
