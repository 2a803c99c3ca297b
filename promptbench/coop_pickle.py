"""CoOp's pickled lists of images, read without running anything that they contain.

CoOp keeps its few-shot samples in `<dataset>/split_fewshot/shot_{k}-seed_{s}.pkl`, `{"train": [Datum, ...], "val":
[Datum, ...]}`, and ImageNet's files in `imagenet/preprocessed.pkl`, `{"train": ..., "test": ...}`
(https://github.com/KaiyangZhou/CoOp, `datasets/`). Python's unpickler calls whatever a file tells it to. The reader
here is a machine of its own that knows only what such files consist of: texts, integers, lists, dictionaries and
`Datum`, which is never looked up. Everything else is refused, and memory stays in proportion to the file.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptbench.config import UsageError
from promptbench.splits import Item

LARGEST_FILE = 512 * 2**20
"""Bytes; ImageNet's list has about 150 million."""

_DEEPEST_STACK = 10_000  # Python's pickler hands over lists and dictionaries in batches of 1000
_BYTES_PER_MEMO = 8  # a Datum takes at least 28 bytes and is noted down in three parts
_STEPS_BETWEEN_CHECKS = 1000
_CUT = "it is damaged or cut short"


class _Refused(ValueError):
    """What a file holds that it should not, as the end of a sentence."""


def read(path: Path) -> dict[str, list[Item]]:
    """The lists of a file that CoOp has written, by name, with the paths of the machine that wrote it.

    Any pickle protocol from 2 on, which is all that CoOp writes.

    Raises:
        UsageError: The file cannot be read, is larger than 512 MB, is damaged or holds anything else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise _Refused(f"it is larger than {LARGEST_FILE // 2**20} MB")
        return _lists(_Machine(data).run())
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # a damaged or hostile file may fail in any way, and it is the file's fault each time
        reason = error if isinstance(error, _Refused) else _CUT
        raise UsageError(
            f"{path} is no list of images by CoOp: {reason}; use a file that CoOp's code wrote."
        ) from error


def _lists(content: object) -> dict[str, list[Item]]:
    if not isinstance(content, dict) or not content:
        raise _Refused('it is no dictionary with "train"')
    for name, datums in content.items():
        if not isinstance(name, str) or not isinstance(datums, list):
            raise _Refused(f"its {str(name)[:60]!r} is no list")
    return {name: [datum.item for datum in datums] for name, datums in content.items()}


class _Datum:
    """Stands for `dassl.data.datasets.base_dataset.Datum`; `item` comes with its attributes."""

    __slots__ = ("item",)
    item: Item

    def fill(self, state: dict[str, Any]) -> None:
        """Takes the attributes of a `Datum`, and empties them: the machine's memo keeps the dictionary."""
        image, label, class_name = state.get("_impath"), state.get("_label"), state.get("_classname")
        if type(image) is not str or type(label) is not int or type(class_name) is not str:
            raise _Refused("a Datum lacks its path, its integer label or its class name")
        self.item = Item(image, label, class_name)
        state.clear()


_DATUM, _ORDERED_DICT = object(), object()  # stand for the classes, and cannot be called


class _Machine:
    """The stack machine of the pickle format, cut down to what lists of images need; its methods are instructions.

    What lies past the end of the data reads as nothing, and the next instruction fails.

    Attributes:
        stack: Values in the making.
        marks: Heights of the stack at its open marks.
        memo: Values noted down for a later use, in order; picklers number them so.
    """

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)
        self.read = self._stream.read
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []

    def run(self) -> object:
        """What the pickle describes."""
        read = self.read
        while True:
            for _ in range(_STEPS_BETWEEN_CHECKS):
                code = read(1)
                if code == _STOP:
                    return self.stack.pop()
                if code not in _STEPS:
                    where = self._stream.tell() - 1
                    raise _Refused(f"it has the pickle instruction {code!r} at byte {where}" if code else _CUT)
                _STEPS[code](self)
            self._check_sizes()

    def _check_sizes(self) -> None:
        if len(self.stack) + len(self.marks) > _DEEPEST_STACK:
            raise _Refused("its values are nested too deeply")
        if len(self.memo) * _BYTES_PER_MEMO > self._stream.tell():
            raise _Refused("it notes down more values than it has room for")

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.read(size), "little", signed=signed)

    def text(self, size: int) -> str:
        return self.read(size).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        return self._stream.readline().decode().removesuffix("\n")

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list or not set(map(type, values)) <= {_Datum}:
            raise _Refused("it has a list of something else than Datum")
        target += values

    def set_items(self) -> None:
        values = self.since_mark()
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update({key: value})

    def note(self) -> None:
        self.memo.append(self.stack[-1])

    def note_at(self, index: int) -> None:
        if index != len(self.memo):
            raise _Refused("it does not number its values in order")
        self.note()

    def recall(self) -> None:
        self.stack.append(self.memo[self.read(1)[0]])

    def name(self, module: object, name: object) -> None:
        """Pushes what stands for a class, without looking the class up."""
        if name == "Datum":  # wherever a fork of Dassl keeps it
            self.stack.append(_DATUM)
        elif (module, name) == ("collections", "OrderedDict"):
            self.stack.append(_ORDERED_DICT)
        else:
            raise _Refused(f"it asks for {f'{module}.{name}'[:80]!r}, which is never run")

    def name_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def make(self, known: object, build: Callable[[], object]) -> None:
        """Pushes a new object; only the call of the `known` class without arguments is understood."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if called is not known or arguments != ():
            raise _Refused("it makes something else than Datum")
        self.stack.append(build())

    def fill(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not _Datum or type(state) is not dict:
            raise _Refused("it sets attributes of something else than Datum")
        target.fill(state)


_STOP = b"."
_STEPS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda it: it.number(1),  # protocol
    b"\x95": lambda it: it.number(8),  # length of a frame
    b"(": _Machine.mark,
    b"}": lambda it: it.stack.append({}),
    b"]": lambda it: it.stack.append([]),
    b")": lambda it: it.stack.append(()),
    b"N": lambda it: it.stack.append(None),
    b"K": lambda it: it.stack.append(it.read(1)[0]),
    b"M": lambda it: it.stack.append(it.number(2)),
    b"J": lambda it: it.stack.append(it.number(4, signed=True)),
    b"\x8c": lambda it: it.stack.append(it.text(it.read(1)[0])),
    b"X": lambda it: it.stack.append(it.text(it.number(4))),
    b"\x8d": lambda it: it.stack.append(it.text(it.number(8))),
    b"a": lambda it: it.extend([it.stack.pop()]),
    b"e": lambda it: it.extend(it.since_mark()),
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"\x94": _Machine.note,
    b"q": lambda it: it.note_at(it.number(1)),
    b"r": lambda it: it.note_at(it.number(4)),
    b"h": _Machine.recall,
    b"j": lambda it: it.stack.append(it.memo[it.number(4)]),
    b"c": lambda it: it.name(it.line(), it.line()),
    b"\x93": _Machine.name_from_stack,
    b"\x81": lambda it: it.make(_DATUM, _Datum),
    b"R": lambda it: it.make(_ORDERED_DICT, dict),
    b"b": _Machine.fill,
}
