"""How near measured tensors are to stored ones."""

from __future__ import annotations

import torch
from torch import Tensor


def close(measured: Tensor | None, stored: Tensor, tolerance: float, relative: float = 0.0) -> None:
    """Asserts that no entry is farther than `tolerance`, and `relative` times the stored entry besides."""
    assert measured is not None
    torch.testing.assert_close(measured.detach(), stored, atol=tolerance, rtol=relative)


def close_to_largest(measured: Tensor | None, stored: Tensor, tolerance: float) -> None:
    """The same with `tolerance` as a fraction of the largest stored entry."""
    close(measured, stored, tolerance * stored.abs().max().item())
