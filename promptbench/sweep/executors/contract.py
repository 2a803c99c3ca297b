"""What an executor is: it carries out a sweep, somewhere, and says how the runs stand while it does.

The runs, and what does them, are the same everywhere (`loop.run_all`); an executor only starts processes that do it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pickle
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError, parse_assignment, unknown
from promptbench.storage.atomic import write_atomically
from promptbench.storage.cache import cache_dir
from promptbench.storage.versions import library_versions

if TYPE_CHECKING:
    from promptbench.sweep.loop import Executor, Job

NAMES = ("local", "ray", "slurm")
LOCAL = "local"
REACH = 5.0  # seconds to reach an address

SECRET = ("_KEY", "_TOKEN")  # names that end so hold what nobody else may read
SENT = ("PROMPTBENCH_", "OMP_", "MKL_", "CUBLAS_", "TORCH_", "HF_", "HUGGINGFACE_", "WANDB_")  # variables that begin so


def choose(text: str, assignments: Sequence[str] = ()) -> Executor:
    """The executor that `--executor` and `--executor-option` name.

    Args:
        text: `name` or `name:address`.
        assignments: `key=value` each, such as `time=60` or `sbatch.reservation=x`; a value is read as `--set` reads it.

    Raises:
        UsageError: It is unknown, an option is, or its package is not installed.
    """
    name, _, address = text.partition(":")
    if name not in NAMES:
        raise UsageError(f"--executor: {unknown('executor', name, NAMES)}")
    module = importlib.import_module(f"promptbench.sweep.executors.{name}")
    options: dict[str, Any] = {}
    for text in assignments:
        if "=" not in text or text.startswith("="):
            raise UsageError(f"--executor-option {text}: write key=value, for instance max_retries=5.")
        path, value = parse_assignment(text)
        options[".".join(path)] = value
    executor: Executor = module.create(address, options)
    return executor


def no_address(name: str, address: str) -> None:
    """Raise a UsageError where an executor that has no address is given one."""
    if address:
        raise UsageError(f"--executor {name}:{address}: {name} takes no address; write --executor {name}.")


def reach(address: str) -> None:
    """Raise a UsageError where nothing listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # "", "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--executor ray:{address}: nothing answers there ({getattr(error, 'strerror', '') or error}); start a "
            "cluster with `ray start --head`, and name its HOST:PORT."
        ) from error


def installed(package: str, name: str) -> None:
    """Raise a UsageError where the package of an executor is missing."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"--executor {name} needs the package {package}; install it with `pip install promptbench-clip[{name}]`."
        )


@dataclass(frozen=True)
class Parcel:
    """A job that another machine can open.

    Attributes:
        job: Pickled; made by this call, and read by processes that it starts alone.
        environment: Variables to set before anything is imported; `$NAME` in a value is what the node says.
        folder: The current directory here, which relative paths start from; kept where the node has it.
        plugins: The content of the job's plugin files, in their order.
        versions: Of everything that can change a number, where the job comes from.
    """

    job: bytes
    environment: Mapping[str, str] = field(hash=False)
    folder: Path
    plugins: tuple[bytes, ...] = field(repr=False)
    versions: Mapping[str, str] = field(hash=False)

    def check_versions(self) -> None:
        """Raise a UsageError where this machine has other versions of what can change a number."""
        here = library_versions()
        other = [
            f"{name} {here.get(name) or 'missing'}" for name in self.versions if here.get(name) != self.versions[name]
        ]
        if other:
            raise UsageError(f"A node of the cluster has {', '.join(other)}, and this machine not; install the same.")

    def open(self) -> Job:
        """The job, in an environment like that where it comes from; plugins that this machine lacks are cached."""
        os.environ.update({name: os.path.expandvars(value) for name, value in self.environment.items()})
        with suppress(OSError):
            os.chdir(self.folder)
        job: Job = pickle.loads(self.job)
        plugins = (_here(path, content) for path, content in zip(job.plugins, self.plugins, strict=True))
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
    return Parcel(pickle.dumps(job), environment, Path.cwd(), plugins, library_versions())


def _here(path: Path, content: bytes) -> Path:
    """The plugin file, or a copy of it where this machine has none or another one."""
    copy = cache_dir() / "plugins" / hashlib.sha256(content).hexdigest()[:32] / path.name
    for place in (path, copy):
        with suppress(OSError):
            if place.read_bytes() == content:
                return place
    write_atomically(copy, methodcaller("write", content))
    return copy


def inside(folder: Path, name: str, parts: tuple[str, ...]) -> Path:
    """The path in an output folder of a file that a worker sent.

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
