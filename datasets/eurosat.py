"""EuroSAT: 10 kinds of land use, seen by Sentinel-2.

Helber et al., "EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover Classification", JSTARS
2019, arXiv:1709.00029.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp, who also renamed all ten classes.
License: MIT.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class EuroSAT(Dataset):
    """EuroSAT."""

    info = DatasetInfo(
        title="EuroSAT",
        classes=10,
        template="a centered satellite photo of {}.",
        folder="eurosat",
        split_file="split_zhou_EuroSAT.json",
        image_folder="2750",
        url="https://github.com/phelber/EuroSAT",
        paper="Helber et al., JSTARS 2019, arXiv:1709.00029",
        license="MIT",
    )
