"""What a GPU computes is what the CPU does, in float32, in lower precision, and each time the same.

Methods are run on the embedded CLIP, on noise, with learned tensors moved off their first values, as the conformance
kit does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from promptbench.benchmarks.speed.steps import WITHOUT_DRAWS
from torch import Tensor

from promptbench import registry
from promptbench.checks.plugin.subject import Specimen, batch, predict, specimen, take_steps
from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import Images
from promptbench.clip.load import load_backbone
from promptbench.method import Method, fit_to_backbone
from promptbench.recipe import Recipe
from promptbench.training import fit as training
from promptbench.training.fit import backward, fit
from promptbench.training.numerics import AUTHORS, hold_to_bits

from .part import Row, Setting, case, left_out

LOGITS = 5e-3  # absolute, of logits up to 100
LOSSES = 1e-4  # of a loss
GRADIENTS = 2e-3  # of a tensor's largest entry
MOVED = 2e-2  # of the largest distance that an entry of a tensor went in `STEPS` steps
STEPS = 5
MIXED = {"bf16-mixed": (0.05, 0.1), "16-mixed": (0.05, 0.1), AUTHORS: (0.1, 0.2)}  # of a loss in float32, and beside it
DRAWLESS: Mapping[str, Mapping[str, Any]] = {**WITHOUT_DRAWS, "gallop": {"dropout": None}}  # generators differ
WAITING = {"locoop": "only values say how many patches its second term has"}
RECIPE = Recipe(epochs=2, lr=0.002, batch=6, augment=False, origin="ours")
BATCHES = 4  # of an epoch
SHORT = ("coop", "zeroshot")


@cache
def mini() -> Backbone:
    """The embedded CLIP, on the CPU; methods get copies of it."""
    backbone: Backbone = load_backbone("mini")
    return backbone


def methods(setting: Setting, trained: bool = False) -> list[str]:
    """The methods that are checked."""
    names = [name for name in registry.names("methods") if not trained or registry.load("methods", name).trains]
    return [name for name in names if name in SHORT] if setting.short else names


def on(device: str, name: str, drawless: bool = False) -> Specimen:
    """A method on a device of its own copy of the backbone; what it draws at random may be left out."""
    cls = registry.load("methods", name)
    given = DRAWLESS.get(name, {}) if drawless else {}
    config = fit_to_backbone(cls.Config(**given), mini(), explicit=given)
    found = specimen(cls, mini(), config).fresh()
    found.backbone.to(device)
    return found


# The CPU and the GPU --------------------------------------------------------------------------------------------------


def in_float32(setting: Setting) -> Iterator[Row]:
    """Logits, loss, gradients and five steps of every method, beside the CPU's."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in methods(setting):
        yield case(name, partial(beside_the_cpu, setting.device, name))


def beside_the_cpu(device: str, name: str) -> Row:
    """How far a method on a device is from itself on the CPU."""
    ours, theirs = (on(place, name, drawless=True) for place in (device, "cpu"))
    method, reference = ours.moved(), theirs.moved()
    images, labels = batch(theirs.backbone)
    here, there = (images.to(device), labels.to(device)), (images, labels)
    found = {"logits": farthest(predict(method, here[0]).logits, predict(reference, images).logits)}
    limits = {"logits": LOGITS}
    if ours.cls.trains:
        losses, expected = backward(method, *here), backward(reference, *there)
        found["loss"] = max(abs(float(losses[term]) / float(expected[term]) - 1) for term in expected if expected[term])
        pairs = list(zip(method.parameters(), reference.parameters(), strict=True))
        found["gradients"] = max(farthest(p.grad, q.grad, relative=True) for p, q in pairs)
        before = [q.detach().clone() for _, q in pairs]
        take_steps(method, *here, steps=STEPS)
        take_steps(reference, *there, steps=STEPS)
        found["steps"] = max(
            farthest(p, q) / max(farthest(q, start), 1e-12) for (p, q), start in zip(pairs, before, strict=True)
        )
        limits |= {"loss": LOSSES, "gradients": GRADIENTS, "steps": MOVED}
    return within(found, limits)


def farthest(found: Tensor | None, expected: Tensor | None, relative: bool = False) -> float:
    """The largest difference of two tensors; if `relative`, over the largest entry of the second."""
    assert found is not None and expected is not None
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    largest = max(float(expected.abs().max()), 1e-12) if relative else 1.0
    return float((found - expected).abs().max()) / largest


def within(found: Mapping[str, float], limits: Mapping[str, float]) -> Row:
    """Figures with the limits that they have to keep; one that is no number keeps none."""
    return {"passed": all(found[name] <= limits[name] for name in found), **found, "limits": dict(limits)}


# Trainings ------------------------------------------------------------------------------------------------------------


class Batches:
    """The same batch in every step, from the CPU as loaders give it; `before` is called with each step's number."""

    def __init__(self, before: Callable[[int], None] = lambda step: None) -> None:
        self.images, self.labels = batch(mini())
        self.before, self.step = before, 0

    def __iter__(self) -> Iterator[tuple[Images, Tensor]]:
        for _ in range(BATCHES):
            self.before(self.step)
            self.step += 1
            yield Images(self.images), self.labels

    def __len__(self) -> int:
        return BATCHES


def train(device: str, name: str, precision: str = "32", batches: Batches | None = None) -> tuple[Method, list[float]]:
    """A method after a short training, and the mean losses of its epochs."""
    method = on(device, name).make()
    outcome = fit(method, RECIPE, batches or Batches(), BATCHES, seed=1, precision=precision, device=device)
    return method, [sum(terms.values()) for terms in outcome.losses]


def in_lower_precision(setting: Setting) -> Iterator[Row]:
    """Short trainings of every method in each precision, beside those in float32."""
    for name in methods(setting, trained=True):
        expected: list[float] = []
        for precision, limits in MIXED.items():
            what = f"{name} {precision}"
            if precision != "bf16-mixed" and not setting.on_gpu:
                yield left_out(what)
            elif precision == AUTHORS and registry.load("methods", name).reconstructed:
                yield left_out(what, "no code of its authors")
            else:
                yield case(what, partial(beside_float32, setting.device, name, precision, limits, expected))


def beside_float32(device: str, name: str, precision: str, limits: tuple[float, float], expected: list[float]) -> Row:
    """How far the losses of a training are from those in float32, which are computed the first time."""
    if not expected:
        expected += train(device, name)[1]
    method, losses = train(device, name, precision)
    relative, absolute = limits
    near = all(
        abs(loss - wanted) <= absolute + relative * abs(wanted) for loss, wanted in zip(losses, expected, strict=True)
    )
    finite = all(map(math.isfinite, losses)) and all(bool(p.isfinite().all()) for p in method.parameters())
    return {"passed": finite and near, "losses": losses, "float32": list(expected), "limits": list(limits)}


def repeated(setting: Setting) -> Iterator[Row]:
    """Short trainings under `--deterministic`, twice each."""
    hold_to_bits(True)
    for name in methods(setting, trained=True):
        yield case(name, partial(same_bits, setting.device, name))


def same_bits(device: str, name: str) -> Row:
    """Whether a training and its scores are the same the second time, bit for bit."""
    (one, losses), (other, again) = train(device, name), train(device, name)
    images = batch(mini())[0].to(device)
    learned = all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    scores = torch.equal(predict(one, images).logits, predict(other, images).logits)
    return {"passed": learned and scores and losses == again, "learned": learned, "scores": scores}


def without_waiting(setting: Setting) -> Iterator[Row]:
    """A step of every method through the whole loop while torch takes it for an error to wait for the GPU."""
    training.LOOK = math.inf  # losses are read at the end of an epoch alone
    for name in methods(setting, trained=True):
        yield case(name, partial(unwaited, setting, name)) if setting.on_gpu else left_out(name)


def unwaited(setting: Setting, name: str) -> Row:
    """Whether the third step of the second epoch waits: what is fetched once was fetched before."""

    def before(step: int) -> None:
        modes = {BATCHES + 1: "error", BATCHES + 3: "default"}
        if step in modes:
            torch.cuda.set_sync_debug_mode(modes[step])

    try:
        train(setting.device, name, batches=Batches(before))
    except RuntimeError as error:
        if name not in WAITING or "synchroniz" not in str(error).lower():
            raise
        return {"waits": WAITING[name]}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"passed": name not in WAITING}
