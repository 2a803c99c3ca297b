"""Files of torch's zip format, read without running anything that they contain.

`torch.load(weights_only=True)` comes first. It refuses files with live objects in them, as official checkpoints are
(Dassl stores its scheduler, GalLoP an `argparse.Namespace`). For those there is a second reader: a pickle machine that
knows tensors and plain containers and turns every other name in the file into an inert placeholder, never looking up
what it refers to.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from promptbench.config import UsageError


def load_inert(file: Path) -> Any:
    """The object stored in `file`, tensors on CPU, with placeholders for what is neither tensor nor plain.

    Where torch's own reader refuses the file, only the tensors of its `state_dict` are read.

    Raises:
        UsageError: If the file is damaged, or of torch's format from before version 1.6.
    """
    try:
        if not _is_zip(file):
            raise ValueError(
                "it is not in torch's zip format; if torch before version 1.6 wrote it, load it there in an "
                "environment that you trust and save it again with a current torch"
            )
        _check_sizes(file)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # mostly an UnpicklingError; others differ between versions of torch
            return _load_restricted(file)
    except Exception as error:  # a damaged or hostile file may fail in any way, and it is the file's fault each time
        reason = (str(error).splitlines() or [""])[0][:300].rstrip(".") or type(error).__name__
        raise UsageError(f"{file} is not a readable checkpoint: {reason}.") from error


def _is_zip(file: Path) -> bool:
    """Whether torch, too, takes the file for a zip archive, which it tells by the first bytes.

    Anything else would go to its old reader, which up to torch 2.5 could be made to run code, `weights_only` or not.
    """
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(stream)


def _check_sizes(file: Path) -> None:
    """Refuses an archive whose records claim more than the file has, so that a small file stays small in memory."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed, which torch's are not")
    claimed = sum(record.file_size for record in records)
    if claimed > file.stat().st_size:
        raise ValueError(f"its records claim {claimed} bytes, more than the file has")


def _load_restricted(file: Path) -> Any:
    """The object stored in the archive, with the tensors of its `state_dict`."""
    with zipfile.ZipFile(file) as archive:
        records = _Records(archive)
        content = _Reader(records.bytes("data.pkl")).load()
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            state = content["state_dict"]
            tensors = {k: records.tensor(v) for k, v in state.items() if isinstance(v, _Stored)}
            content = {**content, "state_dict": tensors}
    return content


class _Storage(NamedTuple):
    """A record of the archive that holds numbers."""

    key: str
    dtype: torch.dtype
    numel: int


class _Stored(NamedTuple):
    """A tensor in the archive, not read yet: a strided view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Records:
    """The records of a torch archive, `{root}/data.pkl` and `{root}/data/{key}` among them."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise ValueError("its records are not those of torch")
        self._archive = archive
        self._root = pickles[0].removesuffix("data.pkl")
        self._read: dict[_Storage, Tensor] = {}
        if f"{self._root}byteorder" in names and self.bytes("byteorder") != sys.byteorder.encode():
            raise ValueError("it was written on a machine of the other byte order")

    def bytes(self, name: str) -> bytes:
        return self._archive.read(self._root + name)

    def tensor(self, stored: _Stored) -> Tensor:
        """The tensor that `stored` describes; torch checks that it lies within its storage."""
        if stored.storage not in self._read:
            self._read[stored.storage] = self._numbers(stored.storage)
        return torch.as_strided(self._read[stored.storage], stored.size, stored.stride, stored.offset)

    def _numbers(self, storage: _Storage) -> Tensor:
        data = bytearray(self.bytes(f"data/{storage.key}"))
        if len(data) != storage.numel * storage.dtype.itemsize:
            raise ValueError(f"its storage {storage.key} has {len(data)} bytes, not {storage.numel} {storage.dtype}")
        return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)


class _Inert:
    """Stands for any object that is not read: takes every call and every state, keeps and does nothing."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self

    @staticmethod  # so that the class takes a state too, should a pickle hand it one
    def _ignore(*args: object) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Dict(dict[Any, Any]):
    """An `OrderedDict` without attributes; torch keeps a version number in those."""

    def __setstate__(self, state: object) -> None: ...


class _Global:
    """What a pickle may call; unlike the function behind it, it has nothing that a pickle could set."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: object) -> Any:
        return self._build(*args)

    def __setstate__(self, state: object) -> None: ...


class _StorageType(NamedTuple):
    dtype: torch.dtype


def _stored(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object) -> _Stored:
    """Takes the arguments of `torch._utils._rebuild_tensor_v2`; the rest is gradient and hooks."""
    return _Stored(storage, offset, tuple(size), tuple(stride))


def _parameter(data: object, *rest: object) -> object:
    """Takes the arguments of `torch._utils._rebuild_parameter`; the rest is gradient, hooks and attributes."""
    return data


_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Global(_Dict),
    ("torch", "Size"): _Global(tuple),
    ("torch._utils", "_rebuild_tensor_v2"): _Global(_stored),
    ("torch._utils", "_rebuild_parameter"): _Global(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Global(_parameter),
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


class _Reader(pickle.Unpickler):
    """Builds plain containers and descriptions of tensors; every name outside the short list becomes `_Inert`."""

    def __init__(self, data: bytes) -> None:
        _check_opcodes(data)
        super().__init__(io.BytesIO(data), encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, numel = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise ValueError("it refers to something that is not a storage")
        if not isinstance(numel, int):
            raise ValueError(f"its storage {key} has no size")
        return _Storage(key, storage_type.dtype, numel)


def _check_opcodes(data: bytes) -> None:
    """Refuses what could reserve memory for data that is not there, or reach for the registries of the process."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4"}:
            raise ValueError(f"its pickle uses {opcode.name}, which torch's do not")
        if opcode.name.endswith("PUT") and isinstance(argument, int) and argument > len(data):
            raise ValueError("its pickle numbers more objects than it has room for")
