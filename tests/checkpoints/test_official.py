"""Official checkpoints: the right file is found, nothing in it runs, and only what fits is loaded."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import subprocess
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared_paths import GOLDEN
from torch import Tensor, nn

from promptbench.checkpoints.official import load_official_checkpoint, official_parameters, read_official
from promptbench.config import UsageError
from promptbench.method import Method
from promptbench.storage import unpickle

RAW_COOP = GOLDEN / "coop_end_init-s7101_rawpickle"
RAW_GALLOP = GOLDEN / "gallop_g4l4-s7101_rawpickle"


class Learner(nn.Module):
    """What a method is to this module: parameters with official names."""

    official_unused = ()
    make_room = Method.make_room

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.learned = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()})

    def official_parameters(self) -> dict[str, nn.Parameter]:
        return {name.replace("_in_", "."): parameter for name, parameter in self.learned.items()}


def archive(path: Path, data: bytes, records: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A file of torch's zip format with this pickle in it."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", data)
        for name, content in {"version": b"3\n", **(records or {})}.items():
            file.writestr(f"archive/{name}", content)
    return path


def tensor_pickle(
    numel: int = 3, size: int = 3, extra: bytes = b"N", storage: bytes = b"ctorch\nFloatStorage\n"
) -> bytes:
    """{"state_dict": {"ctx": tensor}, "extra": <extra>} as torch writes it, the tensor lying in record data/0."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def text(value: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value

    pid = b"(" + text(b"storage") + storage + text(b"0") + text(b"cpu") + number(numel) + b"tQ"
    shape = number(0) + number(size) + b"\x85" + number(1) + b"\x85"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + shape + hooks + b"tR"
    state = b"}" + text(b"ctx") + tensor + b"s"
    return b"\x80\x02}(" + text(b"state_dict") + state + text(b"extra") + extra + b"u."


FLOATS = {"data/0": np.array([1, 2, 3], dtype="<f4").tobytes()}


# Which file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "prompt_learner", "prompt_learner/model.pth.tar-50"])
@pytest.mark.parametrize("case", ["coop_end_init-s7101", "coop_end_init-s7101_rawpickle", "coop_middle_16-s7101"])
def test_dassl_run_is_read_from_run_model_folder_or_file(case: str, inside: str) -> None:
    checkpoint = read_official(GOLDEN / case / inside)
    n = 16 if "16" in case else 4
    assert checkpoint.state["ctx"].shape == (n, 64)
    assert set(checkpoint.state) == {"ctx", "token_prefix", "token_suffix"}
    assert checkpoint.epoch == 50
    assert checkpoint.meta == {"val_result": None}


def test_raw_file_holds_the_tensors_of_the_plain_one() -> None:
    with pytest.raises(pickle.UnpicklingError):
        torch.load(RAW_COOP / "prompt_learner" / "model.pth.tar-50", weights_only=True)
    plain = read_official(GOLDEN / "coop_end_init-s7101").state
    raw = read_official(RAW_COOP).state
    assert list(raw) == list(plain)
    for name, tensor in raw.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, plain[name])
        assert type(tensor) is Tensor and not tensor.requires_grad


@pytest.mark.parametrize("inside", ["", "gallop_synthetic_vit_b16_seed1.ckpt"])
def test_gallop_file_is_read(inside: str) -> None:
    checkpoint = read_official(RAW_GALLOP / inside)
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.state.items()}
    assert shapes == {
        "global_prompt": (4, 4, 64),
        "local_prompts": (4, 4, 64),
        "local_proj.linear.weight": (128, 128),
    }
    assert checkpoint.epoch == 49  # counted from 0
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.state.values())


def saved(path: Path, **state: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def test_without_pointer_the_last_epoch_counts(tmp_path: Path) -> None:
    for epoch in (5, 50, 10):
        saved(tmp_path / "prompt_learner" / f"model.pth.tar-{epoch}", ctx=torch.tensor([float(epoch)]))
    saved(tmp_path / "prompt_learner" / "model-best.pth.tar", ctx=torch.tensor([-1.0]))
    assert read_official(tmp_path).state["ctx"] == 50


def test_best_model_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    saved(tmp_path / "model-best.pth.tar", ctx=torch.tensor([7.0]))
    assert read_official(tmp_path).state["ctx"] == 7


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "", ".", "..", "sub/model", "link", "a\0b"])
def test_pointer_must_stay_in_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "prompt_learner"
    saved(tmp_path / "outside", ctx=torch.zeros(1))
    saved(folder / "sub" / "model", ctx=torch.zeros(1))
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "checkpoint").write_text(f"{name}\n")
    with pytest.raises(UsageError, match="not a file of its own folder"):
        read_official(folder)


def test_errors_of_finding_name_the_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint at .*nowhere"):
        read_official(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds none"):
        read_official(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "checkpoint").write_text("model.pth.tar-5\n")
    with pytest.raises(UsageError, match="model.pth.tar-5.*not there"):
        read_official(tmp_path)
    saved(tmp_path / "a" / "model.pth.tar-5", ctx=torch.zeros(1))
    saved(tmp_path / "b" / "seed1.ckpt", ctx=torch.zeros(1))
    with pytest.raises(UsageError, match="holds several"):
        read_official(tmp_path)
    saved(tmp_path / "b" / "seed2.ckpt", ctx=torch.zeros(1))
    with pytest.raises(UsageError, match=r"several checkpoints \(seed1.ckpt, seed2.ckpt\)"):
        read_official(tmp_path / "b")


# Nothing runs ---------------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: object, state: object = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.function, self.arguments, *(() if self.state is None else (self.state,)))


def creating(path: Path) -> list[object]:
    """Objects whose unpickling would create `path`."""
    return [
        Call(os.system, f"touch {path}"),
        Call(eval, f"open({str(path)!r}, 'w')"),
        Call(exec, f"open({str(path)!r}, 'w')"),
        Call(open, str(path), "w"),
        Call(Path.touch, path),
        Call(subprocess.Popen, ["touch", str(path)]),
        Call(torch.save, 1, str(path)),
        Call(getattr, Call(os.system, f"touch {path}"), "denominator"),
        Call(argparse.Namespace, state=(None, {"x": Call(os.system, f"touch {path}")})),
    ]


def test_the_pickles_of_this_test_do_run_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "created"
    pickle.loads(pickle.dumps(creating(path)[0]))
    assert path.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("index", range(len(creating(Path()))))
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, index: int, protocol: int) -> None:
    created = tmp_path / "created"
    content = {"state_dict": {"ctx": torch.ones(2)}, "epoch": 1, "args": creating(created)[index]}
    file = tmp_path / "model.pth.tar-1"
    torch.save(content, file, pickle_protocol=max(protocol, 2))
    state = read_official(file).state
    assert torch.equal(state["ctx"], torch.ones(2))
    pure = archive(tmp_path / "pure", pickle.dumps(creating(created)[index], protocol=protocol))
    with pytest.raises(UsageError, match="pure"):
        read_official(pure)
    assert not created.exists()


def test_code_in_place_of_a_tensor_does_not_run(tmp_path: Path) -> None:
    created = tmp_path / "created"
    state = {"ctx": Call(os.system, f"touch {created}"), "other": torch.ones(1)}
    torch.save({"state_dict": state, "x": argparse.Namespace()}, tmp_path / "model.ckpt")
    assert set(read_official(tmp_path).state) == {"other"}
    assert not created.exists()


def test_live_objects_of_any_kind_are_passed_over(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2, 3).half())
    optimizer = torch.optim.Adam([parameter])
    parameter.float().sum().backward()
    optimizer.step()
    content = {
        "state_dict": OrderedDict(ctx=parameter, view=torch.arange(6.0).reshape(2, 3).T[1:], none=None),
        "epoch": 7,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
        "numpy": np.float64(3.5),
        "array": np.arange(3),
        "set": {1, 2},
        "namespace": argparse.Namespace(lr=0.1),
        "module": nn.Linear(2, 2),
        "val_result": 71.5,
    }
    torch.save(content, tmp_path / "model-best.pth.tar")
    checkpoint = read_official(tmp_path)
    assert set(checkpoint.state) == {"ctx", "view"}
    assert torch.equal(checkpoint.state["ctx"], parameter.detach()) and checkpoint.state["ctx"].dtype == torch.float16
    assert torch.equal(checkpoint.state["view"], torch.tensor([[1.0, 4.0], [2.0, 5.0]]))
    assert checkpoint.epoch == 7 and checkpoint.meta == {"val_result": 71.5}


@pytest.mark.parametrize("name", unpickle._DTYPES.values())
def test_restricted_reader_returns_every_type_as_stored(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    torch.save({"state_dict": {"ctx": tensor, "empty": tensor[:0]}, "x": argparse.Namespace()}, tmp_path / "a.ckpt")
    state = read_official(tmp_path).state
    assert state["ctx"].dtype == dtype and torch.equal(state["ctx"], tensor) and state["empty"].shape == (0, 3)


STATEFUL = [
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"cos\nsystem\n",
    b"ccollections\nOrderedDict\n",
]


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("state", [b"}X\x04\x00\x00\x00evilK\x01s", b"N}X\x04\x00\x00\x00evilK\x01s\x86"])
def test_a_pickle_changes_nothing_of_ours(tmp_path: Path, name: bytes, state: bytes) -> None:
    """BUILD sets attributes on whatever it is given, and the reader's own objects are shared between files."""
    file = archive(tmp_path / "a.ckpt", tensor_pickle(extra=name + state + b"b"), FLOATS)
    try:
        assert read_official(file).state["ctx"].tolist() == [1, 2, 3]
    except UsageError as error:
        assert "a.ckpt" in str(error)
    kept = [unpickle._Inert, unpickle._Inert(), unpickle._stored, *unpickle._TORCH_NAMES.values()]
    assert not any(hasattr(thing, "evil") for thing in kept)


# Damaged and hostile files --------------------------------------------------------------------------------------------


def refused(file: Path, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        read_official(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_hand_made_pickle_is_read(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.ckpt", tensor_pickle(extra=b"cos\nsystem\n"), FLOATS)
    assert read_official(file).state["ctx"].tolist() == [1, 2, 3]


UNSAFE = b"cos\nsystem\n"  # torch's own reader refuses a file with this name in it


@pytest.mark.parametrize(
    ("data", "records", "match"),
    [
        (tensor_pickle(extra=UNSAFE), {}, "data/0"),
        (tensor_pickle(extra=UNSAFE), {"data/0": b"1234"}, "4 bytes, not 3"),
        (tensor_pickle(2**40, extra=UNSAFE), FLOATS, "12 bytes, not 1099511627776"),
        (tensor_pickle(-3, extra=UNSAFE), FLOATS, "12 bytes, not -3"),
        (tensor_pickle(size=2**40, extra=UNSAFE), FLOATS, "out of bounds"),
        (tensor_pickle(size=-1, extra=UNSAFE), FLOATS, "not a readable"),
        (tensor_pickle(extra=UNSAFE, storage=b"cos\nsystem\n"), FLOATS, "not a storage"),
        (tensor_pickle(extra=UNSAFE), {**FLOATS, "byteorder": b"big"}, "byte order"),
        (tensor_pickle(extra=UNSAFE + b"r\xff\xff\xff\xff"), FLOATS, "does not number its values in order"),
        (tensor_pickle(extra=UNSAFE + b"0\x96" + struct.pack("<Q", 2**40)), FLOATS, "not a readable"),
        (tensor_pickle(extra=UNSAFE)[:60], FLOATS, "not a readable"),
        (b"\x80\x02N.", {}, "no 'state_dict'"),
        (b"", {}, "not a readable"),
    ],
)
def test_damaged_archives_are_refused(tmp_path: Path, data: bytes, records: dict[str, bytes], match: str) -> None:
    refused(archive(tmp_path / "a.ckpt", data, records), match)


def again_and_again(name: bytes, count: int) -> bytes:
    """A list of 200 000 pairs that `name` is called with, `count` times."""
    pairs = b"]q\x00" + (b"(" + b"K\x01K\x01\x86" * 1000 + b"e") * 200 + b"\x85q\x01"
    return pairs + b"0c" + name + b"q\x02" + b"0h\x02h\x01R" * count


def doubled(levels: int) -> bytes:
    """A tuple of the same two tuples of the same two tuples and so on."""
    return b")q\x00" + b"".join(b"0h%ch%c\x86q%c" % (level, level, level + 1) for level in range(levels))


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        again_and_again(b"torch\nSize\n", 100_000),
        again_and_again(b"collections\nOrderedDict\n", 1000),
        b"}" + doubled(32) + b"K\x01s",
        b"})" + b"\x85" * 200_000 + b"K\x01s",  # deeper than the interpreter's own stack
        b"(" + doubled(32) + b"\x91",
    ],
    ids=["sizes", "ordered", "keys", "deep-keys", "frozen"],
)
def test_a_small_file_takes_little_time(tmp_path: Path, extra: bytes) -> None:
    file = archive(tmp_path / "a.ckpt", tensor_pickle(extra=UNSAFE + b"0" + extra), FLOATS)
    start = time.process_time()
    try:
        assert read_official(file).state["ctx"].tolist() == [1, 2, 3]
    except UsageError as error:
        assert str(file) in str(error) and "\n" not in str(error)
    assert time.process_time() - start < 3


def test_a_checkpoint_that_takes_too_many_steps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = archive(tmp_path / "a.ckpt", tensor_pickle(extra=b"(" + b"]" * 3000 + b"t"), FLOATS)
    assert read_official(file).state["ctx"].tolist() == [1, 2, 3]
    monkeypatch.setattr(unpickle, "_MOST_STEPS_OF_CHECKPOINT", 2000)
    refused(file, "it takes more than 2000 steps")


def test_records_may_not_claim_more_than_the_file_has(tmp_path: Path) -> None:
    bomb = archive(
        tmp_path / "bomb.ckpt",
        tensor_pickle(2**20, 2**20, extra=UNSAFE),
        {"data/0": bytes(2**22)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 2**16
    refused(bomb, "compressed")
    whole = archive(tmp_path / "a.ckpt", tensor_pickle(2**18, 2**18, extra=UNSAFE), {"data/0": bytes(2**20)})
    content = whole.read_bytes()
    start = content.index(b"PK\x01\x02")  # the central directory: every record twice, over the same bytes
    directory, end = content[start : content.index(b"PK\x05\x06")], bytearray(content[content.index(b"PK\x05\x06") :])
    renamed = directory.replace(b"archive/data/0", b"archive/data/1")
    struct.pack_into("<HHI", end, 8, 6, 6, 2 * len(directory))
    whole.write_bytes(content[:start] + directory + renamed + bytes(end))
    assert len(zipfile.ZipFile(whole).infolist()) == 6
    refused(whole, "more than the file has")


def test_other_formats_are_refused_unread(tmp_path: Path) -> None:
    created = tmp_path / "created"
    payload = pickle.dumps(Call(os.system, f"touch {created}"))
    (tmp_path / "pickle.ckpt").write_bytes(payload)
    refused(tmp_path / "pickle.ckpt", "before version 1.6")
    torch.save({"state_dict": {}}, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "legacy.ckpt", "before version 1.6")
    inner = archive(tmp_path / "inner", tensor_pickle(), FLOATS)
    (tmp_path / "both.ckpt").write_bytes(payload + inner.read_bytes())  # a zip to zipfile, a pickle to torch
    assert zipfile.is_zipfile(tmp_path / "both.ckpt")
    refused(tmp_path / "both.ckpt", "before version 1.6")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    refused(tmp_path / "empty.ckpt", "before version 1.6")
    assert not created.exists()


def test_cut_off_file_is_refused(tmp_path: Path) -> None:
    for path in (RAW_COOP / "prompt_learner" / "model.pth.tar-50", GOLDEN / "coop_end_init-s7101"):
        file = path if path.is_file() else path / "prompt_learner" / "model.pth.tar-50"
        (tmp_path / "cut.ckpt").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        refused(tmp_path / "cut.ckpt", "not")


@pytest.mark.parametrize("offset", range(0, 1368, 19))
def test_flipped_bytes_end_in_tensors_or_in_one_sentence(tmp_path: Path, offset: int) -> None:
    with zipfile.ZipFile(RAW_COOP / "prompt_learner" / "model.pth.tar-50") as source:
        records = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    data = bytearray(records.pop("data.pkl"))
    data[offset] ^= 0x15
    file = archive(tmp_path / "a.ckpt", bytes(data), records)
    try:
        assert all(isinstance(tensor, Tensor) for tensor in read_official(file).state.values())
    except UsageError as error:
        assert str(file) in str(error)


# Loading --------------------------------------------------------------------------------------------------------------


def test_learned_tensors_are_copied_as_float32(tmp_path: Path) -> None:
    stored = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).half()
    state = {
        "module.prompt_learner.ctx": stored,
        "module.prompt_learner.proj.weight": torch.ones(2, 8).bfloat16(),
        "module.prompt_learner.token_prefix": torch.zeros(9, 1, 8),
        "module.prompt_learner.token_suffix": torch.zeros(9, 72, 8),
        "module.prompt_learner.ZS_image_encoder.proj": torch.zeros(3, 3),
        "module.image_encoder.conv1.weight": torch.zeros(2),
        "module.text_encoder.ln_final.weight": torch.zeros(2),
        "module.logit_scale": torch.zeros(()),
    }
    saved(tmp_path / "model.pth.tar-3", **state)
    method = Learner(prompt_learner_in_ctx=(4, 8), prompt_learner_in_proj_in_weight=(2, 8))
    parameters = list(method.parameters())
    load_official_checkpoint(method, tmp_path)
    assert all(a is b for a, b in zip(parameters, method.parameters(), strict=True))
    loaded = official_parameters(method)
    assert all(p.dtype == torch.float32 and p.requires_grad and p.is_leaf for p in loaded.values())
    assert torch.equal(loaded["prompt_learner.ctx"].detach(), stored.float())
    assert torch.equal(loaded["prompt_learner.proj.weight"].detach(), torch.ones(2, 8))


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"ctx": torch.ones(16, 512)}, r"ctx is \(16, 512\) in the file, \(4, 512\) here: n_ctx=16\?"),
        ({"ctx": torch.ones(10, 4, 512)}, r"\(10, 4, 512\) in the file, \(4, 512\) here: csc=true\?"),
        ({"ctx": torch.ones(4, 768)}, "another backbone"),
        ({"ctx": torch.ones(4, 512), "bias": torch.ones(3)}, r"bias is \(3,\) in the file, \(2,\) here"),
        ({}, "lacks ctx"),
        ({"ctx": torch.ones(4, 512), "meta_net.weight": torch.ones(1)}, "also holds meta_net.weight"),
        (
            {"ctx": torch.ones(4, 512), "image_encoder.transformer.resblocks.1.VPT_shallow": torch.ones(1)},
            "also holds image_encoder.transformer.resblocks.1.VPT_shallow",
        ),
        ({"ctx": torch.ones(4, 512, dtype=torch.int64)}, "no learned tensor"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path, state: dict[str, Tensor], match: str) -> None:
    method = Learner(bias=(2,), ctx=(4, 512))
    saved(tmp_path / "model.pth.tar-3", **{"bias": torch.ones(2), **state})
    with pytest.raises(UsageError, match=match) as caught:
        load_official_checkpoint(method, tmp_path)
    assert str(tmp_path) in str(caught.value) and "Learner" in str(caught.value)
    assert not any(parameter.any() for parameter in method.parameters())


# Tensors without names, under weights, and without a size -------------------------------------------------------------


def test_a_tensor_by_itself_fills_the_only_parameter_which_gets_its_size(tmp_path: Path) -> None:
    keys = torch.arange(24.0).view(6, 4)
    torch.save(nn.Parameter(keys.half()), tmp_path / "best_F_2shots.pt")
    method: Any = Learner(adapter_in_weight=(0, 4))
    parameter = method.learned["adapter_in_weight"]
    load_official_checkpoint(method, tmp_path / "best_F_2shots.pt")
    assert method.learned["adapter_in_weight"] is parameter  # of an optimiser, too
    assert parameter.dtype == torch.float32 and torch.equal(parameter.detach(), keys)
    other: Any = Learner(a=(0, 4), b=(2,))
    with pytest.raises(UsageError, match=r"it lacks a, b"):
        load_official_checkpoint(other, tmp_path / "best_F_2shots.pt")


def test_tensors_under_weights_have_dotted_names(tmp_path: Path) -> None:
    tensors = {"w_lora_A": torch.ones(2, 3), "w_lora_B": torch.zeros(3, 2)}
    content = {"weights": {"layer_0": {"q_proj": tensors}}, "metadata": {"r": 2, "alpha": 1, "params": ["q"]}}
    torch.save(content, tmp_path / "lora_weights.pt")
    found = read_official(tmp_path / "lora_weights.pt")
    assert {name: tuple(tensor.shape) for name, tensor in found.state.items()} == {
        "layer_0.q_proj.w_lora_A": (2, 3),
        "layer_0.q_proj.w_lora_B": (3, 2),
    }


def test_what_has_no_size_has_none_again_where_something_else_does_not_fit(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(6, 4)}}, tmp_path / "model.pth.tar-1")
    method: Any = Learner(a=(0, 4), b=(2,))
    with pytest.raises(UsageError, match="it lacks b"):
        load_official_checkpoint(method, tmp_path)
    assert method.learned["a"].shape == (0, 4)
    torch.save({"state_dict": {"a": torch.ones(6, 4), "b": torch.ones(2)}}, tmp_path / "model.pth.tar-1")
    load_official_checkpoint(method, tmp_path)
    assert method.learned["a"].shape == (6, 4) and method.learned["a"].all()


def test_what_the_authors_store_besides_is_left_out(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "token_embedding": torch.ones(3, 77, 4), "base_text": torch.ones(3)}
    torch.save({"state_dict": state}, tmp_path / "model.pth.tar-1")
    method: Any = Learner(a=(2,))
    with pytest.raises(UsageError, match="also holds token_embedding, base_text"):
        load_official_checkpoint(method, tmp_path)
    method.official_unused = ("token_emb", "base_")
    load_official_checkpoint(method, tmp_path)
    assert method.learned["a"].all()


def test_room_is_made_for_what_is_empty_alone() -> None:
    class Kept(Learner):
        def __init__(self) -> None:
            super().__init__(cache=(0, 4), known=(2,))
            self.register_buffer("values", torch.zeros(0, 3))
            self.register_buffer("scale", torch.tensor(2.0))

    method: Any = Kept()
    before = dict(method.named_parameters())
    stored = {"learned.cache": torch.ones(5, 4), "learned.known": torch.ones(7), "values": torch.ones(5, 3)}
    method.make_room({**stored, "scale": torch.ones(3), "elsewhere": torch.ones(9)})
    shapes = {name: tuple(tensor.shape) for name, tensor in method.state_dict().items()}
    assert shapes == {"learned.cache": (5, 4), "learned.known": (2,), "values": (5, 3), "scale": ()}
    assert all(parameter is before[name] for name, parameter in method.named_parameters())
    assert method.learned["cache"].requires_grad and method.scale == 2
    method.learned["cache"].sum().backward()
    assert method.learned["cache"].grad.shape == (5, 4)


def test_reading_does_not_need_the_pickled_classes() -> None:
    """A name that cannot be imported is no obstacle, and is never looked for."""
    data = b"\x80\x02cno_such_module\nThing\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    machine = unpickle._Machine(data, unpickle._torch_name, strict=False, most_steps=1000)
    assert isinstance(machine.run(), unpickle._Inert)
