"""Pickles that are small and would be large: memory and time stay within what a file of their size warrants."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch
from measured import measured

from promptbench.config import UsageError
from promptbench.storage import unpickle
from promptbench.storage.unpickle import checkpoint

SIZE = 10**6  # bytes of a pickle
MIB, SECONDS = 50, 2.0  # that one of this size may take: a fifth of what 5 MB may


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def noted(value: bytes, index: int) -> bytes:
    """Instructions that make a value and note it down, for `h` to push again."""
    return value + b"q%c0" % index


def listed(setup: bytes, unit: bytes) -> bytes:
    """A list of what `unit` makes, as often as the size allows."""
    batch = b"(" + unit * 1000 + b"e"
    return b"\x80\x02" + setup + b"]" + batch * (SIZE // len(batch)) + b"."


def keyed(value: bytes, size: int) -> bytes:
    """Items of a dictionary that all have the same value, as many as the size allows."""
    items = [b"\x8c\x05%05x" % number + value for number in range(size // 9)]
    return b"".join(b"(" + b"".join(items[start : start + 1000]) + b"u" for start in range(0, len(items), 1000))


STORAGE = noted(b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x03tQ", 0)
AXES = noted(b"(" + b"K\x01" * 64 + b"t", 1)
REBUILD = noted(b"ctorch._utils\n_rebuild_tensor_v2\n", 3)
TENSOR = STORAGE + AXES + noted(b"(h\x00K\x00h\x01h\x01\x89Nt", 2) + REBUILD
SMALL_TENSOR = TENSOR.replace(b"K\x01" * 64, b"K\x01")
CHECKPOINTS = {
    "lists": listed(b"", b"]"),
    "sizes of one list": listed(
        noted(b"](" + b"K\x01" * 64 + b"e\x85", 0) + noted(b"ctorch\nSize\n", 1), b"h\x01h\x00R"
    ),
    "long arguments": listed(
        noted(b"ctorch._utils\n_rebuild_parameter\n", 0) + noted(b"(" + b"N" * 49_000 + b"t", 1), b"h\x00h\x01R"
    ),
    "views": b"\x80\x04"
    + SMALL_TENSOR
    + noted(b"h\x03h\x02R", 4)
    + b"}"
    + text(b"state_dict")
    + b"}"
    + keyed(b"h\x04", SIZE)
    + b"s.",
}

DATUM = noted(
    b"cdassl\nDatum\n)\x81}("
    + b"".join(map(text, (b"_impath", b"a", b"_label"))).replace(text(b"_label"), text(b"_label") + b"K\x00")
    + text(b"_classname")
    + text(b"a")
    + b"ub",
    0,
)
COOP = {
    "empty lists": listed(b"", b"]"),
    "a list under many names": listed(DATUM, b"h\x00")[: SIZE // 2].rpartition(b"(")[0]
    + b"q\x010}"
    + keyed(b"h\x01", SIZE // 2)
    + b".",
    "an image again and again": b"\x80\x02" + DATUM + b"}" + text(b"train") + listed(b"", b"h\x00")[2:-1] + b"s.",
}


def archive(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", bytes(12))
        file.writestr("archive/version", b"3\n")
    return path


@pytest.mark.slow
def test_a_checkpoint_takes_what_its_size_warrants(tmp_path: Path) -> None:
    files = {name: archive(tmp_path / f"{name}.ckpt", data) for name, data in CHECKPOINTS.items()}
    imports = "import torch\nfrom promptbench.storage.unpickle import checkpoint"
    for name, taken in measured("checkpoint(path)", files, imports).items():
        assert taken.mib < MIB and taken.seconds < SECONDS, (name, taken)
        assert "\n" not in taken.said


@pytest.mark.slow
def test_a_list_of_images_takes_what_its_size_warrants(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.pkl" for name in COOP}
    for name, path in files.items():
        path.write_bytes(COOP[name])
    imports = "from promptbench.data.splits import Item\nfrom promptbench.storage.unpickle import coop_lists"
    found = measured("coop_lists(path, Item)", files, imports)
    for name, taken in found.items():
        assert taken.mib < MIB and taken.seconds < SECONDS, (name, taken)
    assert "more values than it has room for" in found["an image again and again"].said


def refused(path: Path, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        checkpoint(path)


def state(tensor: bytes) -> bytes:
    return b"\x80\x04" + STORAGE + REBUILD.replace(b"q\x03", b"q\x01") + b"}" + text(b"state_dict") + b"}" + tensor


def test_a_tensor_may_not_repeat_its_numbers(tmp_path: Path) -> None:
    """By a stride of 0 it takes no room until somebody copies it."""
    tensor = text(b"ctx") + b"h\x01(h\x00K\x00\x8a\x06\0\0\0\0\0\x01\x85K\x00\x85\x89NtRss."
    refused(archive(tmp_path / "a.ckpt", state(tensor)), "its tensor 'ctx' goes out of bounds of its storage")
    tensor = tensor.replace(b"\x8a\x06\0\0\0\0\0\x01", b"K\x03")
    assert checkpoint(archive(tmp_path / "a.ckpt", state(tensor)))["state_dict"]["ctx"].tolist() == [0, 0, 0]


def test_axes_are_numbers(tmp_path: Path) -> None:
    tensor = text(b"ctx") + b"h\x01(h\x00K\x00N\x85K\x00\x85\x89NtRss."
    refused(archive(tmp_path / "a.ckpt", state(tensor)), "no tuple of up to 64 numbers")


def test_more_tensors_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "_MOST_TENSORS", 2)
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1), "b": torch.zeros(1)}}, file)
    assert len(checkpoint(file)["state_dict"]) == 2
    torch.save({"state_dict": {name: torch.zeros(1) for name in "abc"}}, file)
    refused(file, "it has 3 tensors")


def test_a_state_may_be_the_whole_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2), "note": "x"}, file)
    assert checkpoint(file)["note"] == "x"
    found = checkpoint(file, bare=True)["state_dict"]
    assert found.keys() == {"a"} and torch.equal(found["a"], torch.ones(2))


def test_a_module_of_torchscript_may_not_be_in_itself(tmp_path: Path) -> None:
    module = b"c__torch__.m\nClip\n)\x81q\x00}" + text(b"inner")
    file = archive(tmp_path / "a.pt", b"\x80\x02" + module + b"h\x00sb.")
    with pytest.raises(UsageError, match="its modules are nested too deeply"):
        checkpoint(file, bare=True)
    assert not checkpoint(file).__class__.__name__.startswith("Clip")  # no class of the file's
