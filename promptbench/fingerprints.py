"""Whether what lies behind a name is still the same: the weights of a backbone, the code of a built-in method.

A spec names both, and a run is found by its spec. What was behind the names is in the conditions of its result.
"""

from __future__ import annotations

import contextlib
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench import __version__
from promptbench.clip.load import EMBEDDED, RANDOM, split_name
from promptbench.config import UsageError
from promptbench.storage.atomic import write_atomically
from promptbench.storage.cache import cache_dir

if TYPE_CHECKING:
    from promptbench.runs.session import Bench


def weights_hash(bench: Bench, may_load: bool = True) -> str:
    """The hash of the backbone's weights as they are now; "" where it is not known.

    It is remembered for the files behind the name, by their places, sizes and times of change, so that the backbone is
    only loaded once for each state of them; a memo that was damaged counts as none. The weights behind a tag of
    open_clip never change.

    Args:
        may_load: Whether the backbone is loaded where nothing is remembered.
    """
    memo = _memo(bench.suite.backbone)
    if memo is None:
        return ""
    remembered = _remembered(memo)
    if remembered or not may_load:
        return remembered
    return remember(bench)


def remember(bench: Bench) -> str:
    """Load the backbone, if it is not yet, and remember the hash of its weights; "" where that cannot be."""
    memo = _memo(bench.suite.backbone)
    if memo is None:
        return ""
    try:
        found = bench.backbone.weights_hash
    except UsageError:  # whoever needs the weights says so
        return ""
    with contextlib.suppress(OSError):
        write_atomically(memo, lambda file: file.write(f"{found} {_checksum(memo, found)}\n".encode()))
    return found


def _remembered(memo: Path) -> str:
    """The hash in a memo; "" where there is none, or it is not what was written for these files."""
    try:
        found, _, checksum = memo.read_text(encoding="ascii").removesuffix("\n").partition(" ")
    except (OSError, UnicodeDecodeError):
        return ""
    return found if checksum == _checksum(memo, found) else ""


def _checksum(memo: Path, found: str) -> str:
    return hashlib.sha256(f"{memo.name} {found}".encode()).hexdigest()


def _memo(backbone: str) -> Path | None:
    """The file that remembers the hash of a backbone's weights; None where no files are behind its name."""
    try:
        states = [_state(path) for path in _files(backbone)]
    except (OSError, UsageError):
        return None
    facts = repr((backbone, states, __version__)).encode()
    return cache_dir() / "weights" / hashlib.sha256(facts).hexdigest()[:32] if states else None


def _files(backbone: str) -> list[Path]:
    """The files behind the name of a backbone, its architecture's where that is one of the user's."""
    if backbone == EMBEDDED:
        folder = Path(str(files("promptbench.mini")))
        return sorted([*folder.glob("*.safetensors"), *folder.glob("mini-clip*.json")])
    architecture, weights = (Path(part).expanduser() for part in split_name(backbone))
    own = [architecture] if architecture.suffix == ".json" else []
    named = weights.is_file() or (own and weights.name != RANDOM)  # a tag goes with an architecture of open_clip alone
    return [*own, weights] if named else own


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns
