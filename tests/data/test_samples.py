"""Samples in files: what is written reads back, CoOp's pickles are never run, mistakes are said with the line."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import make_fake
import pytest

from promptbench.config import UsageError
from promptbench.data import selection
from promptbench.data.dataset import open_dataset
from promptbench.data.selection import read_sample, write_sample
from promptbench.data.splits import Item
from promptbench.storage import unpickle

DASSL = "dassl.data.datasets.base_dataset"
HEADER = {"dataset": "eurosat", "shots": 2, "seed": 1, "sampler": "coop"}
ITEMS = [
    Item(f"{folder}/{folder}_{index}.jpg", label, name)
    for label, (folder, name) in enumerate([("Forest", "Forest"), ("River", "River"), ("SeaLake", "Sea or Lake")])
    for index in range(4)
]


@pytest.fixture
def datum(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes Dassl's `Datum`; its module exists for pickling alone and is gone when a test calls `forget`."""

    class Datum:
        def __init__(self, impath: Any = "", label: Any = 0, domain: Any = 0, classname: Any = "") -> None:
            self._impath, self._label, self._domain, self._classname = impath, label, domain, classname

    Datum.__module__, Datum.__qualname__ = DASSL, "Datum"
    parts = DASSL.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    sys.modules[DASSL].Datum = Datum  # type: ignore[attr-defined]
    yield Datum


def datums(datum: Callable[..., Any], items: list[Item], root: str = "/home/kaiyang/data/eurosat/2750/") -> list[Any]:
    return [datum(root + item.image, item.label, 0, item.class_name) for item in items]


def pickled(path: Path, content: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


# --- JSON lines


def test_a_written_sample_reads_back_in_its_order(tmp_path: Path) -> None:
    sample = selection.coop_sample(ITEMS, [], shots=2, seed=3)[0][::-1]
    path = tmp_path / "deep" / "sample.jsonl"
    write_sample(path, HEADER, sample)
    first, second, *_ = path.read_text().splitlines()
    assert json.loads(first) == {"promptbench_sample": 1, **HEADER}
    assert json.loads(second) == {"image": sample[0].image, "label": 2, "class_name": "Sea or Lake"}
    assert read_sample(path, ITEMS) == sample
    once = path.read_bytes()
    write_sample(path, HEADER, sample)
    assert path.read_bytes() == once


def test_names_of_any_letters_survive(tmp_path: Path) -> None:
    items = [Item("Bäume/\udcff\u2028.jpg", 0, 'Eiche "ü"')]
    write_sample(tmp_path / "a.jsonl", {}, items)
    assert read_sample(tmp_path / "a.jsonl", items) == items


def written(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def row(image: str, label: int = 0, class_name: str = "Forest") -> dict[str, Any]:
    return {"image": image, "label": label, "class_name": class_name}


HEAD = {"promptbench_sample": 1}
FOREST = row("Forest/Forest_1.jpg")


@pytest.mark.parametrize(
    "image",
    [
        "Forest/Forest_1.jpg",
        "/home/kaiyang/data/eurosat/2750/Forest/Forest_1.jpg",
        "C:\\data\\eurosat\\2750\\Forest\\Forest_1.jpg",
        "./Forest/Forest_1.jpg",
        "Forest_1.jpg",
    ],
)
def test_paths_of_another_machine_become_the_datasets_own(image: str, tmp_path: Path) -> None:
    assert read_sample(written(tmp_path / "a.jsonl", HEAD, row(image)), ITEMS) == [ITEMS[1]]


def test_the_longest_known_end_of_a_path_wins(tmp_path: Path) -> None:
    items = [Item("b.jpg", 0, "x"), Item("a/b.jpg", 0, "x"), Item("train/a/c.jpg", 0, "x")]
    path = written(tmp_path / "a.jsonl", HEAD, row("/r/a/b.jpg", 0, "x"), row("/r/b.jpg", 0, "x"))
    assert [item.image for item in read_sample(path, items)] == ["a/b.jpg", "b.jpg"]
    path = written(tmp_path / "b.jsonl", HEAD, row("/r/a/c.jpg", 0, "x"))
    with pytest.raises(UsageError, match=r"no image '/r/a/c\.jpg'"):  # it might be train/b/../a/c.jpg as well
        read_sample(path, items)


def test_a_class_name_may_be_spelled_as_a_prompt_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", HEAD, row("SeaLake/SeaLake_0.jpg", 2, "sea_or_lake"))
    assert read_sample(path, ITEMS) == [ITEMS[8]]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "line 1: expected a header"),
        (["", FOREST], "line 1: expected a header"),
        ([FOREST], "line 1: expected a header"),
        ([[1]], "line 1: expected a header"),
        ([{"promptbench_sample": 2}, FOREST], "line 1: this promptbench reads format 1, not '2'"),
        ([HEAD], "line 2: there is no image"),
        ([HEAD, FOREST, ""], "line 3: expected {\"image\": path, .*not ''"),
        ([HEAD, FOREST, "{"], r"line 3: expected .*not '\{'"),
        ([HEAD, "[" * 100_000], "line 2: expected"),
        ([HEAD, '{"image": "Forest/Forest_1.jpg", "label": 1' + "0" * 5000], "line 2: expected"),
        ([HEAD, [1]], "line 2: expected"),
        ([HEAD, {**FOREST, "label": "0"}], "line 2: expected"),
        ([HEAD, {**FOREST, "label": False}], "line 2: expected"),
        ([HEAD, {**FOREST, "shot": 1}], "line 2: expected"),
        ([HEAD, {"image": "Forest/Forest_1.jpg", "label": 0}], "line 2: expected"),
        ([HEAD, FOREST, row("/x/Forest/Forest_9.jpg")], r"line 3: the dataset has no image '/x/Forest/Forest_9\.jpg'"),
        ([HEAD, FOREST, row("")], "line 3: the dataset has no image ''"),
        ([HEAD, row("Forest/" * 500_000)], "line 2: the dataset has no image"),
        ([HEAD, row("River/River_0.jpg", 1)], "line 2: the image 'River/River_0.jpg' has the class 1 'Forest', but"),
        ([HEAD, row("River/River_0.jpg", 0, "River")], "has the class 0 'River', but 1 'River' in the dataset"),
        ([HEAD, FOREST, row("/x/Forest/Forest_1.jpg")], r"line 3: .*'Forest/Forest_1\.jpg' is already in \S+, line 2;"),
    ],
)
def test_a_mistake_is_said_with_file_and_line(rows: list[Any], says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "sample.jsonl", *rows)
    with pytest.raises(UsageError, match=says) as caught:
        read_sample(path, ITEMS)
    assert str(caught.value).startswith(f"{path}, line ") and "\n" not in str(caught.value)


def test_a_short_path_that_several_images_end_in_is_ambiguous(tmp_path: Path) -> None:
    items = [Item("train/a/1.jpg", 0, "a"), Item("train/b/1.jpg", 1, "b")]
    assert read_sample(written(tmp_path / "a.jsonl", HEAD, row("b/1.jpg", 1, "b")), items) == [items[1]]
    with pytest.raises(UsageError, match=r"line 2: several images of the dataset end in '1\.jpg'"):
        read_sample(written(tmp_path / "b.jsonl", HEAD, row("1.jpg", 1, "b")), items)


def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read .*absent\.jsonl: No such file"):
        read_sample(tmp_path / "absent.jsonl", ITEMS)
    with pytest.raises(UsageError, match=r"Cannot read .*absent\.pkl: No such file"):
        read_sample(tmp_path / "absent.pkl", ITEMS)
    with pytest.raises(UsageError, match=r"sample\.txt must end in \.jsonl or \.pkl"):
        read_sample(tmp_path / "sample.txt", ITEMS)
    with pytest.raises(UsageError, match=r"sample\.pkl must end in \.jsonl"):
        write_sample(tmp_path / "sample.pkl", HEADER, ITEMS)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"Cannot write the sample file .*a\.jsonl"):
        write_sample(tmp_path / "file" / "a.jsonl", HEADER, ITEMS)


# --- CoOp's pickles


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", [dict, OrderedDict])
def test_a_pickle_of_coop_reads(
    protocol: int, container: type, datum: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = [Item(f"c{index % 700}/ä_{index}.jpg", index % 700, f"name {index % 700}") for index in range(2500)]
    train, val = selection.coop_sample(pool, pool[:700], shots=3, seed=1)
    content = container(train=datums(datum, train), val=datums(datum, val))
    path = pickled(tmp_path / "shot_3-seed_1.pkl", content, protocol)
    for name in [name for name in sys.modules if name.startswith("dassl")]:
        monkeypatch.delitem(sys.modules, name)
    assert read_sample(path, pool) == train
    lists = unpickle.coop_lists(path, Item)
    assert list(lists) == ["train", "val"] and len(lists["val"]) == 700
    assert lists["train"][0].image == "/home/kaiyang/data/eurosat/2750/" + train[0].image
    assert not any(name.startswith("dassl") for name in sys.modules)


def test_small_pickles_and_forks_read(datum: Callable[..., Any], tmp_path: Path) -> None:
    one = datums(datum, ITEMS[:1])
    assert read_sample(pickled(tmp_path / "a.pkl", {"train": one}), ITEMS) == ITEMS[:1]
    sys.modules[DASSL].Datum.__module__ = "dassl"  # type: ignore[attr-defined]
    sys.modules["dassl"].Datum = sys.modules[DASSL].Datum  # type: ignore[attr-defined]
    assert read_sample(pickled(tmp_path / "b.pkl", {"train": one, "val": []}), ITEMS) == ITEMS[:1]


def test_a_pickle_that_does_not_fit_the_dataset_is_said_with_the_entry(
    datum: Callable[..., Any], tmp_path: Path
) -> None:
    def read(items: list[Any]) -> None:
        read_sample(pickled(tmp_path / "a.pkl", {"train": items}), ITEMS)

    good = datums(datum, ITEMS[:2])
    with pytest.raises(UsageError, match=r"a\.pkl, 'train', entry 2: the dataset has no image '/x/y\.jpg'"):
        read([*good, datum("/x/y.jpg", 0, 0, "Forest")])
    with pytest.raises(UsageError, match=r"entry 2: the image .* is already in .*a\.pkl, 'train', entry 0"):
        read([*good, good[0]])
    with pytest.raises(UsageError, match=r"entry 1: .* has the class 1 'Forest', but 0 'Forest'"):
        read([good[0], datum(ITEMS[1].image, 1, 0, "Forest")])
    with pytest.raises(UsageError, match=r"has no list 'train', only 'val', 'test'"):
        read_sample(pickled(tmp_path / "b.pkl", {"val": good, "test": good}), ITEMS)
    with pytest.raises(UsageError, match=r"'train', entry 0: there is no image"):
        read([])


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(
    protocol: int, datum: Callable[..., Any], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    touch = Call(os.system, f"touch '{mark}'")
    code = Call(builtins.eval, f"open({str(mark)!r}, 'w').close()")
    whole = datums(datum, ITEMS[:2])
    for evil in (touch, code, Call(getattr, touch, "x"), Call(subprocess.call, ["touch", str(mark)])):
        contents = [evil, [evil], {"train": evil}, {"train": [*whole, evil]}, {"train": whole, "extra": evil}]
        contents += [{evil: whole}, {"train": [datum(evil, 0, 0, "x")]}, {"train": [datum("x", 0, evil, "x")]}]
        for content in contents:
            path = pickled(tmp_path / "a.pkl", content, protocol)
            with pytest.raises(UsageError, match=re.escape(f"{path} is no list of images by CoOp: ")):
                unpickle.coop_lists(path, Item)
            assert not mark.exists()
        try:  # the check can fail: Python's own reader does run it
            pickle.loads(pickle.dumps(evil, protocol))
        except AttributeError:
            assert evil.reduced[0] is getattr
        assert mark.exists()
        mark.unlink()


def text(value: str) -> bytes:
    """The pickle instruction that pushes a text."""
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


NEW_DATUM = b"cdassl\nDatum\n)\x81"
STATE = b"}(" + text("_impath") + text("a") + text("_label") + b"K\x00" + text("_classname") + text("a") + b"u"
TRAIN = b"\x80\x02}" + text("train") + b"]"
DOUBLED = (
    b"\x80\x04}"
    + text("os")
    + b"}q\x00"
    + b"".join(
        b"}q%c" % (level + 1) + b"".join(text(name) + b"h%c" % level + b"s" for name in "ab") for level in range(28)
    )
)


def test_the_pieces_of_the_next_test_make_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(TRAIN + NEW_DATUM + STATE + b"bas.")
    assert unpickle.coop_lists(tmp_path / "a.pkl", Item) == {"train": [Item("a", 0, "a")]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "damaged or cut short"),
        (b".", "damaged or cut short"),
        (b"not a pickle", "instruction b'n' at byte 0"),
        (b"\x80\x02N.", "no dictionary"),
        (b"\x80\x02}.", "no dictionary"),
        (b"\x80\x02}X\x05\x00\x00\x00train}s.", "its 'train' is no list"),
        (TRAIN + b"K\x01as.", "something else than Datum"),
        (TRAIN + NEW_DATUM + b"as.", "damaged"),
        (TRAIN + NEW_DATUM + b"}bas.", "lacks its path"),
        (TRAIN + NEW_DATUM + STATE.replace(b"K\x00", b"N") + b"bas.", "lacks its path"),
        (TRAIN + b"cdassl\nDatum\nK\x01\x81" + STATE + b"bas.", "makes something else"),
        (TRAIN + b"ccollections\nOrderedDict\n)\x81as.", "makes something else"),
        (TRAIN + b"ccollections\nOrderedDict\n}R.", "makes something else"),
        (TRAIN + b"cdassl\nDatum\n)R.", "makes something else"),
        (TRAIN + b"cdassl\nDatum\n" + STATE + b"b.", "sets attributes of something else"),
        (TRAIN + STATE + b"b.", "sets attributes of something else"),
        (TRAIN + b"]" + STATE + b"b.", "sets attributes of something else"),
        (b"cos\nsystem\n(S'touch mark'\ntR.", "asks for 'os.system', which is never run"),
        (b"(S'touch mark'\nios\nsystem\n.", "instruction b'S'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.", "asks for 'os.system'"),
        (b"\x80\x04\x8c\x05a\nb\ncX\x01\x00\x00\x00d\x93.", r"asks for 'a\\nb\\nc.d'"),
        (b"\x80\x02ccopyreg\n_reconstructor\n", "asks for 'copyreg._reconstructor'"),
        (b"\x80\x02\x82\x01.", r"instruction b'\\x82'"),  # an entry of copyreg's registry
        (b"\x80\x02Pid\n.", "instruction b'P'"),
        (b"\x80\x05\x97.", r"instruction b'\\x97'"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x40.", r"instruction b'\\x96'"),
        (b"\x80\x04\x8d\x00\x00\x00\x00\x00\x00\x00\x40ab.", "cut short"),
        (b"\x80\x02X\xff\xff\xff\xffab.", "cut short"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x40}", "cut short"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "does not number its values in order"),
        (b"\x80\x02j\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02" + b"}" * 100_000 + b".", "nested too deeply"),
        (b"\x80\x02" + b"(" * 100_000 + b".", "nested too deeply"),
        (b"\x80\x04}" + b"\x94" * 100_000 + b".", "more values than it has room for"),
        (DOUBLED + b"\x93.", "damaged"),  # a text of it would be as long as 2 ** 28 texts
        (DOUBLED + text("a") + b"s.", "under short texts"),
    ],
)
def test_what_coop_does_not_write_is_refused(
    data: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"is no list of images by CoOp: .*{says}") as caught:
        unpickle.coop_lists(path, Item)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_damaged_pickle_is_an_error_or_a_list(datum: Callable[..., Any], tmp_path: Path) -> None:
    generator = random.Random(0)
    whole = pickle.dumps({"train": datums(datum, ITEMS[:3]), "val": []}, 4)
    path = tmp_path / "a.pkl"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UsageError):
            unpickle.coop_lists(path, Item)
    read = 0
    for _ in range(2000):
        data = bytearray(whole)
        data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            lists = unpickle.coop_lists(path, Item)
        except UsageError as error:
            assert str(path) in str(error)
            continue
        read += 1
        assert all(isinstance(item, Item) for items in lists.values() for item in items)
    assert 0 < read < 2000


def test_a_pickle_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pkl").write_bytes(TRAIN + b"s.")
    assert unpickle.LARGEST_FILE == 512 * 1024 * 1024
    monkeypatch.setattr(unpickle, "LARGEST_FILE", len(TRAIN) + 1)
    with pytest.raises(UsageError, match=r"a\.pkl is no list of images by CoOp: it is larger than 0 MB"):
        unpickle.coop_lists(tmp_path / "a.pkl", Item)


def test_a_pickle_that_takes_too_many_steps_is_refused(
    datum: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pickled(tmp_path / "a.pkl", {"train": datums(datum, ITEMS * 20)})
    assert len(unpickle.coop_lists(path, Item)["train"]) == 20 * len(ITEMS)
    monkeypatch.setattr(unpickle, "_MOST_STEPS", 2000)
    with pytest.raises(UsageError, match=r"a\.pkl is no list of images by CoOp: it takes more than 2000 steps"):
        unpickle.coop_lists(path, Item)


# --- ImageNet in CoOp's order


def test_imagenet_follows_the_listing_of_coop(datum: Callable[..., Any], tmp_path: Path) -> None:
    make_fake.make("imagenet", tmp_path)
    plain = open_dataset("imagenet", roots=[tmp_path])
    shuffled = {split: random.Random(1).sample(items := plain.items(split), len(items)) for split in ("train", "test")}
    for items in shuffled.values():  # CoOp sorts the class folders, not the files
        items.sort(key=lambda item: item.label)
    listing = {split: datums(datum, items, "/ssd/imagenet/images/") for split, items in shuffled.items()}
    pickled(tmp_path / "imagenet" / "preprocessed.pkl", listing)

    for given in ("preprocessed.pkl", str(tmp_path / "imagenet" / "preprocessed.pkl")):
        dataset = open_dataset("imagenet", {"listing": given}, roots=[tmp_path])
        assert dataset.items("val") == []
        assert {split: dataset.items(split) for split in shuffled} == shuffled
        assert shuffled["train"] != plain.items("train")
        assert dataset.class_names == plain.class_names
        dataset.check(dataset.items("train"))
    assert dataset.split_digest() != plain.split_digest()
    drawn = selection.coop_sample(dataset.items("train"), [], shots=2, seed=1)[0]
    path = pickled(tmp_path / "shot_2-seed_1.pkl", {"train": datums(datum, drawn, "/ssd/imagenet/images/")})
    assert read_sample(path, plain.items("train")) == drawn


def test_a_listing_of_other_images_is_refused(datum: Callable[..., Any], tmp_path: Path) -> None:
    make_fake.make("imagenet", tmp_path)
    dataset = open_dataset("imagenet", {"listing": "absent.pkl"}, roots=[tmp_path])
    with pytest.raises(UsageError, match=r"Cannot read .*imagenet/absent\.pkl: No such file"):
        dataset.items("train")
    pickled(tmp_path / "imagenet" / "absent.pkl", {"train": datums(datum, ITEMS), "test": datums(datum, ITEMS)})
    with pytest.raises(UsageError, match=r"absent\.pkl, 'train', entry 0: the dataset has no image .*Forest_0\.jpg"):
        dataset.items("train")
