"""A GPU that is not there: every method makes its tensors where the backbone is, and what makes a GPU wait is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shared_paths import TESTS
from short_cases import slow_but
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import behaviour, kit
from promptbench.checks.plugin.pretended import DEVICE, PretendedGpu, is_there
from promptbench.checks.plugin.subject import OTHER_CLASSES
from promptbench.clip.image_tower import Images
from promptbench.method import Method, create_method, show_training_images
from promptbench.metrics.ood import NEGATIVES, missing, open_scores, scores_of
from promptbench.training.fit import backward

METHODS = registry.names("methods")
LABELS = list(METHODS)
for _name in METHODS:
    LABELS += [f"{_name}@{preset}" for preset in registry.load("methods", _name).presets]
SCORES = open_scores(n for n in registry.names("scores") if NEGATIVES not in registry.load("scores", n).needs)


@pytest.fixture
def there(tiny: pb.Backbone) -> Any:
    """The GPU, while a test runs, with the tiny CLIP on it."""
    with PretendedGpu() as gpu:
        tiny.to(DEVICE)
        yield gpu


@pytest.mark.parametrize("label", slow_but(LABELS, "coop", "maple"))
def test_every_way_through_a_method_stays_on_the_gpu(label: str, tiny: pb.Backbone, there: PretendedGpu) -> None:
    """Made, shown images, trained on pixels and on features, asked for scores of all kinds and of other classes."""
    method = create_method(label, tiny, kit.CLASSES)
    pixels, labels = kit.batch(tiny)
    show_training_images(method, [(Images(pixels), labels)] * max(1, method.shown_views), seed=1)
    features = tiny.encode_image(pixels, local=method.reads_dense)
    ways = [Images(pixels), *([Images(features=features)] if method.frozen_image_tower else [])]
    for images in ways if method.trains else ():
        losses = backward(method, images, labels)
        gradients = [parameter.grad for parameter in method.parameters() if parameter.requires_grad]
        assert all(map(is_there, losses.values()))
        assert all(gradient is not None and is_there(gradient) for gradient in gradients)
    others = kit.CLASSES[1:] if method.transfers == "subset" else OTHER_CLASSES if method.transfers else kit.CLASSES
    with torch.no_grad():
        method.on_epoch_end(0, 1)
        for names in (kit.CLASSES, others):
            method.set_classes(names)
            for images in (*ways, Images(pixels, dense=True)):
                said = method(images)
                given = [tensor for tensor in (said.logits, said.cosines, said.local) if tensor is not None]
                assert all(map(is_there, given))
        found = scores_of(said, SCORES)
        assert len(found) == len(SCORES) - len(missing(said, SCORES)) and all(map(is_there, found.values()))
        method.diagnostics(Images(pixels))


def test_a_tensor_on_the_cpu_is_found(plugin_file: Callable[[Path], type[Method]], tiny: pb.Backbone) -> None:
    """A method that works on every machine without a GPU, and fails on one."""
    cls = plugin_file(TESTS / "support" / "made_on_the_cpu.py")
    assert not kit.run_check(behaviour.check_loss_is_finite_and_named, cls, tiny)
    (wrong,) = kit.run_check(behaviour.check_tensors_are_made_where_the_backbone_is, cls, tiny)
    assert "on a GPU, every tensor is made where the backbone is, and scores stay the same: line 2" in wrong
    assert "would find a tensor (3,) on the CPU; make it with device=self.backbone.device" in wrong


ON_GPU, INDEX = torch.arange(6.0).view(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("operation", "waits"),
    [
        (lambda x: x.sum().item(), ["item"]),
        (lambda x: float(x.sum()), ["__float__"]),
        (lambda x: bool(x.any()), ["__bool__"]),
        (lambda x: x.tolist(), ["tolist"]),
        (lambda x: x.cpu(), ["cpu"]),
        (lambda x: x.to("cpu"), ["to"]),
        (lambda x: x.nonzero(), ["nonzero"]),
        (lambda x: x[x > 2], ["__getitem__ by a mask"]),
        (lambda x: x[[0, 1]], ["__getitem__ by a list"]),
        (lambda x: x[:, INDEX], ["__getitem__"]),
        (lambda x: torch.tensor([1.0], device=x.device), ["tensor"]),
        (lambda x: x.new_tensor([1.0]), ["new_tensor"]),
        (lambda x: torch.ones(2).to(x.device), ["to"]),
        (lambda x: x.copy_(torch.ones(2, 3)), ["copy_"]),
        (lambda x: torch.linalg.solve(x[:, :2] + 5 * torch.eye(2, device=x.device), x), ["aten._linalg_check_errors"]),
        (lambda x: torch.zeros(2, device=x.device) + x[:, 0] * 2 + torch.tensor(3.0), []),
        (lambda x: F.softmax(x @ x.mT, dim=-1).argmax(dim=-1), []),
        (lambda x: torch.where(x > 2, x, 0.0).masked_fill(x < 1, 2.0), []),
        (lambda x: F.one_hot(x[0].long(), 6), []),
    ],
)
def test_what_makes_a_gpu_wait_is_noted(operation: Callable[[Tensor], Any], waits: list[str]) -> None:
    with PretendedGpu() as gpu:
        x = ON_GPU.pin_memory().to(DEVICE, non_blocking=True)
        found = operation(x)
        assert [wait.partition(" at ")[0] for wait in gpu.waits] == waits
    torch.testing.assert_close(found, operation(ON_GPU.clone()), rtol=0, atol=0)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(2, 3)]),
        lambda x: F.linear(x, torch.ones(4, 3)),
        lambda x: torch.where(torch.ones(2, 3, dtype=torch.bool), x, x),
        lambda x: F.cross_entropy(x, torch.tensor([0, 1])),
    ],
)
def test_tensors_of_two_devices_do_not_mix(operation: Callable[[Tensor], Any]) -> None:
    operation(ON_GPU)
    with PretendedGpu(), pytest.raises(RuntimeError, match=r"would find a tensor \(.*\) on the CPU; make it with"):
        operation(ON_GPU.to(DEVICE))


def test_gradients_are_those_of_the_cpu_and_their_backward_pass_is_watched() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *outer: Tensor) -> Tensor:
            return outer[0] * outer[0].sum().item()

    with PretendedGpu() as gpu:
        x = ON_GPU.to(DEVICE).requires_grad_()
        gpu.waits.clear()
        (x.exp().sum() * 2).backward()
        assert x.grad is not None and x.grad.device == DEVICE and not gpu.waits
        Reads.apply(x).sum().backward()  # type: ignore[no-untyped-call]
        assert [wait.partition(" at ")[0] for wait in gpu.waits] == ["aten._local_scalar_dense"]
    assert torch.equal(x.grad, 2 * ON_GPU.exp() + 6)
