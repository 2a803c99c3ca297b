"""Settings are chosen without a test image and without a new class."""

from __future__ import annotations

from pathlib import Path

import make_fake
import pytest
from PIL import Image

from promptbench.cli import main
from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.data.selection import Selection, class_labels, open_selection
from promptbench.results.result import read_results
from promptbench.sweep.tune import WithoutTest, parse_grid

NAMES = ("crow", "eagle", "finch", "gull", "heron", "ibis", "jay", "kite")


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Eight classes of a few images, without a validation split."""
    make_fake.make_split_folders(tmp_path / "birds", NAMES, val=False)
    return tmp_path / "birds"


@pytest.fixture
def dataset(birds: Path) -> Dataset:
    return open_dataset("folder", {"root": str(birds)}, alias="birds")


def test_halves_of_halves(dataset: Dataset) -> None:
    assert class_labels(dataset, "base") == [0, 1, 2, 3]
    assert class_labels(dataset, "base.base") == [0, 1]
    assert class_labels(dataset, "base.new") == [2, 3]
    assert class_labels(dataset, "all.new") == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="halves of halves"):
        class_labels(dataset, "base.old")


def test_held_out_images_are_training_images_outside_the_sample(dataset: Dataset) -> None:
    shots = 2
    train = open_selection(lambda name: dataset, Selection(dataset="birds", split="train", shots=shots), 1)
    held = open_selection(lambda name: dataset, Selection(dataset="birds", split="held_out", shots=shots), 1)
    used, judged = ({item.image for item in chosen.items} for chosen in (train, held))
    assert len(used) == shots * len(NAMES) and judged and not used & judged
    assert judged <= {item.image for item in dataset.items("train")}


def test_validation_images_are_preferred(tmp_path: Path) -> None:
    make_fake.make_split_folders(tmp_path / "birds", NAMES, val=True)
    dataset = open_dataset("folder", {"root": str(tmp_path / "birds")}, alias="birds")
    held = open_selection(lambda name: dataset, Selection(dataset="birds", split="held_out", shots=2), 1)
    assert {item.image for item in held.items} == {item.image for item in dataset.items("val")}


def test_test_images_cannot_be_read(dataset: Dataset) -> None:
    sealed = WithoutTest(dataset)
    assert sealed.items("train") == dataset.items("train") and sealed.class_names == dataset.class_names
    with pytest.raises(PermissionError, match="may not read the test images of 'birds'"):
        sealed.items("test")
    with pytest.raises(PermissionError):
        sealed.read("test")
    assert sealed.split_digest() != dataset.split_digest()


def test_a_grid_is_read_from_words() -> None:
    assert parse_grid(["lr=0.1,2e-3", "depth=1,3", "ctx_init=a photo"]) == {
        "lr": [0.1, "2e-3"],  # YAML reads 2e-3 as text; the typed field makes a number of it
        "depth": [1, 3],
        "ctx_init": ["a photo"],
    }
    for bad in ("lr", "lr=", "lr=0.1,,2", "=1"):
        with pytest.raises(UsageError, match="write field=value,value"):
            parse_grid([bad])


def test_the_command_finds_the_better_setting_and_reads_no_test_image(
    birds: Path,
    tiny_name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    plain = Image.open

    def watched(path: Path, *rest: object) -> Image.Image:
        opened.append(str(path))
        return plain(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", watched)
    words = ["tune", "--method", "coop", "--dataset", f"folder:{birds}", "--backbone", tiny_name, "--shots", "3"]
    words += ["--set", "coop.epochs=2", "coop.batch=4", "--grid", "lr=0.0001,0.05", "--output", str(tmp_path / "out")]
    assert main.main(words) == 0
    out = capsys.readouterr().out
    assert "pseudo-new" in out and "best: lr: " in out
    assert opened and not [path for path in opened if f"{birds}/test/" in path]
    assert {result.spec.suite for result in read_results(tmp_path / "out" / "tuning")} == {"mini.tune"}
    assert main.main(words) == 0  # finished points are not run again
    assert capsys.readouterr().out == out


def test_a_method_that_cannot_score_new_classes_is_refused(
    birds: Path, tiny_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--method", "coop", "--dataset", f"folder:{birds}", "--backbone", tiny_name, "--shots", "2"]
    words += [
        "--set",
        "coop.csc=true",
        "coop.ctx_init=",
        "coop.epochs=1",
        "--grid",
        "lr=0.1",
        "--output",
        str(tmp_path),
    ]
    assert main.main(words) == 2
    assert "cannot be tuned by H" in capsys.readouterr().err
