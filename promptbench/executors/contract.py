"""What an executor is: it carries out a sweep, somewhere, and says how the runs stand while it does.

The runs, and what does them, are the same everywhere (`runner.run_all`); an executor only starts processes that do it.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from promptbench.config import UsageError, parse_assignment, unknown

if TYPE_CHECKING:
    from promptbench.standing import Standing
    from promptbench.sweep import Sweep

NAMES = ("local", "ray", "slurm")
LOCAL = "local"
REACH = 5.0  # seconds to reach an address


class Executor(Protocol):
    """Carries out sweeps.

    A module `promptbench.executors.<name>` offers `create(address, options)`, which returns one. Creating it
    imports no engine and starts nothing.
    """

    def prepare(self, device: str) -> None:
        """Find the engine, before anything is computed.

        Args:
            device: That runs are for.

        Raises:
            UsageError: It is not there.
        """

    def execute(self, sweep: Sweep) -> Iterator[Standing]:
        """Do the runs of a sweep; says every other second or so how they stand. Closing it ends what it has started.

        Raises:
            UsageError: The sweep cannot go on, such as for a full disk.
        """


def choose(text: str, assignments: Sequence[str] = ()) -> Executor:
    """The executor that `--executor` and `--executor-option` name.

    Args:
        text: `name` or `name:address`.
        assignments: `key=value` each; a value is read as `--set` reads it.

    Raises:
        UsageError: It is unknown, an option is, or its package is not installed.
    """
    name, _, address = text.partition(":")
    if name not in NAMES:
        raise UsageError(f"--executor: {unknown('executor', name, NAMES)}")
    module = importlib.import_module(f"promptbench.executors.{name}")
    executor: Executor = module.create(address, parsed(assignments))
    return executor


def parsed(assignments: Sequence[str]) -> dict[str, Any]:
    """`["time=60", "sbatch.reservation=x"]` by key."""
    values: dict[str, Any] = {}
    for text in assignments:
        if "=" not in text or text.startswith("="):
            raise UsageError(f"--executor-option {text}: write key=value, for instance max_retries=5.")
        path, value = parse_assignment(text)
        values[".".join(path)] = value
    return values


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


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that are not given."""
    return {key: value for key, value in options.items() if value not in (None, "")}
