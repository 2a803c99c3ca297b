"""Which devices a run uses, how strictly they are held to the same bits, and the memory that they took."""

from __future__ import annotations

import os
import resource
import sys
from functools import cache
from pathlib import Path

from promptbench.config import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
CLEAR = Path("/proc/self/clear_refs")  # Linux: a process writes 5, and its high-water mark is what it has now
STATUS = Path("/proc/self/status")


def resolve_device(wanted: str) -> str:
    """`cpu`, `cuda` or `cuda:N`.

    Args:
        wanted: One of these, or `auto`: a GPU where there is one.

    Raises:
        UsageError: There is no such device.
    """
    import torch

    kind, colon, index = wanted.partition(":")
    if wanted not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise UsageError(f"--device takes cpu, cuda, cuda:N or auto, not '{wanted}'.")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and not available:
        raise UsageError(f"--device {wanted}: torch sees no CUDA device here; use --device cpu.")
    if colon and int(index) >= available:
        raise UsageError(
            f"--device {wanted}: torch sees {available} CUDA devices here, cuda:0 to cuda:{available - 1}."
        )
    if wanted == "auto":
        return "cuda" if available else "cpu"
    return wanted


def hold_to_bits(deterministic: bool) -> None:
    """Hold torch to algorithms that give the same bits each time, or no longer; one that has none raises an error."""
    import torch

    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")  # read when the first matrices are multiplied on a GPU
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        torch.backends.cudnn.benchmark = False


def restart_peak_memory(device: str) -> None:
    """Measure `peak_memory` from now on, as far as that is possible."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif peak_memory_restarts(device):
        CLEAR.write_text("5", encoding="ascii")


def peak_memory_restarts(device: str) -> bool:
    """Whether `restart_peak_memory` works: on GPUs it does, on a CPU if it is Linux, and Linux allows it."""
    return device.startswith("cuda") or _forgets()


@cache
def _forgets() -> bool:
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return _high_water() is not None


def peak_memory(device: str) -> int:
    """Most bytes since `restart_peak_memory`, or else since the process began: all that the process had in memory on
    a CPU, without its loader processes; what torch's allocator had given out on a GPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    found = _high_water()
    if found is not None:
        return found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # KiB


def _high_water() -> int | None:
    """Bytes of Linux's high-water mark of this process; None where the system does not say."""
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
