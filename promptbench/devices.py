"""Which devices a run uses, how strictly they are held to the same bits, and the memory that they took."""

from __future__ import annotations

import os
import resource
import sys

from promptbench.config import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


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


def peak_memory(device: str) -> int:
    """Most bytes so far: of this process on a CPU, of torch's allocator on a GPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # KiB
