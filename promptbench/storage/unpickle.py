"""Pickles of other people, read without running anything that they contain.

Two kinds of files are: CoOp's lists of images (https://github.com/KaiyangZhou/CoOp, `datasets/`), `{"train": [Datum,
...], "val": [Datum, ...]}`, and checkpoints in torch's zip format, of which official ones hold live objects too (Dassl
stores its scheduler, GalLoP an `argparse.Namespace`). Python's unpickler calls whatever a file tells it to, and torch's
restricted one takes as long over a small file as its author likes. The reader here is a stack machine of its own. It
builds texts, numbers, lists, tuples and dictionaries under texts; a name is never looked up, nothing of a file is
called. Whatever an instruction refers back to, it takes no longer than its own bytes warrant, and all that is made
counts against what a file of its size may take of memory.
"""

from __future__ import annotations

import functools
import io
import math
import pickletools
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from promptbench.config import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Entry = TypeVar("Entry")

LARGEST_FILE = 512 * 2**20
"""Bytes of a list of images; ImageNet's has about 150 million."""

_MOST_STEPS = 40_000_000  # of a list of images; a step takes up to 80 bytes, and ImageNet's list 25 million steps
_MOST_STEPS_OF_CHECKPOINT = 5_000_000  # tensors and long texts are a few steps each
_DEEPEST_STACK = 50_000  # Python's pickler hands over lists and dictionaries in batches of 1000
_BYTES_PER_NOTE = 2  # at least: one makes a value, one notes it down
_ROOM_PER_BYTE = 24  # bytes of memory that lists, tuples, dictionaries and objects take; torch's own files need up to 5
_ROOM = 2**24  # bytes of them that a file of any size may take
_MOST_ARGUMENTS = 16  # of a call; torch's have up to eight
_MOST_TENSORS = 50_000  # of a state
_LONGEST_KEY = 1000  # characters; comparing long ones again and again takes time
_MOST_ATTRIBUTES = 1_000_000  # of the modules of TorchScript
_MOST_AXES = 64  # of a tensor, as torch has it
_STEPS_BETWEEN_CHECKS = 1000
_ENTRY = 80  # bytes of an entry of a list of images, less its texts
_CUT = "it is damaged or cut short"


class _Refused(ValueError):
    """What a file holds that it should not, as the end of a sentence."""


class _Inert:
    """Stands for what is not read: takes what comes, keeps and does nothing."""

    __slots__ = ()


class _Builder(NamedTuple):
    """Stands for a name; `build` makes its objects here, `new` ones or those that a call of the name gives."""

    build: Callable[..., object]
    new: bool = False


class _Machine:
    """The machine that a pickle is a program of.

    Args:
        data: The pickle.
        names: What stands for the name of a module; it may refuse one.
        strict: Whether anything else that is not built is refused too, and not inert.
        most_steps: How many instructions are taken.
    """

    def __init__(self, data: bytes, names: Callable[[str, str], object], *, strict: bool, most_steps: int) -> None:
        self.stream = io.BytesIO(data)
        self.names, self.strict, self.most_steps = names, strict, most_steps
        self.stack: list[Any] = []  # values in the making
        self.marks: list[int] = []  # heights of the stack at its open marks
        self.room = _ROOM + _ROOM_PER_BYTE * len(data)  # bytes that values of several parts may still take
        self.memo: list[Any] = []  # values noted down for a later use, in order; picklers number them so

    def run(self) -> Any:
        """Take the instructions one by one; returns the value that the pickle describes."""
        stream = self.stream
        for _ in range(self.most_steps // _STEPS_BETWEEN_CHECKS):
            for _ in range(_STEPS_BETWEEN_CHECKS):
                code = stream.read(1)
                if code == b".":
                    return self.stack.pop()
                known = _STEPS.get(code)
                if known is None:
                    where = stream.tell() - 1
                    raise _Refused(f"it has the pickle instruction {code!r} at byte {where}" if code else _CUT)
                step, argument = known
                step(self, argument(stream) if argument else None)
            if len(self.stack) + len(self.marks) > _DEEPEST_STACK:
                raise _Refused("its values are nested too deeply")
            if len(self.memo) * _BYTES_PER_NOTE > stream.tell():
                raise _Refused("it notes down more values than it has room for")
        raise _Refused(f"it takes more than {self.most_steps} steps")

    def foreign(self, what: str) -> object:
        """Stands for what is not built."""
        if self.strict:
            raise _Refused(what)
        return _Inert()

    def push(self, value: object) -> None:
        self.stack.append(value)

    def push_made(self, value: object) -> None:
        """Push what may take more room than the instruction that makes it."""
        self.take(sys.getsizeof(value))
        self.stack.append(value)

    def take(self, size: int) -> None:
        """Count bytes of memory."""
        self.room -= size
        if self.room < 0:
            raise _Refused("it makes more values than it has room for")

    def pop(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            before = sys.getsizeof(target)
            target.extend(values)
            self.take(sys.getsizeof(target) - before)
        else:
            self.foreign("it fills something else than a list")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        fits = type(target) is dict
        before = sys.getsizeof(target)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if fits and type(key) is str and len(key) <= _LONGEST_KEY:
                target[key] = value
            else:
                self.foreign("it fills something else than a dictionary under short texts")
        self.take(sys.getsizeof(target) - before)

    def note(self, index: int | None) -> None:
        if index not in (None, len(self.memo)):
            raise _Refused("it does not number its values in order")
        self.memo.append(self.stack[-1])

    def name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise _Refused(_CUT)
        self.push(self.names(module, name))

    def make(self, new: bool) -> None:
        called, arguments = self.pop(2)
        few = type(arguments) is tuple and len(arguments) <= _MOST_ARGUMENTS  # they are copied for the call
        if type(called) is _Builder and called.new is new and few:
            self.push_made(called.build(*arguments))
        else:
            self.push(self.foreign("it makes something else than Datum"))

    def make_with_keywords(self) -> None:
        self.pop(1)
        self.make(new=True)

    def fill(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) in (_Datum, _Module) and type(state) is dict:
            target.fill(state)
        else:
            self.foreign("it sets attributes of something else than Datum")


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda it, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _Machine.note),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda it, index: it.push(it.memo[index])),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda it, _: it.extend(it.pop_mark())),
    "APPEND": lambda it, _: it.extend(it.pop(1)),
    "SETITEM": lambda it, _: it.set_items(it.pop(2)),
    "SETITEMS": lambda it, _: it.set_items(it.pop_mark()),
    "MARK": lambda it, _: it.marks.append(len(it.stack)),
    "POP": lambda it, _: it.pop(1),
    "POP_MARK": lambda it, _: it.pop_mark(),
    "NONE": lambda it, _: it.push(None),
    "NEWTRUE": lambda it, _: it.push(True),
    "NEWFALSE": lambda it, _: it.push(False),
    "EMPTY_DICT": lambda it, _: it.push_made({}),
    "EMPTY_LIST": lambda it, _: it.push_made([]),
    "EMPTY_TUPLE": lambda it, _: it.push(()),
    "EMPTY_SET": lambda it, _: it.push(it.foreign("it has a set")),
    "FROZENSET": lambda it, _: it.push(it.foreign(f"it has a set of {len(it.pop_mark())}")),
    "TUPLE": lambda it, _: it.push_made(tuple(it.pop_mark())),
    "TUPLE1": lambda it, _: it.push_made(tuple(it.pop(1))),
    "TUPLE2": lambda it, _: it.push_made(tuple(it.pop(2))),
    "TUPLE3": lambda it, _: it.push_made(tuple(it.pop(3))),
    "GLOBAL": lambda it, names: it.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda it, _: it.name(*it.pop(2)),
    "NEWOBJ": lambda it, _: it.make(new=True),
    "NEWOBJ_EX": lambda it, _: it.make_with_keywords(),
    "REDUCE": lambda it, _: it.make(new=False),
    "BUILD": lambda it, _: it.fill(),
    "BINPERSID": lambda it, _: it.push_made(_storage(it.stack.pop())),
}
_STEPS = {
    info.code.encode("latin-1"): (_INSTRUCTIONS[info.name], info.arg.reader if info.arg else None)
    for info in pickletools.opcodes
    if info.name in _INSTRUCTIONS
}


# CoOp's lists of images -----------------------------------------------------------------------------------------------


def coop_lists(path: Path, entry: Callable[[str, int, str], Entry]) -> dict[str, list[Entry]]:
    """The lists of a file that CoOp has written, by name, with the paths of the machine that wrote it.

    Any pickle protocol from 2 on, which is all that CoOp writes.

    Args:
        entry: Makes an entry of a list of an image's path, its class from 0, and the name of that class.

    Raises:
        UsageError: The file cannot be read, is larger than 512 MB, is damaged or holds anything else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise _Refused(f"it is larger than {LARGEST_FILE // 2**20} MB")
        machine = _Machine(data, _coop_name, strict=True, most_steps=_MOST_STEPS)
        lists = _lists(machine.run())
        entries: dict[int, list[Entry]] = {}
        for name, datums in lists.items():
            if id(datums) not in entries:  # a list may stand under several names
                _check_datums(name, datums)
                machine.take(_ENTRY * len(datums))
                entries[id(datums)] = [entry(*datum.facts) for datum in datums]
        return {name: entries[id(datums)] for name, datums in lists.items()}
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # a damaged or hostile file may fail in any way, and it is the file's fault each time
        reason = error if isinstance(error, _Refused) else _CUT
        raise UsageError(
            f"{path} is no list of images by CoOp: {reason}; use a file that CoOp's code wrote."
        ) from error


def _lists(content: object) -> dict[str, list[_Datum]]:
    if not isinstance(content, dict) or not content:
        raise _Refused('it is no dictionary with "train"')
    return content


def _check_datums(name: str, datums: object) -> None:
    if not isinstance(datums, list):
        raise _Refused(f"its {name[:60]!r} is no list")
    if not set(map(type, datums)) <= {_Datum}:
        raise _Refused("it has a list of something else than Datum")


class _Datum:
    """Stands for `dassl.data.datasets.base_dataset.Datum`; `facts` come with its attributes."""

    __slots__ = ("facts",)
    facts: tuple[str, int, str]

    def fill(self, state: dict[str, Any]) -> None:
        """Takes the attributes of a `Datum`, and empties them: the machine's memo keeps the dictionary."""
        image, label, class_name = state.get("_impath"), state.get("_label"), state.get("_classname")
        if type(image) is not str or type(label) is not int or type(class_name) is not str:
            raise _Refused("a Datum lacks its path, its integer label or its class name")
        self.facts = (image, label, class_name)
        state.clear()


def _dictionary() -> dict[str, Any]:
    """Stands for an `OrderedDict`, which is filled afterwards."""
    return {}


def _coop_name(module: str, name: str) -> object:
    if name == "Datum":  # wherever a fork of Dassl keeps it
        return _Builder(_Datum, new=True)
    if (module, name) == ("collections", "OrderedDict"):
        return _Builder(_dictionary)
    raise _Refused(f"it asks for {f'{module}.{name}'[:80]!r}, which is never run")


# Checkpoints in torch's zip format ------------------------------------------------------------------------------------


def checkpoint(file: Path, *, bare: bool = False) -> Any:
    """The object stored in `file`, with the tensors of its `state_dict`, on CPU.

    A tensor by itself is the only one of a `state_dict`, without a name; dictionaries of tensors under `weights`, as
    adapters are stored, are one with dotted names. What is neither tensor nor plain is an inert placeholder;
    dictionaries lack what does not lie under a short text.

    Args:
        file: In torch's zip format.
        bare: Whether a dictionary without `state_dict` is one itself, and a TorchScript module has one, as OpenAI
            stores CLIP; its code is not looked at.

    Raises:
        UsageError: If the file is damaged, or of torch's format from before version 1.6.
    """
    try:
        with file.open("rb") as stream:  # torch, too, knows its format by the first bytes
            if stream.read(4) != b"PK\x03\x04" or not zipfile.is_zipfile(stream):
                raise ValueError(
                    "it is not in torch's zip format; if torch before version 1.6 wrote it, load it there in an "
                    "environment that you trust and save it again with a current torch"
                )
        with zipfile.ZipFile(file) as archive:
            root = _root(archive, file.stat().st_size)
            data = archive.read(f"{root}data.pkl")
            content = _Machine(data, _torch_name, strict=False, most_steps=_MOST_STEPS_OF_CHECKPOINT).run()
            if type(content) is _Stored:
                content = {"state_dict": {"": content}}
            if isinstance(content, dict) and "state_dict" not in content and isinstance(content.get("weights"), dict):
                content["state_dict"] = _flattened(content.pop("weights"))
            if bare and type(content) is _Module:
                content = {"state_dict": _state_of(content)}
            if bare and isinstance(content, dict) and "state_dict" not in content:
                content = {"state_dict": content}
            if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
                content["state_dict"] = _tensors(archive, root, content["state_dict"])
        return content
    except Exception as error:  # a damaged or hostile file may fail in any way, and it is the file's fault each time
        reason = (str(error).splitlines() or [""])[0][:300].rstrip(".") or type(error).__name__
        raise UsageError(f"{file} is not a readable checkpoint: {reason}.") from error


def _root(archive: zipfile.ZipFile, size: int) -> str:
    """The folder that holds the records, `data.pkl` and `data/{key}` among them.

    An archive whose records claim more than the file's bytes is refused, so that a small file stays small in memory.
    """
    names = archive.namelist()
    records = [record for record in archive.infolist() if record.filename.split("/")[1:2] != ["code"]]  # never read
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed, which torch's are not")
    claimed = sum(record.file_size for record in records)
    if claimed > size:
        raise ValueError(f"its records claim {claimed} bytes, more than the file has")
    roots = [name[:-8] for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1 or len(set(names)) != len(names):
        raise ValueError("its records are not those of torch")
    order = f"{roots[0]}byteorder"
    if order in names and archive.read(order) != sys.byteorder.encode():
        raise ValueError("it was written on a machine of the other byte order")
    return roots[0]


class _Storage(NamedTuple):
    """A record of the archive that holds numbers, and their type by its name in torch."""

    key: str
    dtype: str
    numel: int


class _Stored(NamedTuple):
    """A tensor in the archive, not read yet: a strided view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensors(archive: zipfile.ZipFile, root: str, state: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a `state_dict`.

    torch checks that each lies within its storage. None has more numbers than that: one that repeats them by a stride
    of 0 takes no room until somebody copies it.
    """
    import torch

    @functools.cache
    def numbers(storage: _Storage) -> Tensor:
        dtype = getattr(torch, storage.dtype)
        data = bytearray(archive.read(f"{root}data/{storage.key}"))
        if len(data) != storage.numel * dtype.itemsize:
            raise ValueError(f"its storage {storage.key} has {len(data)} bytes, not {storage.numel} {dtype}")
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

    stored = {name: value for name, value in state.items() if isinstance(value, _Stored)}
    if len(stored) > _MOST_TENSORS:
        raise ValueError(f"it has {len(stored)} tensors")
    tensors = {}
    for name, it in stored.items():
        held = numbers(it.storage)
        if math.prod(it.size) > len(held):
            raise ValueError(f"its tensor {name[:60]!r} goes out of bounds of its storage")
        tensors[name] = torch.as_strided(held, it.size, it.stride, it.offset)
    return tensors


def _flattened(nested: Mapping[str, object]) -> dict[str, object]:
    """What lies in dictionaries within dictionaries, by dotted names; in a hostile file one may be in itself."""
    found: dict[str, object] = {}
    waiting, seen = [("", nested)], 0
    while waiting:
        prefix, inner = waiting.pop()
        seen += len(inner) + 1
        if seen > _MOST_ATTRIBUTES or len(prefix) > _LONGEST_KEY:
            raise ValueError("its dictionaries are nested too deeply")
        for name, value in inner.items():
            if isinstance(value, dict):
                waiting.append((f"{prefix}{name}.", value))
            else:
                found[f"{prefix}{name}"] = value
    return found


class _Module:
    """Stands for a module of TorchScript; `attributes` come afterwards."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def fill(self, state: dict[str, Any]) -> None:
        """Takes the attributes."""
        self.attributes = state


def _state_of(module: _Module) -> dict[str, _Stored]:
    """The tensors of a module and of those in it, by dotted names; in a hostile file a module may be in itself."""
    found: dict[str, _Stored] = {}
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, inner = waiting.pop()
        seen += len(inner.attributes) + 1
        if seen > _MOST_ATTRIBUTES or len(prefix) > _LONGEST_KEY:
            raise ValueError("its modules are nested too deeply")
        for name, value in inner.attributes.items():
            if type(value) is _Stored:
                found[f"{prefix}{name}"] = value
            elif type(value) is _Module:
                waiting.append((f"{prefix}{name}.", value))
    return found


def _storage(record: Any) -> _Storage:
    """Takes what torch's pickles refer to outside of themselves."""
    kind, kept_as, key, _, numel = record
    if kind != "storage" or not isinstance(kept_as, _StorageType) or not isinstance(key, str):
        raise ValueError("it refers to something that is not a storage")
    if not isinstance(numel, int):
        raise ValueError(f"its storage {key} has no size")
    return _Storage(key, kept_as.dtype, numel)


def _stored(storage: object, offset: object, size: object, stride: object, *rest: object) -> _Stored:
    """Takes the arguments of `torch._utils._rebuild_tensor_v2`; the rest is gradient and hooks."""
    if not isinstance(storage, _Storage) or type(offset) is not int:
        raise ValueError("it has a tensor that lies in no storage")
    return _Stored(storage, offset, _axes(size), _axes(stride))


def _axes(numbers: object) -> tuple[int, ...]:
    """Takes the argument of `torch.Size`, and a stride; nothing is copied."""
    if type(numbers) is not tuple or len(numbers) > _MOST_AXES or not set(map(type, numbers)) <= {int}:
        raise ValueError(f"it has a tensor whose axes are no tuple of up to {_MOST_AXES} numbers")
    return numbers


def _parameter(data: object, *rest: object) -> object:
    """Takes the arguments of `torch._utils._rebuild_parameter`; the rest is gradient, hooks and attributes."""
    return data


class _StorageType(NamedTuple):
    """Stands for a class of storages."""

    dtype: str


_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_TORCH_NAMES: dict[tuple[str, str], _Builder | _StorageType] = {
    ("collections", "OrderedDict"): _Builder(_dictionary),
    ("torch", "Size"): _Builder(_axes),
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(_stored),
    ("torch._utils", "_rebuild_parameter"): _Builder(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Builder(_parameter),
    ("torch.storage", "UntypedStorage"): _StorageType("uint8"),  # of younger types, whose tensors are not read
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


def _torch_name(module: str, name: str) -> object:
    if module.partition(".")[0] == "__torch__":  # of TorchScript
        return _Builder(_Module, new=True)
    return _TORCH_NAMES.get((module, name)) or _Inert()
