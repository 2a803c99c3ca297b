"""Image files as RGB, and which of many files cannot be read."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from PIL import Image

from promptbench.config import UsageError
from promptbench.storage.atomic import write_atomically

T = TypeVar("T")

_EIGHT_BITS = np.rint(np.arange(65536) / 257).astype(np.uint8)  # 16 bits to 8
NO_ALPHA = (
    "have an alpha channel, which is dropped: transparent parts show the colours stored beneath them, usually black"
)
_BY_PROGRAM = ("EPS",)
_SMALL = 5 * 10**6  # bytes of a file that may take no more than
_MOST_OF_SMALL = 240 * 2**20  # bytes of memory
_PER_PIXEL = {"RGB": 4, "L": 5, "P": 5, "1": 5, "I": 16}  # bytes that decoding takes, 8 in other modes


def open_image(path: Path, way_out: str = "replace the file") -> Image.Image:
    """An image file as RGB, of any mode that PIL reads; see `as_rgb`.

    EXIF orientation is not applied. PIL's warnings, of broken EXIF data and the like, are not passed on.

    Args:
        path: Of the file.
        way_out: What the user may do about a file that cannot be read.

    Raises:
        UsageError: The file is missing, damaged, cut short, or has more pixels than `Image.MAX_IMAGE_PIXELS`,
            or than a photograph of its size.
    """
    try:
        with _quiet(), Image.open(path) as image:
            _check_harmless(image, path.stat().st_size)
            return as_rgb(image)
    except Exception as error:  # decoders raise anything on damaged files: OSError, SyntaxError, struct.error, ...
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UsageError(f"Cannot read the image {path}: {reason.rstrip('.')}; {way_out}.") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB.

    Converted as PIL's `convert("RGB")` does, as the field's code has it: an alpha channel is dropped, so that
    transparent parts show the colours stored beneath them. Integer grey of more than 8 bits is scaled to 8 (value /
    257), where `convert` would clip it to white.
    """
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return Image.fromarray(_EIGHT_BITS[grey]).convert("RGB")
    image.load()
    if image.mode == "RGB" and not image.readonly:  # not a map of the file
        return image  # `convert` would copy its pixels
    return image.convert("RGB")


def has_alpha(path: Path) -> bool:
    """Whether an image file says that it has an alpha channel or a transparent colour; its pixels are not decoded, and
    one that cannot be opened says nothing. A JPEG, told by its name, never has."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return False
    try:
        with _quiet(), Image.open(path) as image:
            return bool(image.has_transparency_data)
    except Exception:  # as in `open_image`, which says so
        return False


def _check_harmless(image: Image.Image, size: int) -> None:
    """Raises ValueError for an image whose decoding takes more than time; nothing of it is decoded yet."""
    if image.format in _BY_PROGRAM:
        raise ValueError(f"it is of the format {image.format}, which another program would have to draw")
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:  # PIL itself only warns up to twice as many
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than the {most} that are safe to decode")
    held = image.width * image.height * _PER_PIXEL.get(image.mode.partition(";")[0], 8)
    if size < _SMALL and held > _MOST_OF_SMALL:
        raise ValueError(f"it has {image.width} x {image.height} pixels in {size} bytes, as no photograph has")


def find_unreadable(
    items: Sequence[T], identity: Callable[[T], str], open_: Callable[[T], object], memory: Path
) -> list[T]:
    """The items that cannot be opened, in order; those that could be are remembered and not opened again.

    Args:
        items: What to open.
        identity: A key of an item's bytes.
        open_: Decodes the whole of an item. Both raise UsageError where they cannot.
        memory: A file that holds a digest of each identity found readable, a line each. Failures are not remembered:
            they may pass, and they are few.
    """
    known = _remembered(memory)
    keys = [_key(item, identity) for item in items]
    new = [index for index, key in enumerate(keys) if key not in known]
    with _quiet():  # outside the threads too: they share the warning filters
        verdicts = _in_threads(lambda index: _opens(items[index], open_), new)
    readable = {keys[index] for index, good in zip(new, verdicts, strict=True) if good}
    if readable:
        lines = "\n".join(sorted(known | readable)).encode()
        write_atomically(memory, lambda file: file.write(lines))
    return [items[index] for index, good in zip(new, verdicts, strict=True) if not good]


def _remembered(memory: Path) -> set[str]:
    try:
        return set(memory.read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError):
        return set()


def _key(item: T, identity: Callable[[T], str]) -> str:
    """32 hex digits for the bytes of an item and the decoder; "" where the item is not there."""
    try:
        return hashlib.sha256(f"{PIL.__version__}:{identity(item)}".encode()).hexdigest()[:32]
    except UsageError:
        return ""


def _opens(item: T, open_: Callable[[T], object]) -> bool:
    try:
        open_(item)
    except UsageError:
        return False
    return True


def _in_threads(function: Callable[[int], bool], values: Sequence[int]) -> list[bool]:
    """The function of each value; decoders release Python's lock. Ctrl-C drops what has not begun."""
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        return list(pool.map(function, values))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
