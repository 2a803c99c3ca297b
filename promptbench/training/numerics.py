"""The precision of a training, `--precision`.

    32          float32 throughout; the default
    bf16-mixed  matrix products of both towers in bfloat16, forwards and backwards (autocast)
    16-mixed    the same in float16, with scaled losses; on a GPU
    authors     what the papers ran; on a GPU

The authors ran CLIP in float16 without scaling their losses, and kept some learned tensors in float16 too, with their
gradients and momentum: those that `Method.authors_half` names; where it is None, they trained with `16-mixed`. Under
`authors` matrix products are float16 by autocast; sums along the towers and normalisations stay float32, which CLIP's
own half precision rounds as well.

Whatever it is, logits and losses are computed in float32, learned tensors are stored in float32, and images are scored
in float32 throughout: the precision is that of the training, and all trainings share the features of test images.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError, unknown

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import torch

    from promptbench.method import Method

AUTHORS = "authors"
PRECISIONS = ("32", "bf16-mixed", "16-mixed", AUTHORS)
OF_GPUS = ("16-mixed", AUTHORS)

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
CLEAR = Path("/proc/self/clear_refs")  # Linux: a process writes 5, and its high-water mark is what it has now
STATUS = Path("/proc/self/status")


def check_device(precision: str, device: str) -> None:
    """Raise a UsageError where the device cannot train in that precision, or there is none of that name."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision in OF_GPUS and not device.startswith("cuda"):
        raise UsageError(
            f"--precision {precision} trains in half precision, which takes a GPU; use bf16-mixed or 32 on a CPU."
        )


def check_method(precision: str, label: str, cls: type[Method]) -> None:
    """Raise a UsageError where `authors` is asked for of a method whose authors published no code."""
    if precision == AUTHORS and cls.reconstructed:
        raise UsageError(
            f"--precision authors: no code of {label}'s authors was published, and what they ran is not known; leave "
            "it out, or name a precision."
        )


def of_trainer(precision: str, method: Method, device: str) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that make it train in this precision."""
    if precision != AUTHORS:
        return {"precision": precision}
    if method.authors_half is None:
        return {"precision": "16-mixed"}
    return {"plugins": [_unscaled_half(device.partition(":")[0])]}


def _unscaled_half(device: str) -> Any:
    """Lightning's plugin for autocast in float16 that leaves losses as they are."""
    import torch
    from pytorch_lightning.plugins.precision import Precision

    class UnscaledHalf(Precision):
        @contextmanager
        def forward_context(self) -> Iterator[None]:
            with torch.autocast(device, dtype=torch.float16):
                yield

    return UnscaledHalf()


@contextmanager
def halved(precision: str, method: Method) -> Iterator[None]:
    """A context in which learned tensors that the authors kept in half precision are; afterwards they are float32."""
    names = (method.authors_half or ()) if precision == AUTHORS else ()
    tensors: list[torch.Tensor] = [tensor for name, tensor in method.named_parameters() if name.startswith(names)]
    for tensor in tensors:
        tensor.data = tensor.data.half()
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.data, tensor.grad = tensor.data.float(), None


def resolve_device(wanted: str) -> str:
    """The device that is meant: `cpu`, `cuda` or `cuda:N`.

    Args:
        wanted: One of these, or `auto`: a GPU where there is one.

    Raises:
        UsageError: There is no such device.
    """
    import torch

    wanted = str(wanted)  # torch.device, too
    kind, colon, index = wanted.partition(":")
    if wanted not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal() and len(index) < 10):
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


def float32_in_full() -> None:
    """Have convolutions on a GPU be float32: torch would round their inputs to the ten bits of TF32, which the first
    layer of an image tower is. Products of matrices are left as they are, in float32 unless somebody says otherwise."""
    import torch

    torch.backends.cudnn.allow_tf32 = False


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
    a CPU, without its loader processes, and 0 where the system does not say; what torch's allocator had given out on a
    GPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    found = _high_water()
    if found is not None:
        return found
    if resource is None:
        return 0
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
