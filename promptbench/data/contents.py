"""What images hold, told by their bytes: digests, remembered as long as size, time of change and place agree.

    <cache>/contents/<folder>.txt    a line per file: digest, size, time of change, inode, path; then a checksum

Reading all bytes of a large dataset takes minutes; looking at its files takes a moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, Item
from promptbench.storage.atomic import write_atomically
from promptbench.storage.cache import cache_dir


def contents_digest(dataset: Dataset, items: Iterable[Item]) -> str:
    """SHA-256, in hex, over path, label and bytes of images, in order.

    Images of a dataset that makes them itself are known by what they are drawn from; see `Dataset.identity`.

    Raises:
        UsageError: An image is missing.
    """
    found = hashlib.sha256()
    listed = list(items)
    digests = dataset_digests(dataset, listed)
    for item, digest in zip(listed, digests, strict=True):
        found.update(f"{item.image}\0{item.label}\0{digest}\n".encode())
    return found.hexdigest()


def dataset_digests(dataset: Dataset, items: list[Item]) -> list[str]:
    """Of each image, in order, a digest of its bytes, or what stands for them."""
    if type(dataset).identity is not Dataset.identity:
        return [dataset.identity(item) for item in items]
    memory = Memory(dataset.image_root)
    digests = [memory.digest(item.image) for item in items]
    memory.write()
    return digests


class Memory:
    """The digests of the files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:32]
        self.path = cache_dir() / "contents" / f"{name}.txt"
        self.known = self._read()
        self.changed = False

    def digest(self, image: str) -> str:
        """Of a file by its path below the folder; read only if it is not known as it is now."""
        path = self.folder / image
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
            before = self.known.get(image)
            if before is not None and before[1] == state:
                return before[0]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(f"Cannot read the image {path}: {error.strerror}.") from error
        self.known[image] = (digest, state)
        self.changed = True
        return digest

    def write(self) -> None:
        """Remember what is new; where the cache cannot be written it is read again next time."""
        if not self.changed:
            return
        lines = [f"{digest} {state} {image}" for image, (digest, state) in self.known.items() if "\n" not in image]
        text = "\n".join(lines)
        checksum = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
        with suppress(OSError):
            content = f"{text}\n{checksum}\n".encode(errors="surrogateescape")
            write_atomically(self.path, lambda file: file.write(content))
        self.changed = False

    def _read(self) -> dict[str, tuple[str, str]]:
        """What is remembered; nothing where the file is damaged."""
        try:
            text, _, checksum = self.path.read_bytes().rstrip(b"\n").rpartition(b"\n")
        except OSError:
            return {}
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            return {}
        known = {}
        for line in text.decode(errors="surrogateescape").splitlines():
            digest, size, changed, inode, image = line.split(" ", 4)
            known[image] = (digest, f"{size} {changed} {inode}")
        return known
