"""Where a dataset's files come from, as facts that its module states."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file that the makers of a dataset offer to everyone: an archive, or a file that is taken as it is.

    Attributes:
        url: Where it is.
        md5: Its checksum, as torchvision states it, or "" where nobody states one.
        inner: The path of an archive inside this archive that holds what is wanted, or "".
        folder: The folder in the archive that is wanted; "" for all of it, None for a file that is no archive.
        target: What that becomes in the dataset's folder; "" for that folder itself.
    """

    url: str
    md5: str = ""
    inner: str = ""
    folder: str | None = ""
    target: str


@dataclass(frozen=True, kw_only=True)
class Sources:
    """How to get a dataset.

    Attributes:
        downloads: What `promptbench data prepare` fetches.
        split_url: Where CoOp's split file, or the class names where the folders are the split, is to be had.
        by_hand: What nobody offers for download without an account, or at all, in steps; `{folder}` stands for the
            dataset's folder.
    """

    downloads: tuple[Download, ...] = ()
    split_url: str = ""
    by_hand: tuple[str, ...] = ()
