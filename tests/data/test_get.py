"""`promptbench data`: what it says of trees whole and broken, and what it lets into a data root."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import inspect as sources_in
import io
import json
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import make_fake
import pytest
from measured import measured

from promptbench import registry
from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.data import selection
from promptbench.data.dataset import Download, Sources, open_dataset
from promptbench.data.get.download import BadArchive, unpack
from promptbench.data.get.prepare import fetch, fetch_split
from promptbench.data.get.status import absent_items, inspect
from promptbench.data.selection import read_sample
from promptbench.suite import load_suite

PUBLIC = tuple(dict.fromkeys(entry.dataset for entry in load_suite("clip11").entries()))
SIZES = (15, 6, 9)  # of the make_fake: three classes with 5, 2 and 3 images


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("PROMPTBENCH_DATA", raising=False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives datasets the facts of their make_fake, and other sources where a test wants them."""

    def shrink(*names: str, sources: Sources | None = None) -> None:
        for name in names:
            cls = registry.load("datasets", name)
            sizes = {"imagenet": (30, 0, 18)}.get(name, SIZES)
            classes = {"imagenet": 6}.get(name, 3)
            monkeypatch.setattr(cls, "info", dataclasses.replace(cls.info, classes=classes, images=sizes))
            if sources is not None:
                monkeypatch.setattr(cls, "sources", sources)

    return shrink


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


# --- status


def test_status_of_complete_trees(tmp_path: Path, small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    small("eurosat", "imagenet", "stanford_cars")
    for name in ("eurosat", "imagenet", "stanford_cars"):
        make_fake.make(name, tmp_path)
    assert run("status", "eurosat", "imagenet", "stanford_cars", "--data-root", tmp_path) == 0
    header, eurosat, imagenet, cars, _, total = capsys.readouterr().out.splitlines()
    dataset = open_dataset("eurosat", roots=[tmp_path])
    names = hashlib.sha256("\n".join(dataset.class_names).encode()).hexdigest()[:12]
    assert header.split()[:4] == ["dataset", "train", "val", "test"]
    assert eurosat.split() == [
        *("eurosat", "15/15", "6/6", "9/9", "split_zhou_EuroSAT.json"),
        *(dataset.split_digest()[:12], names, str(tmp_path / "eurosat"), "nothing"),
    ]
    assert imagenet.split()[:4] == ["imagenet", "30/30", "none", "18/18"] and "its own" in imagenet
    assert cars.endswith("nothing")
    assert total == "3 of 3 datasets are complete"


def test_status_of_nothing_names_every_dataset_and_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "--data-root", tmp_path) == 0
    _, *lines, empty, total = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PUBLIC) and not empty
    assert all(f"not found in {tmp_path}: looked for " in line for line in lines)
    pets = next(line for line in lines if line.startswith("oxford_pets"))
    assert pets.split()[1:4] == ["-/2,944", "-/736", "-/3,669"]
    assert total == f"0 of {len(PUBLIC)} datasets are complete"


def test_status_without_a_root_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "dtd") == 0
    assert "no data root is given, with --data-root or in PROMPTBENCH_DATA" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["coop", "gallop"])
def test_status_finds_all_images_in_either_tree(layout: str, tmp_path: Path) -> None:
    for name in PUBLIC:
        make_fake.make(name, tmp_path, layout=layout)
    for name in PUBLIC:
        state = inspect(open_dataset(name, roots=[tmp_path]))
        assert state.present == state.sizes and sum(state.sizes.values()) >= 6
        assert state.place is not None and tmp_path in state.place.parents
        assert not [
            sentence for sentence in state.lacks if "where the dataset has" not in sentence
        ]  # few, as make_fake are


def test_status_of_a_suite_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fake.make_folder(tmp_path / "birds")
    roles = "{base2new: [{dataset: folder, name: mine, root: birds}, mini_fabrics], few_shot: [mini_fabrics]}"
    (tmp_path / "own.yaml").write_text(f"title: own\nbackbone: mini\nroles: {roles}\n")
    assert run("status", "--suite", tmp_path / "own.yaml", "--data-root", tmp_path) == 0
    _, mine, fabrics, _, total = capsys.readouterr().out.splitlines()
    assert mine.split()[:4] == ["mine", "15/15", "6/6", "9/9"] and str(tmp_path / "birds") in mine
    assert fabrics.startswith("mini_fabrics") and total == "2 of 2 datasets are complete"


def break_split(root: Path) -> None:
    (root / "eurosat" / "split_zhou_EuroSAT.json").write_text("{")


def drop_split(root: Path) -> None:
    (root / "eurosat" / "split_zhou_EuroSAT.json").unlink()


def drop_images(root: Path) -> None:
    shutil.rmtree(root / "eurosat" / "2750" / "Forest")


def empty_images(root: Path) -> None:
    shutil.rmtree(root / "eurosat" / "2750")
    (root / "eurosat" / "2750").mkdir()


def empty_all(root: Path) -> None:
    shutil.rmtree(root / "eurosat")
    (root / "eurosat").mkdir()


def other_split(root: Path) -> None:
    path = root / "eurosat" / "split_zhou_EuroSAT.json"
    splits = json.loads(path.read_text())
    path.write_text(json.dumps({**splits, "test": splits["test"][:-1]}))


def file_for_folder(root: Path) -> None:
    shutil.rmtree(root / "eurosat")
    (root / "eurosat").write_text("")


def test_what_the_output_says_is_not_warned_of(
    tmp_path: Path, small: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    small("eurosat")
    make_fake.make("eurosat", tmp_path, annotations=True)  # whose split is generated, which costs a warning elsewhere
    for words in (("status",), ("check",), ("prepare", "--yes")):
        run(*words, "eurosat", "--data-root", tmp_path)
        assert "generated split" in capsys.readouterr().out
    assert not caplog.messages


BROKEN = {
    break_split: "is not valid JSON",
    drop_split: "split_zhou_EuroSAT.json is not there; figures on a generated split compare with no other",
    drop_images: "10 of 30 images are not in ",
    empty_images: "30 of 30 images are not in ",
    empty_all: "not found in ",
    other_split: "the split has 8 test images where the dataset has 9",
    file_for_folder: "not found in ",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_a_broken_dataset_is_a_line_of_status_and_fails_check(
    damage: Callable[[Path], None], tmp_path: Path, small: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    small("eurosat", "dtd")
    for name in ("eurosat", "dtd"):
        make_fake.make(name, tmp_path)
    damage(tmp_path)
    before = tree(tmp_path)
    assert run("status", "eurosat", "dtd", "--data-root", tmp_path) == 0
    _, eurosat, dtd, _, total = capsys.readouterr().out.splitlines()
    assert BROKEN[damage] in eurosat and dtd.endswith("nothing")
    assert total == "1 of 2 datasets are complete"
    assert run("check", "eurosat", "dtd", "--data-root", tmp_path) == 1
    output = capsys.readouterr()
    assert BROKEN[damage] in output.out and "dtd: complete" in output.out and not output.err
    assert tree(tmp_path) == before


def test_an_unreadable_folder_is_a_line_of_status(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("eurosat")
    make_fake.make("eurosat", tmp_path)
    scan = os.scandir

    def refuse(path: Any) -> Any:  # root may read everything: the system's refusal is acted
        if Path(path).name == "Forest":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert run("status", "eurosat", "--data-root", tmp_path) == 0
    assert f"Cannot read the folder {tmp_path}/eurosat/2750/Forest: Permission denied" in capsys.readouterr().out


def test_a_forbidden_data_root_is_a_line_of_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    assert run("status", "eurosat", "--data-root", tmp_path) == 0
    path = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    assert f"{path} cannot be read: Permission denied" in capsys.readouterr().out


def test_absent_items_are_found_by_one_listing_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_fake.make("dtd", tmp_path)
    dataset = open_dataset("dtd", roots=[tmp_path])
    items = [item for split in ("train", "val", "test") for item in dataset.items(split)]
    (dataset.image_root / items[3].image).unlink()
    (dataset.image_root / items[4].image).unlink()
    (dataset.image_root / items[4].image).symlink_to(tmp_path / "gone.jpg")
    seen: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(Path(path).name) or scan(path))
    assert absent_items(dataset, items) == items[3:5]
    assert seen == ["banded", "blotchy", "braided"]


# --- check


def test_check_deep_names_every_bad_image(tmp_path: Path, small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    small("eurosat")
    make_fake.make("eurosat", tmp_path)
    images = sorted((tmp_path / "eurosat" / "2750").rglob("*.jpg"))
    images[0].write_bytes(images[0].read_bytes()[:200])
    images[7].write_bytes(b"")
    assert run("check", "eurosat", "--data-root", tmp_path) == 0
    assert capsys.readouterr().out == "eurosat: complete\n"
    images[9].unlink()
    assert run("check", "eurosat", "--deep", "--data-root", tmp_path) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 4 and f"eurosat: {images[9]} is not there" in output.out
    assert all(f"eurosat: Cannot read the image {image}: " in output.out for image in (images[0], images[7]))
    assert output.err == "eurosat: 29 of 29 images opened\n"


def test_check_takes_a_users_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fake.make_folder(tmp_path / "birds")
    assert run("check", f"folder:{tmp_path / 'birds'}", "--deep") == 0
    assert capsys.readouterr().out == "birds: complete, every image can be opened\n"


def test_rendered_datasets_lack_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "mini_fabrics") == 0
    assert run("prepare", "mini_fabrics", "--data-root", "/nowhere") == 0
    assert capsys.readouterr().out == "mini_fabrics: complete\n" * 2


def test_unknown_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in {
        ("check", "eurosta"): "Did you mean 'eurosat'",
        ("check",): "NAME",
        ("stat",): "invalid choice",
        ("status", "--suite", "clip12"): "Did you mean 'clip11'",
        ("prepare", "dtd"): "--data-root",
        ("prepare", "dtd", "--data-root", "a", "b"): "one data root",
        ("prepare", "folder:/absent", "--data-root", str(tmp_path)): "names no files to get",
        ("sample", "dtd", "--sampler", "strat"): "Did you mean 'stratified'",
    }.items():
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


# --- archives: every test counts what is outside of the target, too


def tar_of(path: Path, *entries: tuple[str, bytes | None, dict[str, Any]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content, facts in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content or b"")
            for key, value in facts.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(content) if content is not None else None)
    return path


def zip_of(path: Path, *entries: tuple[str, bytes], mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            file.writestr(entry, content, method)
    return path


def raw_tar(path: Path, *parts: bytes) -> Path:
    """A gzipped tar file, block by block."""
    path.write_bytes(gzip.compress(b"".join(part + bytes(-len(part) % 512) for part in parts)))
    return path


def head(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header of a tar file."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def old_sparse() -> bytes:
    """A header of a file with holes, whose map would go on in the next block."""
    block = bytearray(head("data/a", 0, tarfile.GNUTYPE_SPARSE))
    block[386:482], block[482] = b"%011o\0" % 1 * 8, 1
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
    return bytes(block)


def negative() -> bytes:
    """A header of a file of -1 bytes, after which Python would read it again, and again."""
    block = bytearray(head("data/a", 0))
    block[124:136] = b"\xff" * 12
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
    return bytes(block)


SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.name=data/a\n"


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> dict[str, Any]:
    return {"type": kind, "linkname": target}


GOOD = ("data/a.jpg", b"aaa", {})
EVIL: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tar-dots": (lambda p: tar_of(p, GOOD, ("../evil", b"x", {})), r"the path '\.\./evil' leaves its folder"),
    "tar-inner-dots": (lambda p: tar_of(p, ("data/../../evil", b"x", {})), "leaves its folder"),
    "tar-absolute": (lambda p: tar_of(p, ("/tmp/promptbench-evil", b"x", {})), "leaves its folder"),
    "tar-symlink-out": (lambda p: tar_of(p, ("data/l", None, link("../../evil"))), "a link to '../../evil' leaves"),
    "tar-symlink-absolute": (lambda p: tar_of(p, ("data/l", None, link("/etc"))), "a link to '/etc' leaves"),
    "tar-hardlink-out": (lambda p: tar_of(p, ("data/l", None, link("../evil", tarfile.LNKTYPE))), "a link to"),
    "tar-write-through-link": (
        lambda p: tar_of(p, ("data/l", None, link("/tmp")), ("data/l/promptbench-evil", b"x", {})),
        "a link to '/tmp' leaves",
    ),
    "tar-link-to-itself": (lambda p: tar_of(p, ("data/l", None, link("l"))), "is damaged"),
    "tar-link-to-nothing": (lambda p: tar_of(p, ("data/l", None, link("absent"))), "is damaged"),
    "tar-device": (lambda p: tar_of(p, ("data/null", None, {"type": tarfile.CHRTYPE})), "holds a device"),
    "tar-fifo": (lambda p: tar_of(p, ("data/pipe", None, {"type": tarfile.FIFOTYPE})), "holds a device"),
    "tar-bomb": (lambda p: tar_of(p, ("data/a", bytes(2**21), {})), "far more than an archive of its size"),
    "tar-bomb-of-links": (
        lambda p: tar_of(p, ("data/a", os.urandom(2**19), {}), *[(f"data/{i}", None, link("a")) for i in range(9)]),
        "far more than an archive of its size",
    ),
    "tar-no-such-folder": (lambda p: tar_of(p, ("other/a", b"x", {})), "holds no files below 'data'"),
    "tar-long-name": (
        lambda p: raw_tar(p, head("x", 2**20, tarfile.GNUTYPE_LONGNAME), bytes(2**20), head("data/a", 0)),
        "has a header of 1,048,576 bytes",
    ),
    "tar-long-attributes": (
        lambda p: raw_tar(p, head("x", 2**20, tarfile.XHDTYPE), bytes(2**20), head("data/a", 0)),
        "has a header of 1,048,576 bytes",
    ),
    "tar-many-attributes": (
        lambda p: raw_tar(p, *[head("x", 4096, tarfile.XHDTYPE), bytes(4096), head("data/a", 0)] * 30),
        "far more than an archive of its size",
    ),
    "tar-size-below-zero": (lambda p: raw_tar(p, negative()), "has a header of -1 bytes"),
    "tar-attribute-below-zero": (
        lambda p: raw_tar(p, head("x", 12, tarfile.XHDTYPE), b"12 size=-99\n", head("data/a", 0)),
        "a file of -99 bytes",
    ),
    "tar-sparse": (lambda p: raw_tar(p, old_sparse(), b"\0" * 505), "holds a sparse file"),
    "tar-sparse-by-attributes": (
        lambda p: raw_tar(p, head("x", len(SPARSE), tarfile.XHDTYPE), SPARSE, head("data/a", 1024), b"9\n" * 512),
        "holds a sparse file",
    ),
    "tar-many-folders": (
        lambda p: raw_tar(p, *[head(f"data/{index}", 0, tarfile.DIRTYPE) for index in range(200)]),
        "far more than an archive of its size",
    ),
    "tar-much-skipped": (
        lambda p: raw_tar(p, head("data", 2**32, tarfile.DIRTYPE), bytes(2**21), head("data/a", 0)),
        "far more than an archive of its size",
    ),
    "zip-many-files": (
        lambda p: zip_of(p, *[(f"x/{'a' * 99}/{index}", b"") for index in range(200)], ("data/a", b"a")),
        "far more than an archive of its size",
    ),
    "zip-other-method": (
        lambda p: zip_of(p, ("data/a", b"a"), method=zipfile.ZIP_BZIP2),
        "packed by another method than deflate, 'data/a'",
    ),
    "zip-slip": (lambda p: zip_of(p, ("../evil", b"x")), "leaves its folder"),
    "zip-absolute": (lambda p: zip_of(p, ("/tmp/promptbench-evil", b"x")), "leaves its folder"),
    "zip-backslash": (lambda p: zip_of(p, ("data\\..\\..\\evil", b"x")), "leaves its folder"),
    "zip-drive": (lambda p: zip_of(p, ("C:/evil", b"x")), "leaves its folder"),
    "zip-symlink": (lambda p: zip_of(p, ("data/l", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777), "holds a link"),
    "zip-bomb": (lambda p: zip_of(p, ("data/a", bytes(2**21))), "far more than an archive of its size"),
    "zip-empty": (lambda p: zip_of(p), "holds no files"),
    "neither": (lambda p: p.write_bytes(b"<html>not found</html>") and p, "is neither a zip nor a tar file"),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_archive_is_refused_and_writes_nowhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptbench.data.get.download.SLACK", 2**20)
    monkeypatch.setattr("promptbench.data.get.download.FILES", 100)
    monkeypatch.setattr("promptbench.data.get.download.BYTES_PER_FILE", 2000)
    make, said = EVIL[name]
    archive = make(tmp_path / "archive")
    with pytest.raises(BadArchive, match=said):
        unpack(archive, "data", tmp_path / "deep" / "er" / "target")
    assert all(path.startswith(("archive", "deep")) for path in tree(tmp_path))
    assert not [path for path in tree(tmp_path) if "evil" in path] and not Path("/tmp/promptbench-evil").exists()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_cut_archive_is_refused(make: Any, tmp_path: Path) -> None:
    entries = [(f"data/{index}", os.urandom(5000), *([{}] if make is tar_of else [])) for index in range(20)]
    archive = make(tmp_path / "archive", *entries)
    whole = archive.read_bytes()
    assert unpack(archive, "data", tmp_path / "whole") == 20
    for part in (10, 2, 1.02):
        archive.write_bytes(whole[: int(len(whole) / part)])
        with pytest.raises(BadArchive, match=r"is (damaged or cut short|neither)"):
            unpack(archive, "data", tmp_path / f"target-{part}")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    for make, entry in ((tar_of, ("data/a", os.urandom(9000), {})), (zip_of, ("data/a", os.urandom(9000)))):
        archive = make(tmp_path / make.__name__, entry)  # type: ignore[operator]
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 1
        archive.write_bytes(content)
        with pytest.raises(BadArchive, match="is damaged or cut short"):
            unpack(archive, "data", tmp_path / "target")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_folder_of_an_archive_becomes_the_target(mode: str, tmp_path: Path) -> None:
    archive = tar_of(
        tmp_path / "archive",
        ("./data", None, {"type": tarfile.DIRTYPE}),
        ("./data/a.jpg", b"aaa", {"mode": 0}),
        ("./data/b/c.jpg", b"ccc", {}),
        ("./data/b/l.jpg", None, link("../a.jpg")),
        ("./data/h.jpg", None, link("./data/b/c.jpg", tarfile.LNKTYPE)),
        ("./data-too/d.jpg", b"ddd", {}),
        mode=mode,
    )
    assert unpack(archive, "data", tmp_path / "target") == 4
    found = {path: (tmp_path / "target" / path) for path in tree(tmp_path / "target")}
    contents = {path: file.read_bytes() for path, file in found.items() if file.is_file()}
    assert contents == {"a.jpg": b"aaa", "b/c.jpg": b"ccc", "b/l.jpg": b"aaa", "h.jpg": b"ccc"}
    assert not any(file.is_symlink() for file in found.values())


def test_links_lead_to_files_anywhere_in_the_archive(tmp_path: Path) -> None:
    archive = tar_of(
        tmp_path / "archive",
        ("other/a.jpg", b"aaa", {}),
        ("data/l.jpg", None, link("m.jpg")),
        ("data/m.jpg", None, link("../other/a.jpg")),
        ("data/n.jpg", None, link("late.jpg")),
        ("data/h.jpg", None, link("other/a.jpg", tarfile.LNKTYPE)),
        ("data/i.jpg", None, link("data/h.jpg", tarfile.LNKTYPE)),
        ("data/late.jpg", b"ccc", {}),
        ("data/folder", None, {"type": tarfile.DIRTYPE}),
        ("data/to-folder", None, link("folder")),
    )
    assert unpack(archive, "data", tmp_path / "target") == 6
    found = {path: (tmp_path / "target" / path).read_bytes() for path in tree(tmp_path / "target")}
    same = dict.fromkeys(("l.jpg", "m.jpg", "h.jpg", "i.jpg"), b"aaa")
    assert found == {**same, "n.jpg": b"ccc", "late.jpg": b"ccc"}


@pytest.mark.slow
def test_an_archive_takes_what_its_size_warrants(tmp_path: Path) -> None:
    many = [head(f"other/{index}", 0) for index in range(2000)]
    links = [head("data/a", 3), b"aaa"]
    for index in range(2000):
        entry = tarfile.TarInfo(f"data/l{index}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "a"
        links.append(entry.tobuf())
    parts = {
        "name": [head("x", 2**26, tarfile.GNUTYPE_LONGNAME), bytes(2**26), head("data/a", 0)],
        "attributes": [head("x", 4096, tarfile.XHDTYPE), b"2 " * 2040 + b"=", head("data/a", 0)] * 1000,
        "links": [*many, *links, os.urandom(2**20)],
    }
    files = {name: raw_tar(tmp_path / name, *parts[name]) for name in parts}
    imports = "import promptbench.data.get.download as download\nUsageError = download.BadArchive"
    for name, taken in measured("download.unpack(path, 'data', Path(f'{path}-out'))", files, imports).items():
        assert taken.mib < 32 and taken.seconds < 3, (name, taken)


def test_a_zip_archive_within_an_archive(tmp_path: Path) -> None:
    inner = tar_of(tmp_path / "inner", GOOD)
    outer = zip_of(tmp_path / "outer", ("x/readme", b"?"), ("x/inner.tar.gz", inner.read_bytes()))
    download = Download(url=outer.as_uri(), inner="x/inner.tar.gz", folder="data", target="target")
    fetch(download, tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"target", "target/a.jpg"}
    with pytest.raises(UsageError, match="holds no file 'x/other'"):
        fetch(dataclasses.replace(download, inner="x/other", target="never"), tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"target", "target/a.jpg"}


# --- prepare, from files on this machine


@pytest.fixture
def offer(tmp_path: Path, small: Any) -> Callable[..., Path]:
    """Puts a fake of EuroSAT on offer as an archive and a split file; returns an empty data root."""

    def make(md5: str | None = None, change: Callable[[Path], object] = lambda path: None) -> Path:
        shop, root = tmp_path / "shop", tmp_path / "root"
        root.mkdir()
        make_fake.make("eurosat", shop)
        archive = shop / "EuroSAT.zip"
        images = sorted(path for path in (shop / "eurosat" / "2750").rglob("*.jpg"))
        zip_of(archive, *[(path.relative_to(shop / "eurosat").as_posix(), path.read_bytes()) for path in images])
        stated = hashlib.md5(archive.read_bytes()).hexdigest() if md5 is None else md5
        change(shop)
        sources = Sources(
            downloads=(Download(url=archive.as_uri(), md5=stated, folder="2750", target="2750"),),
            split_url=(shop / "eurosat" / "split_zhou_EuroSAT.json").as_uri(),
        )
        small("eurosat", sources=sources)
        return root

    return make


def test_prepare_downloads_checks_and_unpacks(offer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = offer()
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 0
    assert capsys.readouterr().out == "eurosat: complete\n"
    assert {path for path in tree(root) if path.count("/") < 2} == {
        *("eurosat", "eurosat/2750", "eurosat/split_zhou_EuroSAT.json")
    }
    assert run("check", "eurosat", "--deep", "--data-root", root) == 0


def test_prepare_makes_a_root_that_is_not_there(offer: Any) -> None:
    root = offer() / "new" / "root"
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 0
    assert run("check", "eurosat", "--data-root", root) == 0


def test_prepare_leaves_what_is_there(offer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = offer()
    (root / "eurosat" / "2750" / "Forest").mkdir(parents=True)
    mine = root / "eurosat" / "2750" / "Forest" / "mine.jpg"
    mine.write_bytes(b"mine")
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 1  # some images are not there
    output = capsys.readouterr().out
    assert "30 of 30 images are not in" in output and "1. See what is still missing: promptbench data check" in output
    assert tree(root / "eurosat") == {"2750", "2750/Forest", "2750/Forest/mine.jpg", "split_zhou_EuroSAT.json"}


@pytest.mark.parametrize(
    ("answer", "code"), [("y", 0), ("Yes", 0), ("n", 1), ("", 1)], ids=["y", "Yes", "n", "nothing"]
)
def test_prepare_asks_before_it_writes(
    answer: str, code: int, offer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = offer()
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    assert run("prepare", "eurosat", "--data-root", root) == code
    output = capsys.readouterr().out
    assert f"EuroSAT.zip -> {root}/eurosat/2750" in output
    assert bool(tree(root)) == (code == 0)


def test_the_end_of_input_is_a_no(
    offer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(prompt: str) -> str:
        raise EOFError

    root = offer()
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", ended)
    assert run("prepare", "eurosat", "--data-root", root) == 1
    assert capsys.readouterr().out.endswith("nothing was written\n") and not tree(root)


def test_prepare_without_a_terminal_needs_yes(
    offer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = offer()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run("prepare", "eurosat", "--data-root", root) == 2
    assert "add --yes" in capsys.readouterr().err and not tree(root)


def cut(shop: Path) -> None:
    whole = (shop / "EuroSAT.zip").read_bytes()
    (shop / "EuroSAT.zip").write_bytes(whole[: len(whole) // 2])


def slip(shop: Path) -> None:
    zip_of(shop / "EuroSAT.zip", ("2750/a.jpg", b"x"), ("../../../evil", b"x"))


@pytest.mark.parametrize(
    ("md5", "change", "said"),
    [
        ("0" * 32, lambda shop: None, "gives another file than it used to (MD5"),
        (None, cut, "gives another file than it used to (MD5"),
        ("", cut, "is neither a zip nor a tar file; nothing of it was kept"),
        ("", slip, "is unsafe: the path '../../../evil' leaves its folder; nothing of it was kept"),
        (None, lambda shop: (shop / "EuroSAT.zip").unlink(), "cannot be fetched ("),
    ],
    ids=["checksum", "cut", "cut-without-checksum", "slip", "absent"],
)
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    md5: str | None, change: Any, said: str, offer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = offer(md5, change)
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 1
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if line.startswith("promptbench")]
    assert line.startswith("promptbench: eurosat: ") and said in line
    assert tree(root) == {"eurosat", "eurosat/split_zhou_EuroSAT.json"}  # the split file is whole
    assert "1. Get file:" in output.out and f"make its folder '2750' the folder {root}/eurosat/2750." in output.out


def test_another_file_for_the_split_is_not_kept(offer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def swap(shop: Path) -> None:
        split = shop / "eurosat" / "split_zhou_EuroSAT.json"
        split.write_text(json.dumps({**json.loads(split.read_text()), "val": []}))

    for change, said in (
        (swap, "it has 3 classes and 24 images, not those of EuroSAT"),
        (lambda shop: (shop / "eurosat" / "split_zhou_EuroSAT.json").write_text("<html>"), "is not valid JSON"),
    ):
        root = offer(change=change)
        assert run("prepare", "eurosat", "--data-root", root, "--yes") == 1
        output = capsys.readouterr()
        assert "gives is not split_zhou_EuroSAT.json (" in output.err and said in output.err
        assert f"and put it at {root}/eurosat/split_zhou_EuroSAT.json." in output.out
        assert not (root / "eurosat" / "split_zhou_EuroSAT.json").exists()
        assert len(list((root / "eurosat").iterdir())) == 1
        shutil.rmtree(root)
        shutil.rmtree(root.parent / "shop")


def test_a_read_only_root_is_refused_before_any_download(
    offer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = offer()

    def refuse(**where: Any) -> Any:  # root may write everywhere: the system's refusal is acted
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("promptbench.data.get.prepare.TemporaryFile", refuse)
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 2
    error = capsys.readouterr().err
    assert f"The data root {root} cannot be written ({root}: Read-only file system)" in error
    assert error.count("\n") == 1 and not tree(root)


def test_a_file_for_a_root_is_refused(offer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = offer() / "file"
    root.write_text("")
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 2
    assert f"{root} cannot be written" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    offer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = offer()

    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zipfile.ZipFile.extract", full)
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 1
    assert f"Cannot write to {root}/eurosat: No space left on device." in capsys.readouterr().err
    assert tree(root) == {"eurosat", "eurosat/split_zhou_EuroSAT.json"}


def test_a_failed_download_removes_no_folder_of_the_user_s(tmp_path: Path, small: Any) -> None:
    small("fgvc_aircraft", sources=Sources(downloads=(Download(url="file:///absent", target=""),)))
    for root, left in ((tmp_path, True), (tmp_path / "new", False)):
        assert run("prepare", "fgvc_aircraft", "--data-root", root, "--yes") == 1
        assert root.exists() == left


def test_a_folder_in_the_way_is_named_before_the_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fgvc_aircraft").mkdir()
    (tmp_path / "fgvc_aircraft" / "notes.txt").write_text("mine")
    monkeypatch.setattr("promptbench.data.get.prepare.fetch_url", None)
    assert run("prepare", "fgvc_aircraft", "--data-root", tmp_path, "--yes") == 1
    assert f"{tmp_path}/fgvc_aircraft is there already but lacks images; move it away" in capsys.readouterr().err
    assert tree(tmp_path) == {"fgvc_aircraft", "fgvc_aircraft/notes.txt"}


def test_a_python_without_the_data_filter_is_refused_before_any_download(
    offer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = offer()
    monkeypatch.delattr("tarfile.data_filter")
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 1
    output = capsys.readouterr()
    said = "promptbench: eurosat: Only Python 3.10.12, 3.11.4, 3.12 and later unpack archives safely; get another one."
    assert said in output.err.splitlines() and "EuroSAT.zip:" not in output.err
    assert tree(root) == {"eurosat", "eurosat/split_zhou_EuroSAT.json"}


def test_ctrl_c_leaves_nothing(offer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = offer()

    def interrupt(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zipfile.ZipFile.extract", interrupt)
    assert run("prepare", "eurosat", "--data-root", root, "--yes") == 130
    assert not tree(root)


class Server(BaseHTTPRequestHandler):
    """Ends a connection half-way, or has no such file."""

    def do_GET(self) -> None:
        if self.path != "/half":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(bytes(500))

    def log_message(self, *words: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_the_network_s_failures_are_sentences(server: str, tmp_path: Path) -> None:
    from promptbench.data.get.download import fetch_url

    for url, said in {
        f"{server}/half": r"/half came in part, 500 of 1,000 bytes",
        f"{server}/none": r"/none cannot be fetched \(HTTP Error 404: Not Found\)",
        "http://127.0.0.1:9/x": r"cannot be fetched \(.*refused\)",
        "http://nowhere.invalid/x": r"cannot be fetched \(.*\); try again",
    }.items():
        with pytest.raises(UsageError, match=said):
            fetch_url(url, tmp_path / "file")


# --- the facts of the datasets


def test_an_aircraft_archive_becomes_the_dataset_s_folder(tmp_path: Path, small: Any) -> None:
    make_fake.make("fgvc_aircraft", tmp_path / "shop")
    files = [path for path in (tmp_path / "shop" / "fgvc_aircraft").rglob("*") if path.is_file()]
    inside = tmp_path / "shop" / "fgvc_aircraft"
    archive = tar_of(
        tmp_path / "shop" / "archive.tar.gz",
        ("fgvc-aircraft-2013b/evaluation.m", b"?", {}),
        *[(f"fgvc-aircraft-2013b/data/{p.relative_to(inside).as_posix()}", p.read_bytes(), {}) for p in files],
    )
    (real,) = registry.load("datasets", "fgvc_aircraft").sources.downloads
    small("fgvc_aircraft", sources=Sources(downloads=(dataclasses.replace(real, url=archive.as_uri()),)))
    (tmp_path / "root").mkdir()
    assert run("prepare", "fgvc_aircraft", "--data-root", tmp_path / "root", "--yes") == 0
    assert tree(tmp_path / "root" / "fgvc_aircraft") == tree(inside)


def test_caltech_s_archive_is_two_in_one(tmp_path: Path, small: Any) -> None:
    make_fake.make("caltech101", tmp_path / "shop")
    base = tmp_path / "shop" / "caltech-101"
    files = [path for path in (base / "101_ObjectCategories").rglob("*") if path.is_file()]
    inner = tar_of(base / "inner", *[(p.relative_to(base).as_posix(), p.read_bytes(), {}) for p in files])
    outer = zip_of(base / "outer", ("caltech-101/101_ObjectCategories.tar.gz", inner.read_bytes()))
    real = registry.load("datasets", "caltech101").sources
    (download,) = real.downloads
    here = dataclasses.replace(download, url=outer.as_uri(), md5=hashlib.md5(outer.read_bytes()).hexdigest())
    split_url = (base / "split_zhou_Caltech101.json").as_uri()
    small("caltech101", sources=dataclasses.replace(real, downloads=(here,), split_url=split_url))
    assert run("prepare", "caltech101", "--data-root", tmp_path / "root", "--yes") == 0
    assert tree(tmp_path / "root" / "caltech-101" / "101_ObjectCategories") == tree(base / "101_ObjectCategories")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_dataset_can_be_had_in_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, `prepare` ends with steps that name the dataset's own folder, its split file and no dead flag."""

    def offline(url: str, *words: Any) -> None:
        raise UsageError(f"{url} cannot be fetched (offline).")

    monkeypatch.setattr("promptbench.data.get.prepare.fetch_url", offline)
    dataset = open_dataset(name, roots=[tmp_path])
    assert run("prepare", name, "--data-root", tmp_path, "--yes") == 1
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    folder = dataset.layout.places[0]
    assert any(str(folder) in step for step in steps) and "{" not in "".join(steps)
    assert steps[-1].startswith(f"  {len(steps)}. See what is still missing: promptbench data check {name}")
    if dataset.info.split_file.endswith(".json"):
        assert any(f"Get {dataset.info.split_file} from https://drive.google.com/" in step for step in steps)
    assert not tree(tmp_path)


TORCHVISION = {
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordIIITPet",
    "oxford_flowers": "Flowers102",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
}


def test_addresses_and_checksums_are_torchvision_s() -> None:
    import torchvision

    if tuple(map(int, torchvision.__version__.split("+")[0].split(".")[:2])) < (0, 29):
        pytest.skip("older versions of torchvision name other addresses")
    offered = {name: registry.load("datasets", name).sources.downloads for name in PUBLIC}
    assert {name for name, downloads in offered.items() if downloads} == set(TORCHVISION)
    for name, cls in TORCHVISION.items():
        source = sources_in.getsource(getattr(torchvision.datasets, cls))
        for download in offered[name]:
            folder, _, file = download.url.rpartition("/")
            assert folder in source and file in source and download.md5 in source
            assert download.md5 or name == "fgvc_aircraft"  # torchvision states none


def test_expected_sizes_are_those_of_the_split_files(tmp_path: Path) -> None:
    splits = os.environ.get("PROMPTBENCH_TEST_SPLITS", "")
    checked = 0
    for name in make_fake.SPLIT_JSON:
        info = registry.load("datasets", name).info
        assert len(info.images) == 3 and min(info.images) > 0
        if splits and (path := Path(splits, info.split_file)).is_file():
            content = json.loads(path.read_text())
            assert info.images == tuple(len(content[split]) for split in ("train", "val", "test"))
            fetch_split(path.as_uri(), tmp_path / path.name, info)
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()
            checked += 1
    if not checked:
        pytest.skip("PROMPTBENCH_TEST_SPLITS names no folder with split files")


# --- sample


def test_a_sample_is_written_with_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_fake.make("dtd", tmp_path)
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("dtd", roots=[tmp_path])
    for sampler, file in {"coop": "dtd-2-7.jsonl", "stratified": "dtd-2-7-stratified.jsonl"}.items():
        words = ("sample", "dtd", "--shots", 2, "--seed", 7, "--sampler", sampler, "--data-root", tmp_path)
        assert run(*words) == 0
        items = selection.SAMPLERS[sampler](dataset.items("train"), 2, 7)
        assert read_sample(tmp_path / file, dataset.items("train")) == items and len(items) == 6
        header = json.loads((tmp_path / file).read_text().splitlines()[0])
        assert header["digest"] == selection.digest(items) and header["split_digest"] == dataset.split_digest()
        assert {key: header[key] for key in ("dataset", "shots", "seed", "sampler")} == {
            **{"dataset": "dtd", "shots": 2, "seed": 7, "sampler": sampler}
        }
        assert f"wrote {file}: 6 images of 3 classes, digest {header['digest']}" in capsys.readouterr().out


def test_coop_s_sample_of_the_real_split(tmp_path: Path) -> None:
    """First 16 digits of the digest of CoOp's 16-shot sample at seed 1, as computed from the authors' split file."""
    split = Path(os.environ.get("PROMPTBENCH_TEST_SPLITS", "absent"), "split_zhou_DescribableTextures.json")
    if not split.is_file():
        pytest.skip("PROMPTBENCH_TEST_SPLITS names no folder with the split file")
    (tmp_path / "dtd").mkdir()
    shutil.copy(split, tmp_path / "dtd")
    assert run("sample", "dtd", "--data-root", tmp_path, "-o", tmp_path / "dtd.jsonl") == 0
    header = json.loads((tmp_path / "dtd.jsonl").read_text().splitlines()[0])
    assert header["digest"].startswith("daf3b28e531fbc4b")


def test_what_cannot_be_sampled_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fake.make("dtd", tmp_path)
    make_fake.make("imagenet_a", tmp_path)
    for words, said in {
        ("imagenet_a",): "has no training images to sample",
        ("dtd", "-o", "sample.txt"): "must end in .jsonl",
        ("dtd", "--shots", "0"): "takes integers from 1 on",
        ("eurosat",): "was not found",
    }.items():
        assert run("sample", *words, "--data-root", tmp_path) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
