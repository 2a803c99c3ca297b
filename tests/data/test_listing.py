"""Remembered listings: never another answer than that of the folders themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from promptbench.data import listing
from promptbench.data.dataset import open_dataset
from promptbench.data.get.status import inspect
from promptbench.data.splits import class_folder_items
from promptbench.storage.cache import entries


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two class folders that count as large and settled, with a cache of their own."""
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "LARGE", 4)
    monkeypatch.setattr(listing, "SETTLED", -60.0)
    for name in ("cat/1.jpg", "cat/2.JPEG", "dog/1.png", "dog/2.png", "dog/.3.png", "dog/notes.txt"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def paths(tree: Path) -> list[str]:
    labels = {"cat": 0, "dog": 1}
    return [item.image for item in class_folder_items(tree, "", labels, str.title)]


def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose images are listed from here on."""
    found: list[str] = []
    scan = listing.image_files

    def noted(folder: Path) -> tuple[list[str], bool]:
        found.append(folder.name)
        return scan(folder)

    monkeypatch.setattr(listing, "image_files", noted)
    return found


def test_a_folder_that_did_not_change_is_not_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = scanned(monkeypatch)
    first = paths(tree)
    assert first == ["cat/1.jpg", "cat/2.JPEG", "dog/1.png", "dog/2.png"]
    assert folders == ["cat", "dog"]
    assert paths(tree) == first
    assert folders == ["cat", "dog"]


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "replaced by a folder"])
def test_a_changed_folder_is_read_again(change: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = paths(tree)
    times = (tree / "dog").stat()
    if change == "added":
        (tree / "dog" / "0.png").touch()
    elif change == "renamed":
        (tree / "dog" / "1.png").rename(tree / "dog" / "9.png")
    else:
        (tree / "dog" / "1.png").unlink()
    if change == "replaced by a folder":
        (tree / "dog" / "1.png").mkdir()
    os.utime(tree / "dog", ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync does
    folders = scanned(monkeypatch)
    after = paths(tree)
    assert folders == ["dog"]
    others = {"added": ["dog/0.png", "dog/1.png", "dog/2.png"], "renamed": ["dog/2.png", "dog/9.png"]}
    assert after == [*before[:2], *others.get(change, ["dog/2.png"])]


def test_a_damaged_memory_counts_as_none(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = paths(tree)
    (memory,) = (tree.parent / "cache" / "listings").iterdir()
    memory.write_bytes(memory.read_bytes().replace(b"2.JPEG", b"3.JPEG"))
    folders = scanned(monkeypatch)
    assert paths(tree) == first
    assert folders == ["cat", "dog"]


def test_folders_that_changed_just_now_or_have_links_are_not_remembered(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "cat" / "3.jpg").symlink_to(tree / "dog" / "1.png")
    paths(tree)
    folders = scanned(monkeypatch)
    paths(tree)
    assert folders == ["cat"]
    monkeypatch.setattr(listing, "SETTLED", 60.0)
    paths(tree)
    assert folders == ["cat", "cat", "dog"]


def test_small_trees_are_not_remembered(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LARGE", 5)
    paths(tree)
    assert not (tree.parent / "cache" / "listings").exists()


def test_the_cache_lists_and_bounds_what_is_remembered(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths(tree)
    (entry,) = entries()
    assert entry.kind == "listing"
    assert entry.size == entry.files[0].stat().st_size
    entry.files[0].unlink()
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", "0")
    assert len(paths(tree)) == 4
    assert entries() == []


def test_a_status_from_memory_sees_a_file_that_went(tree: Path) -> None:
    def status() -> tuple[int, int]:
        state = inspect(open_dataset("folder", {"root": str(tree)}))
        return sum(state.sizes.values()), sum(state.present.values())

    assert status() == status() == (4, 4)
    (tree / "cat" / "3.jpg").touch()
    assert status() == (5, 5)
