"""Makers of tiny datasets in the real layouts: a few classes, a few small images, written when a test needs them.

`make(name, root)` writes what the dataset of that name reads below a data root, in CoOp's tree or GalLoP's, with its
split file or with its makers' annotations instead; `make_folder` and `make_split_folders` write a user's own images.
Pixels are drawn from the path: every image differs, and a second call writes the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

PER_CLASS = {"train": 5, "val": 2, "test": 3}
OOD_IMAGES = 6

LAYOUTS = ("coop", "gallop")

# dataset: folder and image folder in CoOp's tree (for OOD sets in LoCoOp's, or their own), and in GalLoP's or OpenOOD's
PLACES = {
    "caltech101": (("caltech-101", "101_ObjectCategories"), ("dataset_suite/caltech101", "101_ObjectCategories")),
    "oxford_pets": (("oxford_pets", "images"), ("dataset_suite/oxford-iiit-pet", "images")),
    "stanford_cars": (("stanford_cars", ""), ("dataset_suite/stanford_cars", "")),
    "oxford_flowers": (("oxford_flowers", "jpg"), ("dataset_suite/flowers102", "jpg")),
    "food101": (("food-101", "images"), ("dataset_suite/food-101", "images")),
    "fgvc_aircraft": (("fgvc_aircraft", "images"), ("dataset_suite/fgvc-aircraft-2013b/data", "images")),
    "sun397": (("sun397", "SUN397"), ("dataset_suite/SUN397", "")),
    "dtd": (("dtd", "images"), ("dataset_suite/dtddataset/dtd", "images")),
    "eurosat": (("eurosat", "2750"), ("dataset_suite/EuroSAT_RGB", "")),
    "ucf101": (("ucf101", "UCF-101-midframes"), ("dataset_suite/UCF-101-midframes", "")),
    "imagenet": (("imagenet", "images"), ("Imagenet", "")),
    "imagenetv2": (
        ("imagenetv2", "imagenetv2-matched-frequency-format-val"),
        ("domains/imagenetv2-matched-frequency-format-val", ""),
    ),
    "imagenet_sketch": (("imagenet-sketch", "images"), ("domains/sketch", "")),
    "imagenet_a": (("imagenet-adversarial", "imagenet-a"), ("domains/imagenet-a", "")),
    "imagenet_r": (("imagenet-rendition", "imagenet-r"), ("domains/imagenet-r", "")),
    "inaturalist": (("iNaturalist", "images"), ("ood_data/iNaturalist", "images")),
    "sun": (("SUN", "images"), ("ood_data/SUN", "images")),
    "places": (("Places", "images"), ("ood_data/Places", "images")),
    "textures": (("Texture", "images"), ("ood_data/dtd", "images")),
    "ssb_hard": (("ssb_hard", ""), ("images_largescale/ssb_hard", "")),
    "ninco": (("NINCO", "NINCO_OOD_classes"), ("images_largescale/ninco", "")),
    "openimage_o": (("openimage_o", "images"), ("images_largescale/openimage_o", "images")),
}


class Classes(NamedTuple):
    """What the authors' split file says of a dataset.

    Attributes:
        split_file: Its name.
        path: An image's path: by the makers' `folder` and CoOp's `name` of its class, `n` within the class, `number`
            within the dataset, `part` for a set apart.
        names: Makers' folder to CoOp's name of each class.
    """

    split_file: str
    path: str
    names: dict[str, str]


SPLIT_JSON = {
    "caltech101": Classes(
        "split_zhou_Caltech101.json",
        "{folder}/image_{n:04d}.jpg",
        {"Faces": "face", "Leopards": "leopard", "airplanes": "airplane"},
    ),
    "oxford_pets": Classes(
        "split_zhou_OxfordPets.json",
        "{folder}_{n}.jpg",
        {"Abyssinian": "abyssinian", "american_bulldog": "american_bulldog", "beagle": "beagle"},
    ),
    "stanford_cars": Classes(
        "split_zhou_StanfordCars.json",
        "cars_{part}/{number:05d}.jpg",
        {
            "AM General Hummer SUV 2000": "2000 AM General Hummer SUV",
            "Acura RL Sedan 2012": "2012 Acura RL Sedan",
            "Audi TT RS Coupe 2012": "2012 Audi TT RS Coupe",
        },
    ),
    "oxford_flowers": Classes(
        "split_zhou_OxfordFlowers.json",
        "image_{number:05d}.jpg",
        {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "bird of paradise"},
    ),
    "food101": Classes(
        "split_zhou_Food101.json",
        "{folder}/{number}.jpg",
        {"apple_pie": "apple_pie", "baby_back_ribs": "baby_back_ribs", "baklava": "baklava"},
    ),
    "sun397": Classes(
        "split_zhou_SUN397.json",
        "{folder}/sun_{n}.jpg",
        {"a/abbey": "abbey", "a/airplane_cabin": "airplane_cabin", "a/apse/indoor": "indoor apse"},
    ),
    "dtd": Classes(
        "split_zhou_DescribableTextures.json",
        "{folder}/{folder}_{n:04d}.jpg",
        {"banded": "banded", "blotchy": "blotchy", "braided": "braided"},
    ),
    "eurosat": Classes(
        "split_zhou_EuroSAT.json",
        "{folder}/{folder}_{n}.jpg",
        {"AnnualCrop": "Annual Crop Land", "Forest": "Forest", "SeaLake": "Sea or Lake"},
    ),
    "ucf101": Classes(
        "split_zhou_UCF101.json",
        "{name}/v_{folder}_g{n:02d}_c01.jpg",
        {"ApplyEyeMakeup": "Apply_Eye_Makeup", "ApplyLipstick": "Apply_Lipstick", "Archery": "Archery"},
    ),
}

# Two classes share a name, as in CLIP's list; the variants have the same wnids, A and R some of them.
IMAGENET = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n03773504": "missile",
    "n04008634": "missile",
    "n04355933": "sunglass",
    "n07753592": "banana",
}
VARIANTS = {
    "imagenetv2": [str(number) for number in range(len(IMAGENET))],
    "imagenet_sketch": list(IMAGENET),
    "imagenet_a": ["n01443537", "n07753592"],
    "imagenet_r": ["n01443537", "n03773504", "n07753592"],
}
OOD = ("inaturalist", "sun", "places", "textures", "ssb_hard", "ninco", "openimage_o")
WITH_FOLDERS = ("textures", "ssb_hard", "ninco")  # of those

Rows = dict[str, list[tuple[str, int, str]]]


def make(name: str, root: Path, layout: str = "coop", annotations: bool = False) -> None:
    """Writes a fake of the public dataset `name` below the data root `root`.

    Args:
        name: The dataset.
        root: The data root.
        layout: The tree: `coop` or `gallop`.
        annotations: Leave out the split file and write what its makers give instead.
    """
    folder, image_folder = PLACES[name][LAYOUTS.index(layout)]
    base, images = root / folder, root / folder / image_folder
    if name in SPLIT_JSON:
        rows = _rows(SPLIT_JSON[name])
        for split in rows.values():
            for path, *_ in split:
                write_image(images / path)
        if annotations:
            annotate(name, base, images, rows)
        else:
            (base / SPLIT_JSON[name].split_file).write_text(json.dumps(rows), encoding="utf-8")
    elif name in OOD:
        for index in range(OOD_IMAGES):
            write_image(images / (f"kind_{index % 2}" if name in WITH_FOLDERS else "") / f"{name}_{index}.jpg")
    elif name == "imagenet":
        make_imagenet(base, images)
    elif name == "fgvc_aircraft":
        make_fgvc_aircraft(base)
    else:
        _make_variant(name, base, images, with_names=layout == "coop")


def _rows(classes: Classes) -> Rows:
    """The split file's lists, class by class."""
    rows: Rows = {split: [] for split in PER_CLASS}
    number, within = count(1), {folder: count(1) for folder in classes.names}
    for split, size in PER_CLASS.items():
        part = "test" if split == "test" else "train"
        for label, (folder, name) in enumerate(classes.names.items()):
            for _ in range(size):
                known = {"folder": folder, "name": name, "n": next(within[folder]), "number": next(number)}
                rows[split].append((classes.path.format(part=part, **known), label, name))
    return rows


def annotate(name: str, base: Path, images: Path, rows: Rows) -> None:
    """What the makers of a dataset distribute beside the images of `rows`; most class folders need nothing."""
    lists = {"train": rows["train"] + rows["val"], "test": rows["test"]}
    if name == "caltech101":
        for folder in ("BACKGROUND_Google", "Faces_easy"):
            write_image(images / folder / "image_0001.jpg")
    elif name in ANNOTATE:
        ANNOTATE[name](base, lists, list(SPLIT_JSON[name].names))


def _annotate_pets(base: Path, lists: Rows, folders: list[str]) -> None:
    for file, split in (("trainval", "train"), ("test", "test")):
        lines = [f"{Path(path).stem} {label + 1} 1 1" for path, label, _ in lists[split]]
        _write(base / f"annotations/{file}.txt", lines)


def _annotate_cars(base: Path, lists: Rows, folders: list[str]) -> None:
    _save_matlab(base / "devkit/cars_meta.mat", class_names=np.array(folders, dtype=object)[None])
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        structs = np.empty((1, len(lists[split])), dtype=[("class", object), ("fname", object)])  # without the boxes
        structs[0] = [(label + 1, Path(path).name) for path, label, _ in lists[split]]
        _save_matlab(base / file, annotations=structs)


def _annotate_flowers(base: Path, lists: Rows, folders: list[str]) -> None:
    labels = [label + 1 for _, label, _ in sorted(lists["train"] + lists["test"])]
    _save_matlab(base / "imagelabels.mat", labels=np.array([labels], dtype=np.uint8))
    (base / "cat_to_name.json").write_text(json.dumps(SPLIT_JSON["oxford_flowers"].names), encoding="utf-8")


def _annotate_sun(base: Path, lists: Rows, folders: list[str]) -> None:
    _write(base / "ClassName.txt", [f"/{folder}" for folder in folders])
    for file, split in (("Training_01.txt", "train"), ("Testing_01.txt", "test")):
        _write(base / file, [f"/{path}" for path, *_ in lists[split]])


def _annotate_ucf(base: Path, lists: Rows, folders: list[str]) -> None:
    _write(base / "ucfTrainTestlist/classInd.txt", [f"{n} {folder}" for n, folder in enumerate(folders, start=1)])
    for split in ("train", "test"):
        lines = [f"{folders[label]}/{Path(path).stem}.avi {label + 1}" for path, label, _ in lists[split]]
        _write(base / f"ucfTrainTestlist/{split}list01.txt", lines)


ANNOTATE: dict[str, Callable[[Path, Rows, list[str]], None]] = {
    "oxford_pets": _annotate_pets,
    "stanford_cars": _annotate_cars,
    "oxford_flowers": _annotate_flowers,
    "sun397": _annotate_sun,
    "ucf101": _annotate_ucf,
}


def _save_matlab(path: Path, **variables: np.ndarray) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_fgvc_aircraft(base: Path) -> None:
    """Lists of numbered images with their variant, and the file whose line numbers are the labels."""
    variants = ("707-320", "Boeing 717", "F-16A/B")
    number = count(1)
    for split, size in PER_CLASS.items():
        lines = [f"{next(number):07d} {variant}" for variant in variants for _ in range(size)]
        for line in lines:
            write_image(base / "images" / f"{line.split()[0]}.jpg")
        _write(base / f"images_variant_{split}.txt", lines)
    _write(base / "variants.txt", variants)


def make_imagenet(base: Path, images: Path) -> None:
    """Class folders under train and val, and classnames.txt."""
    for wnid in IMAGENET:
        for index in range(PER_CLASS["train"]):
            write_image(images / "train" / wnid / f"{wnid}_{index}.JPEG")
        for index in range(PER_CLASS["test"]):
            write_image(images / "val" / wnid / f"ILSVRC2012_val_{wnid}{index}.JPEG")
    _write(base / "classnames.txt", [f"{wnid} {name}" for wnid, name in IMAGENET.items()])


def _make_variant(name: str, base: Path, images: Path, with_names: bool) -> None:
    """Class folders, a README beside them, and unless ImageNet's serves, classnames.txt."""
    for folder in VARIANTS[name]:
        for index in range(PER_CLASS["test"]):
            write_image(images / folder / f"{name}_{index}.jpg")
    _write(images / "README.txt", ["no class"])
    if with_names:
        _write(base / "classnames.txt", [f"{wnid} {text}" for wnid, text in IMAGENET.items()])


def make_folder(base: Path, names: Sequence[str] = ("blue_jay", "robin", "wren"), count: int = 10) -> None:
    """One folder of class folders."""
    for name in names:
        for index in range(count):
            write_image(base / name / f"{index:02d}.png")


def make_split_folders(base: Path, names: Sequence[str] = ("blue_jay", "robin", "wren"), val: bool = True) -> None:
    """The folders train, test and, unless told otherwise, val, each of class folders."""
    for split, size in PER_CLASS.items():
        if val or split != "val":
            make_folder(base / split, names, count=size)


def write_image(path: Path, size: tuple[int, int] = (20, 16)) -> None:
    """A small image of blurred noise drawn from the path's last two parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32("/".join(path.parts[-2:]).encode()))
    noise = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    noise.resize(size, Image.Resampling.BICUBIC).save(path)
