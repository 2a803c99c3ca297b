"""The samples are CoOp's: golden files made with the reference code, and fingerprints of the real split files; or
GalLoP's: what scikit-learn draws.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from shared_paths import GOLDEN

from promptbench.data import selection

# Computed from the authors' split files with CoOp's rule: first 16 hex digits for seeds 1, 2, 3; 16 shots.
FINGERPRINTS = {
    "Caltech101": (1600, "e60a836bd33cbba3", "62be9f804c23dea9", "8c465c68bff43c6e", "Faces/image_0201.jpg"),
    "DescribableTextures": (752, "daf3b28e531fbc4b", "a34259006a2af32a", "d4a9dc52a372cccc", "banded/banded_0117.jpg"),
    "EuroSAT": (160, "ad260707da9107f1", "212e6c8813227418", "9dad8ac018414f09", "AnnualCrop/AnnualCrop_2365.jpg"),
    "OxfordFlowers": (1632, "ea366f552e24a82b", "3966d8c7701959cc", "d027071e2f771db1", "image_00144.jpg"),
    "OxfordPets": (592, "711e62ca7ba4bf69", "3ecc09fd23ef3845", "45933e694768aaab", "Abyssinian_141.jpg"),
    "StanfordCars": (3136, "f7d56096c7921e7a", "c8392ec0f0d4a698", "d5d533f8b5c5caf8", "cars_train/00467.jpg"),
    "UCF101": (
        1616,
        "b88bd6d2db741f87",
        "a510bb0001f043a5",
        "6bfebd6fbe0806ac",
        "Apply_Eye_Makeup/v_ApplyEyeMakeup_g14_c04.jpg",
    ),
}

# Test images of base and new classes, counted in the authors' split files.
BASE_NEW_TEST = {
    "Caltech101": (1549, 916),
    "DescribableTextures": (864, 828),
    "EuroSAT": (4200, 3900),
    "OxfordFlowers": (1053, 1410),
    "OxfordPets": (1881, 1788),
    "StanfordCars": (4002, 4039),
    "UCF101": (1934, 1849),
}

# GalLoP's rule, 16 shots: fewest and most images per class, which are the shares of the smallest and largest classes,
# rounded (UCF101: 58 and 97 of 7639 images, times 16 * 101: 12.27 and 20.52); first 16 hex digits of the digest at
# seed 1, drawn with scikit-learn 1.9.1.
STRATIFIED = {
    "Caltech101": (6, 155, "df20bfe498a42022"),
    "DescribableTextures": (16, 16, "e1825e591b3ef4e1"),
    "EuroSAT": (12, 18, "1920fbc203a97f46"),
    "UCF101": (12, 21, "c269ff40bc598a82"),
}


class Row(NamedTuple):
    image: str
    label: int
    class_name: str


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def rows(raw: list[list[Any]]) -> list[Row]:
    return [Row(*row) for row in raw]


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_sample_equals_coop(shots: int) -> None:
    pool, expected = golden("sampling_pool"), golden("sampling_seed1")[str(shots)]
    train, val = selection.coop_sample(rows(pool["train"]), rows(pool["val"]), shots=shots, seed=1)
    assert [item.image for item in train] == expected["train"]
    assert [item.image for item in val] == expected["val"]


def test_base_and_new_halves_equal_coop() -> None:
    pool, expected = golden("sampling_pool"), golden("sampling_seed1_shots4_base_new")
    train, val = selection.coop_sample(rows(pool["train"]), rows(pool["val"]), shots=4, seed=1)
    drawn = {"train": train, "val": val, "test": rows(pool["test"])}
    halves = dict(zip(("base", "new"), selection.split_base_new(item.label for item in train), strict=True))
    for half, labels in halves.items():
        for split, items in drawn.items():
            assert [list(item) for item in selection.select(items, labels)] == expected[half][split], (half, split)


def test_an_odd_number_of_classes_splits_as_in_coop() -> None:
    nine = golden("subsample_nine")["nine"]
    train = [Row(f"x/{index}.jpg", label, f"c{label}") for index, label in enumerate(nine["train_labels"])]
    test = [Row(f"x/{index}.jpg", label, f"c{label}") for index, label in enumerate(nine["test_labels"])]
    for half, labels in zip(("base", "new"), selection.split_base_new(nine["train_labels"]), strict=True):
        assert [list(item) for item in selection.select(train, labels)] == nine["result"][half]["train"]
        assert [list(item) for item in selection.select(test, labels)] == nine["result"][half]["test"]


def real_split(name: str) -> dict[str, list[Row]]:
    folder = os.environ.get("PROMPTBENCH_TEST_SPLITS")
    if not folder:
        pytest.skip("PROMPTBENCH_TEST_SPLITS does not name a folder with the authors' split files")
    path = Path(folder, f"split_zhou_{name}.json")
    if not path.exists():
        pytest.skip(f"{path.name} is not in PROMPTBENCH_TEST_SPLITS")
    return {split: rows(raw) for split, raw in json.loads(path.read_text(encoding="utf-8")).items()}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_sample_of_the_real_split_has_the_known_fingerprint(name: str) -> None:
    split = real_split(name)
    size, *fingerprints, first = FINGERPRINTS[name]
    for seed, fingerprint in enumerate(fingerprints, start=1):
        train, _ = selection.coop_sample(split["train"], split["val"], shots=16, seed=seed)
        assert len(train) == size
        assert selection.digest(train)[:16] == fingerprint
        if seed == 1:
            assert train[0].image == first


@pytest.mark.parametrize("name", BASE_NEW_TEST)
def test_halves_of_the_real_split_have_the_known_sizes(name: str) -> None:
    split = real_split(name)
    halves = selection.split_base_new(item.label for item in split["train"])
    assert tuple(len(selection.select(split["test"], labels)) for labels in halves) == BASE_NEW_TEST[name]


def test_sampling_leaves_the_global_generator_alone() -> None:
    items = [Row(f"{label}/{index}", label, str(label)) for label in range(3) for index in range(9)]
    random.seed(5)
    state = random.getstate()
    selection.coop_sample(items, items, shots=2, seed=1)
    assert random.getstate() == state


def test_few_shot_draws_exactly_k_per_class_and_small_classes_whole() -> None:
    sizes = {0: 9, 1: 4, 2: 2}
    items = [Row(f"{label}/{index}", label, str(label)) for label, size in sizes.items() for index in range(size)]
    sample = selection.sample_few_shot(items, 4, random.Random(0))
    counts = {label: sum(item.label == label for item in sample) for label in sizes}
    assert counts == {0: 4, 1: 4, 2: 2}
    assert len(set(sample)) == len(sample)


def test_shots_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 shot"):
        selection.sample_few_shot([Row("a", 0, "a")], 0, random.Random(0))


def test_digest_is_sha256_of_the_joined_paths() -> None:
    # printf 'a/b.jpg\nc.jpg' | sha256sum
    items = [Row("a/b.jpg", 0, "x"), Row("c.jpg", 1, "y")]
    assert selection.digest(items) == "d2c26de525bc683cde5d4f12d77d05df77b517d3420f4a7e293cca262ed18fe5"


# --- GalLoP's sample


def test_stratified_sample_is_what_scikit_learn_draws() -> None:
    from sklearn.model_selection import StratifiedShuffleSplit

    sizes = {0: 40, 1: 9, 2: 23}
    items = [Row(f"{label}/{index}", label, str(label)) for label, size in sizes.items() for index in range(size)]
    labels = [item.label for item in items]
    splitter = StratifiedShuffleSplit(n_splits=1, train_size=4 * 3, random_state=7)
    expected, _ = next(splitter.split(labels, labels))
    assert selection.stratified_sample(items, 4, 7) == [items[index] for index in expected]


def test_stratified_sample_numbers_classes_as_they_appear() -> None:
    sizes = {0: 40, 1: 9, 2: 23}
    items = [Row(f"{label}/{index}", label, str(label)) for label, size in sizes.items() for index in range(size)]
    renamed = [item._replace(label={0: 9, 1: 5, 2: 7}[item.label]) for item in items]
    drawn, other = selection.stratified_sample(items, 4, 7), selection.stratified_sample(renamed, 4, 7)
    assert [item.image for item in drawn] == [item.image for item in other]


@pytest.mark.parametrize("name", STRATIFIED)
def test_stratified_sample_of_the_real_split_follows_the_sizes_of_classes(name: str) -> None:
    train = real_split(name)["train"]
    fewest, most, fingerprint = STRATIFIED[name]
    for seed in (1, 2, 3):
        drawn = selection.stratified_sample(train, 16, seed)
        per_class = Counter(item.label for item in drawn)
        assert len(set(drawn)) == len(drawn) == 16 * len(per_class)
        assert (min(per_class.values()), max(per_class.values())) == (fewest, most)
        if seed == 1:
            assert selection.digest(drawn)[:16] == fingerprint


@pytest.mark.parametrize("shots", [4, 5])
def test_stratified_sample_of_all_there_is_keeps_the_list(shots: int) -> None:
    items = [Row(f"{index}", index % 3, "x") for index in range(12)]
    assert selection.stratified_sample(items, shots, 1) == items


@pytest.mark.parametrize(
    ("labels", "shots", "message"),
    [
        ([0] * 9 + [1], 1, "A stratified sample of 2 of 10 images cannot be drawn: .*only 1 member"),
        ([0] * 4 + [1] * 3 + [2] * 3, 3, "9 of 10 images cannot be drawn: .*test_size = 1"),
        ([0, 0, 1, 1], 0, "at least 1 shot"),
    ],
)
def test_what_cannot_be_stratified_is_said(labels: list[int], shots: int, message: str) -> None:
    items = [Row(str(index), label, "x") for index, label in enumerate(labels)]
    with pytest.raises(ValueError, match=message):
        selection.stratified_sample(items, shots, 1)


def test_samplers_are_known_by_name() -> None:
    pool = rows(golden("sampling_pool")["train"])
    assert set(selection.SAMPLERS) == {"coop", "stratified"}
    assert [item.image for item in selection.SAMPLERS["coop"](pool, 4, 1)] == golden("sampling_seed1")["4"]["train"]
    assert selection.SAMPLERS["stratified"](pool, 2, 1) == selection.stratified_sample(pool, 2, 1)
