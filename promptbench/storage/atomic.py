"""Files that appear whole or not at all, that tell whether they have changed, and what is left of unfinished ones."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

DRAFT_AGE = 3600.0  # seconds after which an unfinished file is nobody's
SEAL = "sha256"  # the last tensor of a sealed file
_PART = 2**20  # bytes that are read at a time

TYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
"""Of tensors, as safetensors calls them."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Creates or replaces `path` with what `write` puts into the open file, whole or not at all.

    The bytes go to a temporary file beside `path`, reach the disk and take its place in one step; on any failure,
    Ctrl-C included, `path` stays as it was. Missing folders are made. What is written is there after a loss of power,
    too, where the system can say so of folders.
    """
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for folder in (path.parent, *(made.parent for made in missing)):
        _sync(folder)


def write_checked(path: Path, content: bytes) -> None:
    """Creates or replaces `path`, whole or not at all, with some bytes and their checksum, which `read_checked` asks
    for."""
    write_atomically(path, lambda file: file.writelines((content, _checksum(content))))


def read_checked(path: Path) -> bytes | None:
    """The bytes of a file of `write_checked`; None where it is not there, or not as it was written."""
    try:
        found = path.read_bytes()
    except OSError:
        return None
    size = len(_checksum(b""))
    content = found[:-size]
    return content if _checksum(content) == found[-size:] else None


def _checksum(content: bytes) -> bytes:
    """The last line of a file with that content."""
    return f"\n{hashlib.sha256(content).hexdigest()}\n".encode()


def check_room(path: Path) -> None:
    """Tries a file beside `path`, or where its folder would be made.

    Raises:
        OSError: That is impossible, or `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    place = next(place for place in path.absolute().parents if os.path.lexists(place))
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"\n")


def _sync(folder: Path) -> None:
    """Have the names in a folder reach the disk, where that can be; the file that got one is there already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def superseded(folder: Path) -> list[Path]:
    """The notes of where trainings stood, `NAME.partial`, beside what was learned since, `NAME.safetensors`."""
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:
        return []
    notes = [Path(folder, name) for name in sorted(names) if name.endswith(".partial")]
    return [path for path in notes if path.with_suffix(".safetensors").name in names]


def remove_drafts(folder: Path, now: float) -> None:
    """Removes what `write_atomically` left below a folder where the process was killed, once that is long ago.

    Args:
        now: Seconds since 1970, by the clock of the folder's file system.
    """
    for place, _, files in os.walk(folder):
        for draft in (Path(place, file) for file in files if file.startswith(".") and file.endswith(".tmp")):
            with contextlib.suppress(OSError):
                if draft.stat().st_mtime < now - DRAFT_AGE:
                    draft.unlink()


def sealed(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> list[bytes | memoryview]:
    """The bytes of a safetensors file whose last tensor is a checksum of all that stands before it, but for that.

    They lie where the tensors lie, for these may be most of the memory there is.

    Args:
        about: What the file says of itself.

    Raises:
        TypeError: A tensor is of a type that no such file holds.
    """
    import torch  # tables must not wait for it

    given = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    ordered = sorted(given.items(), key=lambda item: -item[1].element_size())  # so that each lies where it can be read
    seal = torch.zeros(hashlib.sha256().digest_size, dtype=torch.uint8)
    contents = [tensor.reshape(-1).view(torch.uint8).numpy().data for _, tensor in ordered]
    return [_head([*ordered, (SEAL, seal)], about), *contents]


def _head(tensors: Sequence[tuple[str, Tensor]], about: Mapping[str, str]) -> bytes:
    """The head of a safetensors file with these tensors, one behind the other."""
    head: dict[str, object] = {"__metadata__": dict(about)}
    end = 0
    for name, tensor in tensors:
        kind = TYPES.get(str(tensor.dtype))
        if kind is None:
            raise TypeError(f"The tensor {name} is of the type {tensor.dtype}, which is not kept in files.")
        start, end = end, end + tensor.nbytes
        head[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_sealed(file: BinaryIO, parts: Sequence[bytes | memoryview]) -> None:
    """Write what `sealed` gives, and the seal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def read_sealed(path: Path | str, unsealed: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a sealed file, and what it says of itself; what is not looked at takes no memory.

    Args:
        unsealed: Whether a file without a seal is read, too.

    Raises:
        SafetensorError, OSError, ValueError: It cannot be read, or its bytes have changed since they were written.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        about = file.metadata() or {}
    seal = tensors.pop(SEAL, None)
    if seal is None and unsealed:
        return tensors, about
    if seal is None or seal.numpy().tobytes() != _digest(Path(path)):
        raise ValueError("its bytes are not those that were written")
    return tensors, about


def _digest(path: Path) -> bytes:
    """SHA-256 of a file but for its seal, read piece by piece so that none of it stays in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - hashlib.sha256().digest_size
        while left > 0 and (part := file.read(min(left, _PART))):
            digest.update(part)
            left -= len(part)
    return digest.digest()
