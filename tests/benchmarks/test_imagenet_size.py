"""ImageNet's size, in short: what the long version, `benchmarks/stress/imagenet_size.py`, makes and how it judges."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import imagenet_size
import pytest
from imagenet_size import ACTS, STATES, WHOLE, Tree, at_whole, growth_of, judged, page
from PIL import Image
from shared_paths import REPOSITORY

from promptbench.data.dataset import open_dataset

MEASURED = REPOSITORY / "results" / "measured" / "imagenet_size.json"


def row(what: str, listing: str, images: int, seconds: float) -> dict[str, Any]:
    return {
        "what": what,
        "listing": listing,
        "training images": images,
        "seconds": 2 * seconds,
        "CPU seconds": seconds,
        "peak MiB": 1.0,
    }


def test_the_tree_is_one_that_the_dataset_reads_and_every_image_is_another_one(tmp_path: Path) -> None:
    tree = Tree(tmp_path, classes=3)
    tree.fill("val", 6)
    tree.fill("train", 5)
    tree.fill("train", 9)
    dataset = open_dataset("imagenet", roots=[tmp_path])
    assert [len(dataset.items(split)) for split in ("train", "test")] == [9, 6]
    assert list(dataset.class_names) == ["tench", "goldfish", "great white shark"]
    files = [dataset.image_root / item.image for item in (*dataset.items("train"), *dataset.items("test"))]
    assert len({path.read_bytes() for path in files}) == len(files)
    assert {path.stat().st_nlink for path in files} == {1}
    assert Image.open(files[0]).convert("RGB").size == (32, 32)


def test_seconds_for_all_images_are_measured_or_on_a_line() -> None:
    few, many = row("data status", "cold", 50_000, 2.0), row("data status", "cold", 200_000, 5.0)
    assert at_whole([few, many], "data status", "cold") == (pytest.approx(5.0 + 3.0 * (WHOLE - 2e5) / 1.5e5), True)
    assert at_whole([few, row("data status", "cold", WHOLE, 7.0)], "data status", "cold") == (7.0, False)
    assert growth_of([few, many], "data status") == pytest.approx((5 / 2e5) / (2 / 5e4))


def test_a_missed_bar_is_said() -> None:
    rows = [row(what, state, WHOLE, 3.5) for what, state in product(ACTS, STATES)]
    verdicts = {what: met for what, _, _, met in judged({"files": rows})}
    assert verdicts["preflight, 1,281,167 training images, cold"]
    assert not verdicts["preflight, 1,281,167 training images, remembered"]
    assert "| preflight, 1,281,167 training images, remembered | 3.50 s | at most 3 s | **no** |" in page(
        {"files": rows}
    )


@pytest.mark.slow
def test_the_short_version_measures_every_act_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "found.json"
    sizes = ["--classes", "4", "--images", "40", "--test-images", "120", "--repeats", "1", "--backbone", "mini"]
    parts = ["--part", "files", "features", "text", "--method", "coop", "zeroshot", "--folder", str(tmp_path)]
    monkeypatch.setattr(imagenet_size, "SETTLED", -1.0)
    monkeypatch.setattr(sys, "argv", ["imagenet_size", *sizes, *parts, "-o", str(report)])
    with pytest.raises(SystemExit):
        imagenet_size.main()
    found = json.loads(report.read_text())
    assert [(row["what"], row["listing"], row["training images"]) for row in found["files"]] == [
        (what, state, 40) for what, state in product(ACTS, STATES)
    ]
    assert found["features"]["images"] == 120
    assert found["features"]["bytes an image"] > 4 * 128
    assert all(0 < row["GiB over the weights"] < 1 for row in found["text"])
    assert list(tmp_path.glob("imagenet-size-*")) == []
    assert report.with_suffix(".md").read_text() == page(found)


def test_the_committed_figures_meet_their_bars_and_their_page_is_made_from_them() -> None:
    found = json.loads(MEASURED.read_text())
    assert len(list(judged(found))) > 2 * len(ACTS)
    assert [what for what, *_, met in judged(found) if not met] == []
    assert MEASURED.with_suffix(".md").read_text() == page(found)
