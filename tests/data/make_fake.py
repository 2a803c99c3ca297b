"""Makers of tiny datasets in the real layouts: a few classes, a few small images, written when a test needs them.

`make(name, root)` writes what the dataset of that name reads below a data root; `make_folder` and `make_split_folders`
write a user's own images. Pixels are drawn from the path: every image differs, and a second call writes the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS = {"train": 5, "val": 2, "test": 3}

# dataset: folder, split file, image folder, prefix of train and test paths, class names as the real file spells them
SPLIT_JSON = {
    "caltech101": (
        "caltech-101",
        "split_zhou_Caltech101.json",
        "101_ObjectCategories",
        "",
        ("face", "leopard", "airplane"),
    ),
    "oxford_pets": (
        "oxford_pets",
        "split_zhou_OxfordPets.json",
        "images",
        "",
        ("abyssinian", "american_bulldog", "beagle"),
    ),
    "stanford_cars": (
        "stanford_cars",
        "split_zhou_StanfordCars.json",
        "",
        "cars_{}/",
        ("2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Audi TT RS Coupe"),
    ),
    "oxford_flowers": (
        "oxford_flowers",
        "split_zhou_OxfordFlowers.json",
        "jpg",
        "",
        ("pink primrose", "hard-leaved pocket orchid", "bird of paradise"),
    ),
    "food101": ("food-101", "split_zhou_Food101.json", "images", "", ("apple_pie", "baby_back_ribs", "baklava")),
    "sun397": ("sun397", "split_zhou_SUN397.json", "SUN397", "", ("abbey", "airplane_cabin", "indoor apse")),
    "dtd": ("dtd", "split_zhou_DescribableTextures.json", "images", "", ("banded", "blotchy", "braided")),
    "eurosat": (
        "eurosat",
        "split_zhou_EuroSAT.json",
        "2750",
        "",
        ("Annual Crop Land", "Forest", "Herbaceous Vegetation Land"),
    ),
    "ucf101": (
        "ucf101",
        "split_zhou_UCF101.json",
        "UCF-101-midframes",
        "",
        ("Apply_Eye_Makeup", "Apply_Lipstick", "Archery"),
    ),
}


def make(name: str, root: Path) -> None:
    """Writes a fake of the public dataset `name` below the data root `root`."""
    if name in SPLIT_JSON:
        make_split_json(root, *SPLIT_JSON[name])
    else:
        {"fgvc_aircraft": make_fgvc_aircraft, "imagenet": make_imagenet}[name](root)


def make_split_json(
    root: Path, folder: str, split_file: str, image_folder: str, prefix: str, names: Sequence[str]
) -> None:
    """A CoOp-style split file and the images it names; Cars alone keeps train and test images apart, by a prefix."""
    splits: dict[str, list[list[object]]] = {}
    for split, count in PER_CLASS.items():
        where = prefix.format("test" if split == "test" else "train")
        rows = [
            [f"{where}{name.replace(' ', '_')}/{split}_{index}.jpg", label, name]
            for label, name in enumerate(names)
            for index in range(count)
        ]
        splits[split] = rows
        for path, *_ in rows:
            write_image(root / folder / image_folder / path)
    (root / folder / split_file).write_text(json.dumps(splits), encoding="utf-8")


def make_fgvc_aircraft(root: Path) -> None:
    """Lists of numbered images with their variant, and the file whose line numbers are the labels."""
    base = root / "fgvc_aircraft"
    variants = ("707-320", "Boeing 717", "F-16A/B")
    number = 0
    for split, count in PER_CLASS.items():
        lines = []
        for variant in variants:
            for _ in range(count):
                number += 1
                lines.append(f"{number:07d} {variant}")
                write_image(base / "images" / f"{number:07d}.jpg")
        (base / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (base / "variants.txt").write_text("\n".join(variants) + "\n", encoding="utf-8")


def make_imagenet(root: Path) -> None:
    """Class folders under images/train and images/val, and classnames.txt; two classes share a name, as in CLIP's."""
    base = root / "imagenet"
    names = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile", "n04355933": "sunglass"}
    for wnid in names:
        for index in range(PER_CLASS["train"]):
            write_image(base / "images" / "train" / wnid / f"{wnid}_{index}.JPEG")
        for index in range(PER_CLASS["test"]):
            write_image(base / "images" / "val" / wnid / f"ILSVRC2012_val_{wnid}{index}.JPEG")
    lines = "".join(f"{wnid} {name}\n" for wnid, name in names.items())
    (base / "classnames.txt").write_text(lines, encoding="utf-8")


def make_folder(base: Path, names: Sequence[str] = ("blue_jay", "robin", "wren"), count: int = 10) -> None:
    """One folder of class folders."""
    for name in names:
        for index in range(count):
            write_image(base / name / f"{index:02d}.png")


def make_split_folders(base: Path, names: Sequence[str] = ("blue_jay", "robin", "wren"), val: bool = True) -> None:
    """The folders train, test and, unless told otherwise, val, each of class folders."""
    for split, count in PER_CLASS.items():
        if val or split != "val":
            make_folder(base / split, names, count=count)


def write_image(path: Path, size: tuple[int, int] = (20, 16)) -> None:
    """A small image of blurred noise drawn from the path's last two parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32("/".join(path.parts[-2:]).encode()))
    noise = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    noise.resize(size, Image.Resampling.BICUBIC).save(path)
