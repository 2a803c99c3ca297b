"""Lightning's DDP for trainings whose learned tensors are small.

The processes, their ranks and what they tell each other are Lightning's and torch's. What is left out is torch's
wrapper, which sends gradients in pieces while one backward pass goes on: prompts are few, so that they go in one piece
when all backward passes of a step are done, however many there were. A step fails in all processes or in none, so that
nobody waits for one that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from promptbench.sharing import Share, watched


class Failed(RuntimeError):
    """Another process of this training failed; its own error says why."""


class Together(DDPStrategy):
    """The step of one process among several."""

    def __init__(self, share: Share) -> None:
        super().__init__(cluster_environment=OneMachine(share))
        self.share = share

    def _configure_launcher(self) -> None:
        """The processes are there already."""

    def configure_ddp(self) -> None:
        """All begin with the tensors of the first."""
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, 0)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        error = None
        try:
            with watched(self.share):
                loss = super().training_step(*args, **kwargs)
        except Exception as raised:  # the others wait for this one
            error = raised
        failed = torch.tensor(float(error is not None), device=self.root_device)
        dist.all_reduce(failed)
        if error is not None:
            raise error
        if failed.item():
            raise Failed("another process of this training failed")
        return loss

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        def shared() -> Any:
            result = closure()
            self.average([tensor.grad for group in optimizer.param_groups for tensor in group["params"]])
            return result

        return super().optimizer_step(optimizer, shared, model, **kwargs)

    def average(self, gradients: list[Tensor | None]) -> None:
        """Put the mean over all processes in the place of each gradient."""
        own = [gradient for gradient in gradients if gradient is not None]
        if not own:
            return
        joined = torch.cat([gradient.flatten().float() for gradient in own])
        dist.all_reduce(joined)
        joined /= self.share.of
        for gradient, mean in zip(own, joined.split([gradient.numel() for gradient in own]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class OneMachine(ClusterEnvironment):
    """The processes of one machine, started by `promptbench.ranks`."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        raise RuntimeError("the processes meet at a file")

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.share.of

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return self.share.rank

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return self.share.rank

    def node_rank(self) -> int:
        return 0


@contextmanager
def joined(share: Share, device: str) -> Iterator[dict[str, Any]]:
    """Within it, the processes of a training know each other; gives the arguments of Lightning's Trainer."""
    kind, _, index = device.partition(":")
    if share.of == 1:
        yield {"devices": [int(index)] if index else 1}
        return
    meeting = f"file://{share.meeting}"
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", meeting, world_size=share.of, rank=share.rank)
    try:
        yield {"devices": share.of, "strategy": Together(share)}
    finally:
        dist.destroy_process_group()
