"""A method's loss and its gradient, whole or in groups of images.

Where every image has its own class texts, activations grow with images times classes. The loss of such a method is a
mean over images, so its gradient is the mean of theirs: a group of images is scored and differentiated, its activations
are freed, and the next group follows. Nothing is computed twice, as it would be with checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from promptbench.clip.images import Images
from promptbench.method import Method


class Differentiated(torch.autograd.Function):
    """A number whose gradients with respect to some tensors are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(outer[0] * gradient for gradient in ctx.saved_tensors)


def loss_of(method: Method, images: Images, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of `method.loss` for B images, and their sum, to be differentiated.

    In groups where `method.images_at_once()` is below B, fp16 autocast apart: the gradients are then computed here, and
    the sum's backward pass hands them over; the terms themselves have none.
    """
    size = method.images_at_once()
    learned = [p for p in method.parameters() if p.requires_grad]
    if size is None or size >= len(labels) or not torch.is_grad_enabled() or scaled(labels.device):
        terms = method.loss(images, labels)
        return terms, total(terms)
    sums: dict[str, Tensor] = {}
    gradients = [torch.zeros_like(p) for p in learned]
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        terms = method.loss(images[part], labels[part])
        share = len(labels[part]) / len(labels)
        with torch.autocast(labels.device.type, enabled=False):  # a backward pass is never within one
            found = torch.autograd.grad(total(terms), learned, allow_unused=True)
        for gradient, of_group in zip(gradients, found, strict=True):
            if of_group is not None:
                gradient += share * of_group
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + share * term.detach()
    return sums, Differentiated.apply(total(sums), gradients, *learned)  # type: ignore[no-untyped-call]


def scaled(device: torch.device) -> bool:
    """Whether the loss is going to be scaled so that its gradients fit half precision: the groups' would not be."""
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum that is minimised."""
    return torch.stack(list(terms.values())).sum()
