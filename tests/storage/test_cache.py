"""The cache on disk: what its entries say, who may remove them, what a damaged one leads to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from promptbench.cli.main import main
from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import ImageFeatures
from promptbench.config import UsageError
from promptbench.data import features
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.data.features import Kept
from promptbench.data.selection import Selection, open_selection
from promptbench.method import create_method
from promptbench.runs.session import Place, Session, remembered_backbone
from promptbench.storage import atomic
from promptbench.storage import cache as cached
from promptbench.storage.claims import Claims
from promptbench.suite import load_suite
from promptbench.training.numerics import hold_to_bits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PROMPTBENCH_CACHE_GB", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path, folder: Path) -> Dataset:
    """Six images in folders."""
    from PIL import Image

    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog", "eel")):
            place = tmp_path / "pets" / split / name
            place.mkdir(parents=True)
            Image.new("RGB", (20, 16), (80 * label, 40, 200)).save(place / "0.png")
    return open_dataset("folder", {"root": str(tmp_path / "pets")}, alias="pets")


def put(name: str, age: float, size: int = 1000) -> Path:
    """An entry that was last used so many days ago."""
    path = features.path_of(name)
    cls = ImageFeatures(torch.zeros(1, size // 4))
    features.write(path, cls, {"dataset": f"set-{name}", "backbone": "b", "images": 1})
    os.utime(path, (time.time() - age * 86400,) * 2)
    return path


def names() -> list[str]:
    return [entry.name for entry in cached.entries()]


def test_entries_say_what_they_hold(tiny: Backbone, dataset: Dataset) -> None:
    items = dataset.items("test")
    features.image_features(tiny, dataset, items)
    features.image_features(tiny, dataset, items, dense=True)
    features.image_features(tiny, dataset, items, kept=Kept(views=2, seed=1))
    said = {entry.kind: entry for entry in cached.entries()}
    assert {kind: (e.what, e.backbone, e.images) for kind, e in said.items()} == {
        "features": ("pets", tiny.name, 3),
        "dense features": ("pets", tiny.name, 3),
        "views": ("pets", tiny.name, 6),
    }
    sizes = {kind: sum(file.stat().st_size for file in entry.files) for kind, entry in said.items()}
    assert sizes == {kind: entry.size for kind, entry in said.items()}
    assert Kept().size(tiny, 3) <= said["features"].size <= Kept().size(tiny, 3) + 1000
    assert Kept(True).size(tiny, 3) <= said["dense features"].size <= Kept(True).size(tiny, 3) + 1000


def test_an_entry_is_a_safetensors_file_that_is_mapped(tiny: Backbone, dataset: Dataset) -> None:
    items = dataset.items("test")
    kept = Kept(dense=True, half=True)
    made = features.kept_features(tiny, dataset, items, kept)
    path = features.path_of(features.key(tiny, dataset, items, kept=kept))
    held = load_file(path)
    assert held.keys() == {"cls", "local_unprojected", "sha256"} and torch.equal(held["cls"], made.cls)
    mapped = features.kept_features(tiny, dataset, items, kept).local_unprojected
    assert mapped is not None and made.local_unprojected is not None
    assert torch.equal(mapped, made.local_unprojected) and torch.equal(mapped, held["local_unprojected"])
    places = Path("/proc/self/maps")
    if places.exists():  # as Linux says it
        lines = [line.split() for line in places.read_text().splitlines() if line.endswith(path.name)]
        ranges = [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]
        assert any(mapped.data_ptr() in one for one in ranges)


@pytest.mark.parametrize("change", ["bytes", "time"])
def test_a_changed_image_has_other_features(change: str, tiny: Backbone, dataset: Dataset) -> None:
    """A file is known by path, size and time of change, as DESIGN asks; either change makes another entry."""
    items = dataset.items("test")
    before = features.key(tiny, dataset, items)
    assert before == features.key(tiny, dataset, items) != features.key(tiny, dataset, items[:2])
    file = dataset.image_root / items[0].image
    status = file.stat()
    if change == "bytes":
        file.write_bytes(file.read_bytes() + b"\0")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert features.key(tiny, dataset, items) != before


def test_keys_tell_transform_seed_views_and_precision_apart(tiny: Backbone, dataset: Dataset) -> None:
    items = dataset.items("test")
    kept = [Kept(), Kept(True), Kept(True, True), *(Kept(views=v, seed=s) for v in (1, 2) for s in (1, 2))]
    assert len({features.key(tiny, dataset, items, kept=one) for one in kept}) == len(kept)
    assert features.key(tiny, dataset, items, kept=Kept(half=True)) == features.key(tiny, dataset, items)


def test_deterministic_algorithms_have_features_of_their_own(tiny: Backbone, dataset: Dataset) -> None:
    items = dataset.items("test")
    plain = features.key(tiny, dataset, items)
    try:
        hold_to_bits(True)
        assert features.key(tiny, dataset, items) != plain
    finally:
        hold_to_bits(False)
    assert features.key(tiny, dataset, items) == plain


@pytest.mark.parametrize("what", ["weights_hash", "architecture"])
def test_other_towers_have_features_of_their_own(what: str, dataset: Dataset) -> None:
    said = {"weights_hash": "w", "architecture": "a", "device": torch.device("cpu"), "images_in_cache": int}
    tower, other = (cast(Backbone, SimpleNamespace(**one)) for one in (said, {**said, what: "other"}))
    items = dataset.items("test")
    assert features.key(tower, dataset, items) != features.key(other, dataset, items)


def test_other_numbers_of_threads_have_features_of_their_own(
    tiny: Backbone, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for threads in (1, 2, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        keys.append(features.key(tiny, dataset, dataset.items("test")))
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("what", ["FORMAT", "BATCH", "EVALUATION_TRANSFORM", "library_versions"])
def test_another_way_of_making_them_has_features_of_its_own(
    what: str, tiny: Backbone, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = features.key(tiny, dataset, dataset.items("test"))
    others: dict[str, Any] = {"BATCH": 32, "library_versions": lambda: {"torch": "0"}}
    monkeypatch.setattr(features, what, others.get(what, "other"))
    assert features.key(tiny, dataset, dataset.items("test")) != before


def test_images_in_several_batches_have_their_own_dense_features(
    tiny: Backbone, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = dataset.items("test")
    monkeypatch.setattr(features, "BATCH", 1)  # of three images
    together = features.encode(tiny, dataset, items, Kept(dense=True))
    apart = [features.encode(tiny, dataset, [item], Kept(dense=True)).local_unprojected for item in items]
    assert together.local_unprojected is not None
    for image, alone in enumerate(apart):
        assert alone is not None and torch.allclose(together.local_unprojected[image], alone[0], atol=1e-5)


def test_half_of_the_classes_read_their_own_rows_of_the_whole(tiny: Backbone, dataset: Dataset) -> None:
    method = create_method("zeroshot", tiny, ("cat", "dog", "eel"))
    new = open_selection(lambda _: dataset, Selection(dataset="pets", split="test", classes="new"), 1)
    assert len(new.items) < len(new.pool)
    batches = features.feature_batches(method, new, Kept(), 10)
    found = torch.cat([images.features.cls for images, _ in batches if images.features is not None])
    assert torch.equal(found, features.image_features(tiny, dataset, new.pool).cls[-len(new.items) :])


def test_models_of_gpus_have_features_of_their_own(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "large" if device.index == 2 else "small")

    def key(place: str) -> str:
        said = {"weights_hash": "w", "architecture": "a", "images_in_cache": int}
        backbone: Any = SimpleNamespace(**said, device=torch.device(place))
        return features.key(backbone, dataset, dataset.items("test"))

    assert key("cuda:0") == key("cuda:1") != key("cuda:2")
    assert key("cpu") not in (key("cuda:1"), key("cuda:2"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "empty", "others"])
def test_a_damaged_entry_is_computed_again(
    damage: str, tiny: Backbone, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    items = dataset.items("test")
    first = features.image_features(tiny, dataset, items)
    path = features.path_of(features.key(tiny, dataset, items))
    good = path.read_bytes()
    other = features.path_of("other")
    features.write(other, ImageFeatures(torch.zeros(2, 4)))
    damaged = {
        "cut": good[: len(good) // 2],
        "flipped": good[:-40] + bytes([good[-40] ^ 1]) + good[-39:],
        "header": b"\xff" * 16 + good[16:],
        "empty": b"",
        "others": other.read_bytes(),
    }
    path.write_bytes(damaged[damage])
    assert path.stem in names()  # listing does not mind
    again = features.image_features(tiny, dataset, items)
    assert torch.equal(first.cls, again.cls) and path.read_bytes() == good
    assert "damaged" in caplog.text


def test_half_precision_only_where_a_method_asks(tiny: Backbone, dataset: Dataset) -> None:
    from promptbench.data.features import kept_of
    from promptbench.method import create_method

    gallop, items = create_method("gallop", tiny, ["cat", "dog"]), dataset.items("test")
    assert kept_of(gallop, dense=True) == Kept(dense=True)

    class Coarse(type(gallop)):  # type: ignore[misc]
        half_dense = True

    gallop.__class__ = Coarse
    assert kept_of(gallop, dense=True) == Kept(dense=True, half=True) and kept_of(gallop, dense=False) == Kept()
    whole, half = (features.image_features(tiny, dataset, items, kept=Kept(True, one)) for one in (False, True))
    assert whole.local_unprojected is not None and half.local_unprojected is not None
    assert half.local_unprojected.dtype == whole.local_unprojected.dtype == torch.float32
    assert torch.equal(half.local_unprojected, whole.local_unprojected.half().float())
    assert not torch.equal(half.local_unprojected, whole.local_unprojected) and torch.equal(half.cls, whole.cls)
    sizes = {entry.size for entry in cached.entries()}
    assert min(sizes) < 0.6 * max(sizes)


def test_the_size_of_dense_features_is_said_before(
    tiny: Backbone, dataset: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = dataset.items("test")
    features.image_features(tiny, dataset, items, dense=True)
    assert not caplog.text
    monkeypatch.setattr(features, "SAID", 1)
    monkeypatch.setattr(features, "encode", lambda *_: pytest.fail("encoded before it was said"))
    with pytest.raises(pytest.fail.Exception):
        features.image_features(tiny, dataset, items[:2], dense=True)
    assert "dense features of 2 images of 'pets' will take" in caplog.text


def test_the_size_that_is_said_of_views_is_theirs(
    tiny: Backbone, dataset: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SAID", 1)
    monkeypatch.setattr(features, "GB", 1)
    kept = Kept(dense=True, views=3, seed=1)
    features.image_features(tiny, dataset, dataset.items("test"), kept=kept)
    (entry,) = cached.entries()
    said = re.search(r"dense features of 3 views each of 3 images of 'pets' will take (\d+)", caplog.text)
    assert said is not None and 0 < entry.size - int(said[1]) < 1000  # but for header and checksum


def test_the_entries_used_longest_ago_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {name: put(name, age) for name, age in (("old", 3), ("older", 4), ("new", 1))}
    assert names() == ["new", "old", "older"]
    size = paths["old"].stat().st_size
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", str(2.5 * size / cached.GB))
    assert features.read(paths["older"], 1) is not None  # which counts as use
    assert cached.make_room() == ["old"]
    assert names() == ["older", "new"]
    put("newest", 0)
    assert set(names()) == {"older", "newest"}


def test_what_a_living_process_uses_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("used", 9), put("written", 8), put("free", 7)
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", "0")
    code = "import time; from promptbench.storage.cache import hold; hold('used'); "
    code += "print('held', flush=True); time.sleep(600)"
    user = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout is not None and user.stdout.readline() == "held\n"
        with Claims(folder / cached.CLAIMS) as claims:
            assert claims.take("written", {}) is not None
            assert cached.busy() >= {"used", "written"}
            assert cached.make_room() == ["free"]
            assert main(["cache", "clear"]) == 1
            assert sorted(names()) == ["used", "written"]
        assert cached.make_room() == ["written"]
    finally:
        user.kill()
        user.wait()
    assert cached.make_room() == ["used"] and not names()


def test_two_processes_do_not_evict_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("one", 1)
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", "0")
    with Claims(folder / cached.CLAIMS) as claims:
        assert claims.take(cached.EVICTION, {}) is not None
        assert cached.make_room() == [] and names() == ["one"]
    assert cached.make_room() == ["one"]


TURNS = """
import torch
from promptbench import load_backbone
from promptbench.data import features
from promptbench.data.dataset import open_dataset

def turns(backbone, root):
    dataset = open_dataset("folder", {"root": root}, alias="pets")
    items = dataset.items("test")
    right = features.encode(backbone, dataset, items, features.Kept()).cls
    while True:
        for part in (items, items[:2], items[1:], items[:1]):
            got = features.image_features(backbone, dataset, part).cls
            assert torch.allclose(got, right[[items.index(item) for item in part]], atol=1e-5)
        yield
"""


@pytest.mark.slow
def test_several_processes_write_read_and_evict_together(
    folder: Path,
    dataset: Dataset,
    tiny: Backbone,
    tiny_name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each gets the right features, whatever the other removes under its hands."""
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", str(3000 / cached.GB))
    root = str(dataset.config.root)  # type: ignore[attr-defined]
    code = f"{TURNS}\ntorch.set_num_threads(1)\nmine = turns(load_backbone({tiny_name!r}), {root!r})\n"
    code += "print('begun', flush=True)\nfor _ in range(4): next(mine)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    defined: dict[str, Any] = {}
    exec(TURNS, defined)
    mine = defined["turns"](tiny, root)
    assert other.stdout is not None and other.stdout.readline() == "begun\n"
    while other.poll() is None:
        next(mine)
    said = other.communicate()[1]
    assert other.returncode == 0, said
    assert "damaged" not in said + caplog.text
    assert sum(entry.size for entry in cached.entries()) <= 2 * 3000


@pytest.mark.slow
@pytest.mark.parametrize("how", ["clear", "evict"])
def test_who_reads_is_never_disturbed_by_who_removes(
    how: str, folder: Path, dataset: Dataset, tiny: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: Any
) -> None:
    """Features that are read, and those that are still mapped, are right while all entries go again and again."""
    items, kept = dataset.items("test"), Kept(dense=True)
    parts = (items, items[:2], items[1:])
    right = [features.encode(tiny, dataset, part, kept).local_unprojected for part in parts]
    removed, over = [0], threading.Event()
    reader = threading.current_thread()
    monkeypatch.setattr(cached, "limit", lambda: cached.GB if threading.current_thread() is reader else 0)

    def remove() -> None:
        while not over.is_set():
            if how == "clear":
                assert main(["cache", "clear"]) in (0, 1)  # 1 where one is just being written
                removed[0] += not capsys.readouterr().out.startswith("removed 0")
            else:
                removed[0] += len(cached.make_room())

    errors: list[BaseException] = []
    remover = threading.Thread(target=lambda: _noting(remove, errors))
    remover.start()
    try:
        mapped = []
        deadline = time.monotonic() + 60
        while removed[0] < 20 and remover.is_alive() and time.monotonic() < deadline:
            for part, expected in zip(parts, right, strict=True):
                found = features.kept_features(tiny, dataset, part, kept).local_unprojected
                assert found is not None and expected is not None and torch.equal(found, expected)
                mapped.append((found, expected))
        assert all(torch.equal(found, expected) for found, expected in mapped)
    finally:
        over.set()
        remover.join()
    assert not errors and removed[0] >= 20 and "damaged" not in caplog.text


def _noting(act: Any, errors: list[BaseException]) -> None:
    try:
        act()
    except BaseException as error:
        errors.append(error)


def test_an_entry_larger_than_the_cache_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = put("small", 1, 400)
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", str(2000 / cached.GB))
    put_large = features.path_of("large")
    features.write(put_large, ImageFeatures(torch.zeros(1, 5000)))
    assert small.exists() and not put_large.exists() and "not kept" in caplog.text


def test_a_full_disk_costs_only_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "write_atomically", full)
    features.write(features.path_of("x"), ImageFeatures(torch.zeros(1, 4)))
    assert "cannot be kept" in caplog.text and "No space left" in caplog.text


def test_drafts_of_killed_processes_go(folder: Path) -> None:
    put("one", 1)
    drafts = [folder / "features" / f".{name}.tmp" for name in ("young", "old")]
    for draft in drafts:
        draft.write_bytes(b"half")
    os.utime(drafts[1], (time.time() - 2 * atomic.DRAFT_AGE,) * 2)
    cached.make_room()
    assert [draft.exists() for draft in drafts] == [True, False]
    assert names() == ["one"]


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_wrong_bound_is_an_error(value: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", value)
    with pytest.raises(UsageError, match="PROMPTBENCH_CACHE_GB takes a number of gigabytes from 0 on, not"):
        cached.limit()


def test_list_shows_entries_and_totals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    assert "0 entries, 0 B of at most 20.0 GB" in capsys.readouterr().out
    put("a" * 64, 2, 4000), put("b" * 64, 1, 8000)
    assert main(["cache", "list"]) == 0
    head, *lines, _, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "kind", "of", "backbone", "images", "size", "last", "used"]
    assert [line.split()[:5] for line in lines] == [
        ["b" * 12, "features", f"set-{'b' * 64}", "b", "1"],
        ["a" * 12, "features", f"set-{'a' * 64}", "b", "1"],
    ]
    assert total.startswith(f"{folder}: 2 entries, 12.")
    assert main(["cache", "list", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(folder) and said["limit"] == 20 * cached.GB
    assert said["bytes"] == sum(entry["bytes"] for entry in said["entries"])
    assert [(entry["name"][0], entry["busy"]) for entry in said["entries"]] == [("b", False), ("a", False)]


def test_clear_removes_what_is_named_or_old(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> None:
        for name, age in (("abcde1", 10), ("abcde2", 5), ("fffff1", 1)):
            put(name, age)

    for words, left in (
        (["--older-than", "4"], ["fffff1"]),
        (["abcde"], ["fffff1"]),
        (["abcde", "--older-than", "7"], ["fffff1", "abcde2"]),
        (["set-fffff1"], ["abcde2", "abcde1"]),
        (["features"], []),
        ([], []),
    ):
        fill()
        assert main(["cache", "clear", *words]) == 0
        assert names() == left, words
        assert f"removed {3 - len(left)} entries" in capsys.readouterr().out


def test_clear_of_an_unknown_name_offers_the_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("abcdef", 1)
    assert main(["cache", "clear", "abcdeg"]) == 2
    assert "Unknown cache entry 'abcdeg'" in (said := capsys.readouterr().err) and "abcdef" in said
    assert main(["cache", "clear", "--older-than", "-1"]) == 2
    assert "takes a number of days from 0 on, not '-1'" in capsys.readouterr().err
    assert names() == ["abcdef"]


def test_remembered_hashes_of_weights_are_entries(
    folder: Path, tiny_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(Place(tmp_path), replace(load_suite("mini"), backbone=tiny_name))
    assert (remembered := remembered_backbone(session)[0]) and (path := next((folder / "weights").iterdir())).is_file()
    (entry,) = cached.entries()
    assert path.read_text().split(" ")[0] == remembered
    assert (entry.kind, entry.name, entry.size) == ("weights", f"weights-{path.name}", path.stat().st_size)
    assert main(["cache", "list"]) == 0 and f"weights-{path.name[:4]}  weights" in capsys.readouterr().out
    assert main(["cache", "clear", "weights"]) == 0 and not path.exists()


def test_rendered_images_are_entries_and_stay_while_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mini: Any = open_dataset("mini_diagrams")
    monkeypatch.setenv("PROMPTBENCH_CACHE_GB", "0")
    first = mini.array("val")
    (entry,) = cached.entries()
    assert entry.kind == "rendered" and entry.what == "diagrams-seed1-val" and len(entry.files) == 2
    assert entry.name in cached.busy() and cached.make_room() == [] and first[0].sum() > 0


def test_without_a_home_folder_the_cache_lasts_as_long_as_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "PROMPTBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    cached._substitute.cache_clear()
    place = cached.cache_dir()
    assert place.is_dir() and cached.cache_dir() == place and "promptbench-" in place.name
    (said,) = caplog.messages
    assert said.startswith("The cache folder ~/.cache/promptbench cannot be written (that home folder is not known")
