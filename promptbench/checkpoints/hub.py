"""Folders on the Hugging Face hub, named `hf://user/name` or `hf://user/name@revision`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from promptbench.clip.load import silence
from promptbench.config import UsageError

PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def parse(address: str) -> tuple[str, str | None]:
    """`hf://user/name@revision` as ("user/name", "revision"), or None for the revision where it is not said.

    Raises:
        UsageError: It is no such address.
    """
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise UsageError(f"{address} is no place on the Hugging Face hub; write hf://user/name.")
    return found[1], found[2]


def download(address: str, files: Sequence[str]) -> Path:
    """A local folder with those of the files that are at the address.

    Raises:
        UsageError: Nothing is there, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repository, revision = parse(address)
    try:
        with silence():
            return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub raises anything
        raise UsageError(
            f"{address} could not be fetched ({type(error).__name__}); check the name and the network, and log in with "
            "`hf auth login` if it is private."
        ) from error


def upload(folder: Path, address: str, files: Sequence[str]) -> None:
    """Put those of the files that are in the folder at the address, in place of all of them that are there.

    Raises:
        UsageError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    repository, revision = parse(address)
    try:
        with silence():
            api = HfApi()
            api.create_repo(repository, exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message="Prompts trained with promptbench",
                allow_patterns=list(files),
                delete_patterns=list(files),
            )
    except Exception as error:  # the hub raises anything
        raise UsageError(
            f"{address} could not be written ({type(error).__name__}); check the name and the network, and log in with "
            "`hf auth login`, or set HF_TOKEN."
        ) from error
