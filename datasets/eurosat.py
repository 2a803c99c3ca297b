"""EuroSAT: 10 kinds of land use, seen by Sentinel-2.

Helber et al., "EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover Classification", JSTARS
2019, arXiv:1709.00029.
Split: 50 / 20 / 30 % of each class at random, by the authors of CoOp, who also renamed all ten classes.
License: MIT.
"""

from __future__ import annotations

from promptbench.data.dataset import Dataset, DatasetInfo, Download, Sources


class EuroSAT(Dataset):
    """EuroSAT."""

    info = DatasetInfo(
        title="EuroSAT",
        classes=10,
        images=(13500, 5400, 8100),
        template="a centered satellite photo of {}.",
        folder=("eurosat", "dataset_suite/EuroSAT_RGB"),
        split_file="split_zhou_EuroSAT.json",
        image_folder=("2750", ""),
        url="https://github.com/phelber/EuroSAT",
        paper="Helber et al., JSTARS 2019, arXiv:1709.00029",
        license="MIT",
    )
    sources = Sources(
        downloads=(
            Download(
                url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/"
                "EuroSAT.zip",
                md5="c8fa014336c82ac7804f0398fcb19387",
                folder="2750",
                target="2750",
            ),
        ),
        split_url="https://drive.google.com/file/d/1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o/view",
    )
    renamed = {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    }
