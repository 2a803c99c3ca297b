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

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from promptbench.config import UsageError

if TYPE_CHECKING:
    import torch

    from promptbench.method import Method

AUTHORS = "authors"
PRECISIONS = ("32", "bf16-mixed", "16-mixed", AUTHORS)
OF_GPUS = ("16-mixed", AUTHORS)


def check_device(precision: str, device: str) -> None:
    """Raise a UsageError where the device cannot train in that precision."""
    if precision in OF_GPUS and not device.startswith("cuda"):
        raise UsageError(
            f"--precision {precision} trains in half precision, which takes a GPU; use bf16-mixed or 32 on a CPU."
        )


def check_method(precision: str, label: str, cls: type[Method]) -> None:
    """Raise a UsageError where nobody knows what a paper ran."""
    if precision == AUTHORS and cls.reconstructed:
        raise UsageError(
            f"--precision authors: no code of {label}'s authors was published, and what they ran is not known; leave "
            "it out, or name a precision."
        )


def of_trainer(precision: str, method: Method, device: str) -> dict[str, Any]:
    """The arguments of Lightning's Trainer."""
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
    """Within it, the learned tensors that the authors kept in half precision are; afterwards they are float32 again."""
    names = (method.authors_half or ()) if precision == AUTHORS else ()
    tensors: list[torch.Tensor] = [tensor for name, tensor in method.named_parameters() if name.startswith(names)]
    for tensor in tensors:
        tensor.data = tensor.data.half()
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.data, tensor.grad = tensor.data.float(), None
