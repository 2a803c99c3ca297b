"""One training shared by several processes, a GPU each: who takes which images of a batch, and what is drawn for them.

A batch stays what the recipe says; of N processes each takes an N-th of it, in order. All hold the same learned tensors
and the same state of torch's generators, and average their gradients, so that the numbers are those of one process up
to the rounding of a sum. What a method draws for the images of a batch goes through `per_image`: every process draws
for the whole batch and keeps what belongs to its images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from promptbench.config import UsageError


@dataclass(frozen=True)
class Share:
    """The part of one process in a training.

    Attributes:
        rank: From 0; process 0 notes, reports and stores what comes out.
        of: Processes in all.
        meeting: The file where they find each other.
    """

    rank: int = 0
    of: int = 1
    meeting: str = ""

    def part(self, order: Sequence[int], batch: int) -> list[int]:
        """What this process takes of an epoch's order of images, batch by batch; an incomplete last batch is dropped
        unless it is the only one.

        Raises:
            UsageError: The batch cannot be divided.
        """
        if self.of == 1:
            return list(order)
        size = min(batch, len(order))
        if size % self.of:
            raise UsageError(
                f"--devices {self.of}: {size} images, all there are for a batch, cannot be shared equally."
            )
        own = size // self.of
        starts = range(self.rank * own, len(order) // size * size, size)
        return [image for start in starts for image in order[start : start + own]]


WHOLE = Share()


@dataclass
class _Draws:
    """How torch's generators stand, but for what `per_image` drew."""

    share: Share
    states: list[Tensor] = field(default_factory=list)

    def check(self) -> None:
        """Raise a UsageError where anything was drawn past `per_image`."""
        if any(not torch.equal(*pair) for pair in zip(self.states, _states(), strict=True)):
            raise UsageError(
                "--devices: this method draws at random in its loss, and each process would draw for itself; draw with "
                "promptbench.sharing.per_image, or train on one device."
            )


_draws = _Draws(WHOLE)


def _states() -> list[Tensor]:
    """Of the generators that a loss may draw from."""
    on_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]


def per_image(images: int, draw: Callable[[int], Tensor]) -> Tensor:
    """The rows of `draw(n)` for the images at hand, where n counts all images of the batch.

    Args:
        images: That are at hand.
        draw: Number of images to random numbers (n, ...), one row for each.
    """
    share = _draws.share
    if share.of == 1:
        return draw(images)
    _draws.check()
    rows = draw(images * share.of)[share.rank * images : (share.rank + 1) * images]
    _draws.states = _states()
    return rows


@contextmanager
def watched(share: Share) -> Iterator[None]:
    """Within it, a loss that is shared may draw through `per_image` alone.

    Raises:
        UsageError: It drew otherwise.
    """
    global _draws
    before, _draws = _draws, _Draws(share, _states())
    try:
        yield
        _draws.check()
    finally:
        _draws = before
