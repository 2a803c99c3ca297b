"""Training on a GPU: steps are handed to it one after the other, and it is not waited for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from short_cases import slow_but
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.checks.plugin.pretended import DEVICE, PretendedGpu
from promptbench.checks.plugin.subject import specimen
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.data.batches import EpochOrder, FeatureBatches
from promptbench.data.features import with_local_there
from promptbench.method import Method
from promptbench.training import fit as training
from promptbench.training.fit import TrainingDiverged, fit

TRAINED = [name for name in registry.names("methods") if registry.load("methods", name).trains]
WAITING = {"locoop": ["__getitem__ by a mask at methods/locoop.py"]}
"""Which step of a method waits for the GPU, and where. LoCoOp: only values say how many patches its second term has."""
RECIPE = pb.Recipe(epochs=2, lr=0.01, batch=6, augment=False, origin="ours")
STEPS = 4  # of an epoch


class Accelerator(CPUAccelerator):
    """Lightning's own asks CUDA for the device."""

    def setup_device(self, device: torch.device) -> None: ...


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """The GPU while a test runs, which Lightning takes; losses are read at the end of an epoch alone."""
    real = pl.Trainer

    def trainer(accelerator: str, devices: Any, **others: Any) -> pl.Trainer:
        if accelerator == "cpu":
            return real(accelerator=accelerator, devices=devices, **others)
        return real(strategy=SingleDeviceStrategy(device=DEVICE, accelerator=Accelerator()), **others)

    monkeypatch.setattr(training.pl, "Trainer", trainer)
    monkeypatch.setattr(training, "LOOK", float("inf"))
    with PretendedGpu() as gpu:
        yield gpu


class Counted:
    """The same batch in every step, on the CPU as loaders give it; notes how many waits there were before each."""

    def __init__(self, images: Tensor, labels: Tensor, gpu: PretendedGpu) -> None:
        self.images, self.labels, self.gpu = images, labels, gpu
        self.before: list[int] = []

    def __iter__(self) -> Iterator[tuple[Images, Tensor]]:
        for _ in range(STEPS):
            self.before.append(len(self.gpu.waits))
            yield Images(self.images), self.labels

    def __len__(self) -> int:
        return STEPS


@pytest.mark.parametrize("name", slow_but(TRAINED, "coop"))
def test_no_step_waits_for_the_gpu(name: str, tiny: pb.Backbone, gpu: PretendedGpu) -> None:
    """The second and the third step, through the whole loop; the first fetches what the later ones know."""
    images, labels = kit.batch(tiny)
    seen = specimen(registry.load("methods", name), tiny).fresh()
    seen.backbone.to(DEVICE)
    batches = Counted(images, labels, gpu)
    fit(seen.make(), RECIPE, batches, STEPS, seed=1, device="cuda")
    _, second, third, fourth = batches.before[STEPS:]  # of the last epoch
    for start, end in ((second, third), (third, fourth)):
        assert [wait.rpartition(":")[0] for wait in gpu.waits[start:end]] == WAITING.get(name, [])


def test_dense_features_are_projected_where_they_are_needed(tiny: pb.Backbone, gpu: PretendedGpu) -> None:
    """As kept features of a frozen tower come: before their projection, which no copy back and forth interrupts."""
    images, labels = kit.batch(tiny)
    features = tiny.encode_image(images, local=True)
    kept = ImageFeatures(features.cls, local_unprojected=features.local_unprojected)
    tiny.to(DEVICE)
    method = pb.create_method("gallop", tiny, kit.CLASSES)
    order = EpochOrder(len(images), seed=1)
    batches = FeatureBatches(kept, labels.tolist(), 2, order, finish=partial(with_local_there, tiny))
    seen: list[int] = []
    loss = method.loss

    def counted(images: Images, labels: Tensor) -> dict[str, Tensor]:
        assert images.features is not None and images.features.local is not None
        assert torch.equal(images.features.local[0], tiny.project_local(images.features.local_unprojected)[0])
        seen.append(len([wait for wait in gpu.waits if not wait.startswith("equal")]))
        return loss(images, labels)

    method.loss = counted  # type: ignore[method-assign]
    fit(method, RECIPE, batches, len(batches), seed=1, device="cuda")
    assert len(seen) == 6 and seen[3] == seen[4] == seen[5]


def test_a_step_that_reads_its_loss_is_found(
    tiny: pb.Backbone, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the test above can fail."""
    monkeypatch.setattr(training, "LOOK", 0.0)
    tiny.to(DEVICE)
    batches = Counted(*(tensor.cpu() for tensor in kit.batch(tiny)), gpu)
    fit(pb.create_method("coop", tiny, kit.CLASSES), RECIPE, batches, STEPS, seed=1, device="cuda")
    start, end = batches.before[1:3]
    assert [wait.rpartition(":")[0] for wait in gpu.waits[start:end]] == ["tolist at training/fit.py"]


def test_losses_are_told_of_as_on_a_cpu(tiny: pb.Backbone, gpu: PretendedGpu) -> None:
    """Of every step, in order, though they are read at the end of an epoch."""

    def trained(device: str) -> tuple[list[Any], list[Any], list[dict[str, float]], Tensor]:
        tiny.to(DEVICE if device == "cuda" else "cpu")
        steps: list[Any] = []
        logged: list[Any] = []
        method = pb.create_method("kgcoop", tiny, kit.CLASSES)
        outcome = fit(
            method,
            RECIPE,
            batches,
            STEPS,
            seed=1,
            device=device,
            progress=lambda *step: steps.append(step),
            logger=lambda *step: logged.append(step),
        )
        return steps, logged, outcome.losses, method.state_dict()["ctx"].cpu()

    batches = Counted(*kit.batch(tiny), gpu)
    steps, logged, losses, context = trained("cpu")
    assert [step[0] for step in steps] == [step[0] for step in logged] == list(range(1, 2 * STEPS + 1))
    (*found, found_context) = trained("cuda")
    assert found == [steps, logged, losses] and torch.equal(found_context, context)


def test_the_step_that_diverged_is_named_though_others_came_after_it(tiny: pb.Backbone, gpu: PretendedGpu) -> None:
    tiny.to(DEVICE)
    method: Method = pb.create_method("coop", tiny, kit.CLASSES)
    loss, calls = method.loss, []

    def infinite_once(images: Any, labels: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        return {name: term / (len(calls) != 2) for name, term in loss(images, labels).items()}

    method.loss = infinite_once  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged, match=r"the loss became inf in epoch 1 of 2, step 2 of 4") as error:
        fit(method, RECIPE, Counted(*(t.cpu() for t in kit.batch(tiny)), gpu), STEPS, seed=1, device="cuda")
    assert error.value.where["step"] == 2 and len(calls) == STEPS
