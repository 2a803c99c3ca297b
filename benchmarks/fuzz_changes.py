"""What can be wrong with a file: values that fit nowhere, bytes that were cut, flipped or put in between."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[Any], Any]
Act = tuple[str, ...] | Callable[[], object]  # words of a command, or what a command calls

NAN, INFINITE = float("nan"), float("inf")
PATHS = (
    "../../escaped",
    "/tmp/promptbench-escaped",
    "..\\..\\escaped",
    "a/../../../escaped",
    "~/escaped",
    "C:\\x",
    ".",
)
TEXTS = (
    "",
    " ",
    "x" * 5000,
    "データ",
    "\ud800",
    "a\0b",
    "a\nb",
    "\x1b[31mred",
    "{}",
    "{0.__class__}",
    "%s",
    "-1",
    "nan",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 10**400, 1e308, 0.5, -0.0, NAN, INFINITE, True, False)
OTHERS: tuple[Any, ...] = (None, [], {}, [[]], {"": ""}, [None], [1, "a", {}], {"a": {"b": [{}]}})

odd = st.one_of(
    st.sampled_from(PATHS),
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.sampled_from(OTHERS),
    st.builds(lambda depth: nested(depth), st.sampled_from((3, 100, 900))),
    st.text(max_size=20),
    st.integers(),
)
"""A value that most places do not expect."""


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def changed(draw: Draw, document: Any, most: int = 3) -> Any:
    """A document of lists and dictionaries with one to `most` places lost, replaced, repeated or renamed."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        spots = list(places(document))
        if not spots:
            break
        holder, key = draw(st.sampled_from(spots))
        how = draw(st.sampled_from(("replace", "replace", "replace", "lose", "rename", "repeat", "all")))
        if how == "all" and draw(st.integers(0, 5)) == 0:
            return copy.deepcopy(draw(odd))
        if how == "lose":
            del holder[key]
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from((*PATHS, *TEXTS)))] = holder.pop(key)
        elif how == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(draw(odd))
    return document


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: what holds it, and its key or index there; never below what is nested deeply."""
    waiting = [(document, 0)]
    while waiting:
        holder, depth = waiting.pop()
        if depth > 8 or not isinstance(holder, (dict, list)):
            continue
        for key in list(holder) if isinstance(holder, dict) else range(min(len(holder), 6)):
            yield holder, key
            waiting.append((holder[key], depth + 1))


def damaged(draw: Draw, data: bytes) -> bytes:
    """Bytes cut short, flipped, put in between, repeated or emptied."""
    held = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, 9999)) * len(held) // 10_000  # whatever the length, the same draws
        how = draw(st.sampled_from(("cut", "flip", "flip", "put", "repeat", "empty", "head", "number")))
        if how == "cut":
            del held[at:]
        elif how == "flip" and held:
            held[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "put":
            held[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif how == "repeat":
            held[at:at] = held[at : at + 64]
        elif how == "head":
            held[:8] = draw(st.binary(min_size=8, max_size=8))
        elif how == "number":
            held[at : at + 4] = draw(st.sampled_from((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"9" * 4)))
        elif how == "empty" and draw(st.integers(0, 9)) == 0:
            held.clear()
    return bytes(held)


def as_json(draw: Draw, document: Any) -> bytes:
    """A document, changed, as JSON; or its JSON with damaged bytes, or something else altogether."""
    plain = json.dumps(document).encode()
    how = draw(st.integers(0, 11))
    if how == 0:
        return draw(
            st.sampled_from((b"", b"null", b"[" * 50_000, b"\xff\xfe{", b"9" * 6000, b'{"a":' * 9000, b"\xef\xbb\xbf"))
        )
    if how <= 3:
        return damaged(draw, plain)
    return json.dumps(changed(draw, document)).encode()
