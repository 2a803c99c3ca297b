"""Typed settings: build a frozen dataclass from plain values, and say in one sentence what does not fit.

A configurable thing owns a frozen, keyword-only dataclass. Values come from YAML or the command line as plain Python
objects; `build` converts each to the type its field declares (PyYAML reads `2e-3` as text, so a float field parses it)
and refuses what does not fit. `field(metadata={"source": ...})` says where a default comes from.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union

import yaml

T = TypeVar("T")

_LONGEST_LIST = 24  # known names shown where none is near
_LONGEST_VALUE = 60  # characters of a refused value shown

MOST_VALUES, DEEPEST = 100_000, 40  # of a YAML file, aliases counted as often as they are used
LONGEST_YAML = 2**18  # characters; PyYAML takes seconds for so many

LARGEST = 2**63 - 1  # integer that torch, numpy and pandas hold
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes of a file's name and of a path, on usual file systems


class UsageError(ValueError):
    """A mistake that a user can cause, in one sentence that names the culprit, the place and the way out."""


class Terminated(KeyboardInterrupt):
    """SIGTERM in the middle of a training, which ends it as Ctrl-C does."""


class _Misfit(ValueError):
    """A value that does not fit its type; `typed` turns it into a UsageError that names field and place."""


class FieldFacts(NamedTuple):
    """What is known of one field of a settings class.

    Attributes:
        name: Its name, as typed on the command line.
        type: Its annotation, as written.
        default: Its default, or `dataclasses.MISSING` where it has none.
        source: Where the default comes from, or "".
    """

    name: str
    type: str
    default: Any
    source: str


def nearest(name: object, known: Iterable[object]) -> str:
    """`" Did you mean 'maple'?"` for the known name nearest to `name`, or "" where none is near."""
    by_lower = {str(other).lower(): str(other) for other in known}
    matches = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean {by_lower[matches[0]]!r}?" if matches else ""


def unknown(kind: str, name: object, known: Iterable[object]) -> UsageError:
    """The error for a name that is not known: it offers the nearest known name, or else lists what is known."""
    names = sorted(str(other) for other in known)
    hint = nearest(name, names)
    if not hint:
        listed = ", ".join(names[:_LONGEST_LIST]) + (", ..." if len(names) > _LONGEST_LIST else "")
        hint = f" Known: {listed}." if names else " There is none."
    return UsageError(f"Unknown {kind} {str(name)!r}.{hint}")


def build(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from plain values.

    Args:
        cls: A dataclass; its annotations rule.
        mapping: Field name to value.
        where: The place the values come from, named in every error: a file, a flag.

    Raises:
        UsageError: A key is unknown, a value does not fit its type, a field without default is missing, or the class
            itself refuses the values.
    """
    values = typed(cls, mapping, where)
    missing = [fact.name for fact in describe_fields(cls) if fact.default is dataclasses.MISSING]
    missing = [name for name in missing if name not in values]
    if missing:
        raise UsageError(f"{where}: {', '.join(map(repr, missing))} must be given.")
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def typed(cls: type, mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The given fields of the dataclass `cls`, each converted to its type; fields that are not given stay out.

    Raises:
        UsageError: A key is unknown, or a value does not fit its type.
    """
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{where}: takes a mapping of names to values, not {_shown(mapping)}.")
    hints = _hints(cls)
    names = [field.name for field in _fields(cls)]
    values = {}
    for key, value in mapping.items():
        if key not in names:
            raise UsageError(f"{where}: {unknown('key', key, names)}")
        try:
            values[key] = _convert(value, hints[key], f"{where}: {key}")
        except _Misfit as misfit:
            reason = f" ({misfit})" if str(misfit) else ""
            raise UsageError(f"{where}: {key!r} takes {_takes(hints[key])}, not {_shown(value)}{reason}.") from None
    return values


def parse_assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """`"coop.n_ctx=4"` as `(("coop", "n_ctx"), 4)`; the value is read as YAML.

    Only scalars and lists are YAML here, everything else is text: a template such as `{} texture.` needs no quotes.
    Nothing after the equals sign is the empty text.
    """
    left, equals, right = text.partition("=")
    path = tuple(part.strip() for part in left.split("."))
    if not equals or not all(path):
        raise UsageError(f"{text!r} is no assignment; write method.field=value, for instance coop.n_ctx=4.")
    if not right.strip():
        return path, ""
    try:
        value = load_yaml(right)
    except (yaml.YAMLError, ValueError):
        return path, right
    return path, value if value is None or isinstance(value, (bool, int, float, str, list)) else right


def describe_fields(cls: type) -> list[FieldFacts]:
    """Name, type, default and source of every field of the dataclass `cls`, in order."""
    return [
        FieldFacts(field.name, _annotation(field), _default(field), field.metadata.get("source", ""))
        for field in _fields(cls)
    ]


def to_mapping(instance: Any) -> dict[str, Any]:
    """A dataclass instance as plain dicts, lists and scalars, which `build` reads back."""
    return {field.name: _plain(getattr(instance, field.name)) for field in _fields(type(instance))}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _annotation(field: dataclasses.Field[Any]) -> str:
    if isinstance(field.type, str):
        return field.type
    return field.type.__name__ if isinstance(field.type, type) else str(field.type)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as an instance of the annotation `kind`; raises _Misfit where it is none."""
    if kind in _SCALARS:
        return _SCALARS[kind][1](value)
    if kind in (Any, object):
        return value
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, typing.cast(type, kind)) else build(typing.cast(type, kind), value, where)
    origin = typing.get_origin(kind)
    if origin not in _GENERICS:
        raise TypeError(f"{where}: promptbench.config cannot read the annotation {kind!r}.")
    return _GENERICS[origin](value, typing.get_args(kind), where)


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Misfit
    return value


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise _Misfit
    try:
        integer = int(value)
    except ValueError:
        raise _Misfit from None
    if abs(integer) > LARGEST:
        raise _Misfit("it is beyond 64 bits")
    return integer


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _Misfit
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _Misfit from None
    if not math.isfinite(number):
        raise _Misfit("it is not finite")
    return number


def _to_str(value: Any) -> str:
    if not isinstance(value, str):
        raise _Misfit("quote it to make it text" if isinstance(value, (bool, int, float)) else "")
    return value


def _to_none(value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value.lower() in ("none", "null")):
        raise _Misfit


def _to_choice(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise _Misfit
    return value


def _to_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """The first kind that fits, `None` first, so that "none" is nothing even where text is allowed."""
    for kind in sorted(kinds, key=lambda kind: kind is not types.NoneType):
        try:
            return _convert(value, kind, where)
        except _Misfit:
            continue
    raise _Misfit


def _to_tuple(value: Any, kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    """A tuple from a list, from `1,2` or from one single item."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise _Misfit(f"it has {len(items)} items")
    return tuple(_convert(item, kind, where) for item, kind in zip(items, kinds, strict=True))


def _to_dict(value: Any, kinds: tuple[Any, ...], where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _Misfit
    return {_convert(key, kinds[0], where): _convert(item, kinds[1], f"{where}.{key}") for key, item in value.items()}


_SCALARS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    bool: ("true or false", _to_bool),
    int: ("an integer", _to_int),
    float: ("a number", _to_float),
    str: ("text", _to_str),
    types.NoneType: ("none", _to_none),
}

_GENERICS: dict[Any, Callable[[Any, tuple[Any, ...], str], Any]] = {
    Literal: _to_choice,
    Union: _to_union,
    types.UnionType: _to_union,
    tuple: _to_tuple,
    Mapping: _to_dict,
}


def _takes(kind: Any) -> str:
    """What a field of the annotation `kind` takes, in words."""
    if kind in _SCALARS:
        return _SCALARS[kind][0]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_takes(argument) for argument in arguments)
    if origin is tuple:
        items = [_takes(argument) for argument in arguments if argument is not Ellipsis]
        return f"a list of {len(items)} items" if len(items) > 1 else f"a list (each item {items[0]})"
    return "a mapping of names to values"


def load_yaml(text: str) -> Any:
    """What a YAML text says, in plain Python values that can be walked through.

    Raises:
        yaml.YAMLError, ValueError: It is no YAML or very long, or its values are nested too deeply, or, with aliases of
            aliases, too many.
    """
    if len(text) > LONGEST_YAML:
        raise ValueError(f"it is longer than {LONGEST_YAML} characters")
    try:
        raw = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    waiting, met = [(raw, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        met += 1
        if met > MOST_VALUES or depth > DEEPEST:
            raise ValueError("its values are nested too deeply" if depth > DEEPEST else "it has too many values")
        if isinstance(value, Mapping):
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(item, depth + 1) for item in value]
    return raw


def number(variable: str, default: float, unit: str) -> float:
    """The number that an environment variable says, in `unit`; `default` where it is not set.

    Raises:
        UsageError: It is no number from 0 on.
    """
    text = os.environ.get(variable, "")
    try:
        value = float(text or default)
        if 0 <= value < float("inf"):
            return value
    except ValueError:
        pass
    raise UsageError(f"{variable} takes a number of {unit} from 0 on, not {text!r}.")


def path_of(given: str | os.PathLike[str]) -> Path:
    """The path that a user names, `~` being the home folder.

    Raises:
        UsageError: No file can be called so, or nobody knows that home folder.
    """
    text = os.fspath(given)
    try:
        path = Path(text).expanduser()
        sizes = [len(os.fsencode(part)) for part in path.parts]
    except RuntimeError:
        raise UsageError(f"{_shown(text)}: that home folder is not known; write the whole path.") from None
    except UnicodeEncodeError:
        raise UsageError(f"{_shown(text)} is no path: it holds half a character.") from None
    if "\0" in text:
        raise UsageError(f"{_shown(text)} is no path: it holds a NUL character.")
    if max(sizes, default=0) > _LONGEST_NAME or sum(sizes) + len(sizes) > _LONGEST_PATH:
        raise UsageError(
            f"{_shown(text)} is too long for a path: a name has at most {_LONGEST_NAME} bytes, a path {_LONGEST_PATH}."
        )
    return path


def real_path_of(given: str | os.PathLike[str]) -> Path:
    """The path that a user names, links followed; links that lead back to each other stay, and are no file.

    Raises:
        UsageError: As of `path_of`.
    """
    return Path(os.path.realpath(path_of(given)))  # `Path.resolve` raises a RuntimeError on such links


def text_of(path: Path) -> str:
    """The text of a file that a user names, in UTF-8.

    Raises:
        OSError, UnicodeDecodeError: It cannot be read, or is no such text.
        ValueError: It is a device, which may never end.
    """
    if path.is_char_device() or path.is_block_device():
        raise ValueError("it is a device")
    return path.read_text(encoding="utf-8-sig")


def overrides(values: Mapping[str, Any]) -> str:
    """Settings as they are typed one after the other: `depth=3, epochs=2`."""
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def shown(value: object) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(shown(item) for item in value)
    return repr(value) if value == "" else str(value)
