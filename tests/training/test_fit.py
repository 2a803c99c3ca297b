"""The training loop: groups with rates of their own, losses that are not finite, images kept within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import promptbench as pb
from promptbench.clip.image_tower import Images
from promptbench.data.batches import Views
from promptbench.data.dataset import Dataset, Item
from promptbench.method import Method
from promptbench.training import fit as training
from promptbench.training.files import PartialFile
from promptbench.training.fit import TrainingDiverged, fit

RECIPE = pb.Recipe(
    epochs=3, lr=0.1, batch=2, warmup_epochs=1, warmup_lr=0.01, momentum=0, weight_decay=0, origin="ours"
)


class TwoNumbers(Method):
    """The loss is the sum of two numbers: each step lowers them by their learning rate."""

    def __init__(self, backbone: pb.Backbone, scale: float, start: float = 0.0) -> None:
        super().__init__(pb.MethodConfig(), backbone)
        self.a, self.b = torch.nn.Parameter(torch.tensor(start)), torch.nn.Parameter(torch.tensor(0.0))
        self.scale = scale

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.a]}, {"params": [self.b], "lr_scale": self.scale}]

    def loss(self, images: Images | torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": self.a, "b": self.b}

    def forward(self, images: Images | torch.Tensor) -> pb.Prediction:
        raise NotImplementedError


class Watched(TwoNumbers):
    """Notes what its losses find: the mode, a draw of torch's generator; and what the ends of epochs are told."""

    def __init__(self, backbone: pb.Backbone) -> None:
        super().__init__(backbone, scale=1.0)
        self.found: list[Any] = []
        self.total = torch.tensor(0.0)  # of a after each epoch

    def loss(self, images: Images | torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.found.append((self.training, torch.rand(()).item()))
        return super().loss(images, labels)

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        self.found.append((epoch, epochs, torch.is_grad_enabled()))
        self.total = self.total + self.a

    def training_state(self) -> dict[str, torch.Tensor]:
        return {"total": self.total}

    def load_training_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.total = state["total"]


class OneBatch:
    """Two black images."""

    def __iter__(self) -> Iterator[tuple[Images, torch.Tensor]]:
        yield Images(torch.zeros(2, 3, 32, 32)), torch.zeros(2, dtype=torch.long)

    def __len__(self) -> int:
        return 1


BATCHES = OneBatch()


def test_groups_have_rates_of_their_own(tiny: pb.Backbone) -> None:
    # By hand: warm-up 0.01, then base / 2 * (1 + cos(0)) = base and base / 2 * (1 + cos(pi / 3)) = 0.75 base.
    method = TwoNumbers(tiny, scale=2.0)
    outcome = fit(method, RECIPE, BATCHES, 1, seed=1)
    assert method.a.item() == pytest.approx(-(0.01 + 0.1 + 0.075))
    assert method.b.item() == pytest.approx(-(0.01 + 0.2 + 0.15))
    assert len(outcome.losses) == 3 and outcome.losses[0] == {"a": 0.0, "b": 0.0}


def test_a_group_with_rate_0_never_moves(tiny: pb.Backbone) -> None:
    method = TwoNumbers(tiny, scale=0.0)
    fit(method, RECIPE, BATCHES, 1, seed=1)
    assert method.b.item() == 0.0 and method.a.item() < 0


def test_a_method_is_in_training_mode_meanwhile_and_draws_from_the_seed(tiny: pb.Backbone) -> None:
    method, before = Watched(tiny).eval(), torch.get_rng_state()
    fit(method, RECIPE, BATCHES, 1, seed=5)
    draws = torch.rand(3, generator=torch.Generator().manual_seed(5)).tolist()
    steps = [(True, draw) for draw in draws]
    ends = [(epoch, 3, False) for epoch in range(3)]  # nothing is differentiated between epochs
    assert method.found == list(chain.from_iterable(zip(steps, ends, strict=True)))
    assert not method.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_step_and_the_last_are_logged(tiny: pb.Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOGGED_STEPS", 2)
    logged: list[tuple[int, float]] = []

    def logger(step: int, figures: Mapping[str, float]) -> None:
        logged.append((step, figures["epoch"]))

    fit(TwoNumbers(tiny, scale=1.0), replace(RECIPE, epochs=6), BATCHES, 1, seed=1, logger=logger)
    assert logged == [(1, 1.0), (4, 4.0), (6, 6.0)]


def test_notes_are_as_far_apart_as_they_should_be(
    tiny: pb.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(PartialFile, "write", lambda _, partial: noted.append(len(partial.facts["losses"])))
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(training, "time", clock)
    method = TwoNumbers(tiny, scale=1.0)

    def epoch_of_15_seconds(*_: int) -> None:
        clock.now += 15

    monkeypatch.setattr(method, "on_epoch_end", epoch_of_15_seconds)
    fit(method, replace(RECIPE, epochs=6), BATCHES, 1, seed=1, partial=PartialFile(tmp_path / "a.partial", "key"))
    assert noted == [2, 4]  # 20 seconds at least, and none after the last epoch: it would begin nothing


@pytest.mark.parametrize("start", [float("nan"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_the_training(tiny: pb.Backbone, start: float) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"the loss became .* in epoch 1 of 3, step 1 of 1, at .* rate 0.01"
    ) as e:
        fit(TwoNumbers(tiny, scale=1.0, start=start), RECIPE, BATCHES, 1, seed=1)
    assert e.value.where == {"epoch": 1, "step": 1, "lr": 0.01}


def test_tensors_that_the_last_step_broke_are_a_failure(tiny: pb.Backbone) -> None:
    huge = replace(RECIPE, epochs=1, warmup_lr=3e38)
    method = TwoNumbers(tiny, scale=1.0, start=-3e38)  # one step more leaves float32
    with pytest.raises(TrainingDiverged, match="the learned tensor a became infinite or NaN in epoch 1 of 1"):
        fit(method, huge, BATCHES, 1, seed=1)


def killed(done: int, total: int, loss: float) -> None:
    """A listener to the training's steps that ends it in the second."""
    if done == 2:
        raise RuntimeError("killed")


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartialFile:
    """Of a training under way, written after every epoch."""
    monkeypatch.setenv("PROMPTBENCH_PARTIAL_SECONDS", "0")
    return PartialFile(tmp_path / "a.partial", "key")


def test_a_resumed_training_draws_and_keeps_what_the_whole_does(tiny: pb.Backbone, note: PartialFile) -> None:
    whole, first, second = Watched(tiny), Watched(tiny), Watched(tiny)
    fit(whole, RECIPE, BATCHES, 1, seed=5)
    with pytest.raises(RuntimeError, match="killed"):
        fit(first, RECIPE, BATCHES, 1, seed=5, progress=killed, partial=note)
    fit(second, RECIPE, BATCHES, 1, seed=5, partial=note)
    assert second.found == whole.found[2:]  # the step in which it was killed is done again
    assert second.a.item() == whole.a.item() and second.total.item() == whole.total.item()


def test_a_resumed_training_diverges_in_the_epoch_of_the_whole(
    tiny: pb.Backbone, note: PartialFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(TwoNumbers(tiny, scale=1.0), RECIPE, BATCHES, 1, seed=1, progress=killed, partial=note)
    method = TwoNumbers(tiny, scale=1.0)
    monkeypatch.setattr(method, "loss", lambda *_: {"a": method.a * float("nan")})
    with pytest.raises(TrainingDiverged, match="in epoch 2 of 3, step 1 of 1") as e:
        fit(method, RECIPE, BATCHES, 1, seed=1, partial=note)
    assert e.value.where == {"epoch": 2, "step": 1, "lr": pytest.approx(0.1)}


def test_decoded_images_are_kept_within_bounds(tiny: pb.Backbone) -> None:
    opened: list[str] = []

    class Squares(Dataset):
        def open(self, item: Item) -> Image.Image:
            opened.append(item.image)
            return Image.fromarray(np.zeros((10, 10, 3), dtype=np.uint8))

    items = [Item(str(index), 0, "x") for index in range(3)]
    views = Views(tiny, Squares(), items, keep=600, augment_seed=None)  # room for two of 300 bytes
    for _ in range(2):
        for index in range(3):
            views[index]
    assert opened == ["0", "1", "2", "2"]
