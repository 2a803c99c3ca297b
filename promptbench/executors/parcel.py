"""A job on its way to another process or machine: with its environment and plugins, opened there.

Importing this module imports no torch, whose libraries read the environment when they are loaded.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.config import UsageError

if TYPE_CHECKING:
    from promptbench.sweep import Job

SECRET = ("_KEY", "_TOKEN")  # names that end so hold what nobody else may read
SENT = ("PROMPTBENCH_", "OMP_", "MKL_", "CUBLAS_", "TORCH_", "HF_", "HUGGINGFACE_", "WANDB_")  # variables that begin so


@dataclass(frozen=True)
class Parcel:
    """A job that another machine can open.

    Attributes:
        job: Pickled; made by this call, and read by processes that it starts alone.
        environment: Variables to set before anything is imported; `$NAME` in a value is what the node says.
        folder: The current directory here, which relative paths start from; kept where the node has it.
        plugins: The content of the job's plugin files, in their order.
    """

    job: bytes
    environment: Mapping[str, str]
    folder: Path
    plugins: tuple[bytes, ...] = field(default=(), repr=False)

    def open(self, copies: Path) -> Job:
        """The job, in an environment like that where it comes from.

        Args:
            copies: A folder for plugin files that this machine lacks; needed as long as the job is.
        """
        os.environ.update({name: os.path.expandvars(value) for name, value in self.environment.items()})
        with suppress(OSError):
            os.chdir(self.folder)
        job: Job = pickle.loads(self.job)
        plugins = (_here(path, content, copies) for path, content in zip(job.plugins, self.plugins, strict=True))
        return replace(job, plugins=tuple(plugins))


def packed(job: Job, cache: str = "", secrets: bool = False) -> Parcel:
    """A job as others can open it.

    Args:
        job: Of a sweep.
        cache: The folder for what can be computed again, on the nodes; "" for the one that is set here.
        secrets: Whether passwords go along; not where the parcel is written to a disk.
    """
    names = [name for name in os.environ if name.startswith(SENT) and (secrets or not name.endswith(SECRET))]
    environment = {name: os.environ[name] for name in names}
    if cache:
        environment["PROMPTBENCH_CACHE"] = cache
    plugins = tuple(path.read_bytes() for path in job.plugins)
    bench = replace(job.bench, output=job.bench.output.absolute())
    return Parcel(pickle.dumps(replace(job, bench=bench)), environment, Path.cwd(), plugins)


def _here(path: Path, content: bytes, copies: Path) -> Path:
    """The plugin file, or a copy of it where this machine has none or another one."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return path
    copy = Path(tempfile.mkdtemp(prefix="plugin-", dir=copies)) / path.name
    copy.write_bytes(content)
    return copy


def inside(folder: Path, name: str, parts: tuple[str, ...]) -> Path:
    """The file of that relative name in a folder.

    Args:
        folder: The output folder.
        name: With `/` between its parts, as another machine says.
        parts: The folders in it that may be meant.

    Raises:
        UsageError: It would lie outside.
    """
    path = folder / name
    whole = name.split("/")
    within = path.parent.resolve().is_relative_to(folder.resolve() / whole[0])
    if whole[0] not in parts or len(whole) < 2 or {"", ".", ".."} & set(whole) or "\\" in name or not within:
        raise UsageError(f"A worker sent a file named {name!r}, which is not in the output folder {folder}; refused.")
    return path
