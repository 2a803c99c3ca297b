"""Whole trainings equal those of the official implementations: every step's loss, what is learned, what it predicts.

They are ours from the loader's order to the last epoch's end: `fit`, Lightning's loop, the optimiser and schedule that
the method's own recipe asks for. In float64, where rounding hides nothing: momentum, weight decay, the schedule or the
average of the epochs may not be a little wrong. README.md beside this file describes the stored numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from short_cases import slow, slow_but
from torch import Tensor

import promptbench as pb
from promptbench import registry
from promptbench.data.batches import EpochOrder, ImageLoader
from promptbench.recipe import Recipe, find_recipe
from promptbench.training import fit as training

RUNS = Path(__file__).parent / "runs"
SEED = 7101
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # method, protocol whose recipe trains it, settings
    "run_coop_r16": ("coop", "few_shot", {"n_ctx": 16, "ctx_init": "", "class_token_position": "end"}),
    "run_cocoop_init4": ("cocoop", "base2new", {"n_ctx": 4, "ctx_init": "a photo of a"}),
    "run_vpt_d3": ("vpt", "base2new", {"n_ctx": 4, "depth": 3}),
    "run_ivlp_d3": ("ivlp", "base2new", {"n_ctx_text": 2, "n_ctx_vision": 2, "depth_text": 3, "depth_vision": 3}),
    "run_maple_d3": ("maple", "base2new", {"n_ctx": 2, "ctx_init": "a photo of a", "depth": 3}),
    "run_promptsrc_d3": ("promptsrc", "base2new", {"depth_text": 3, "depth_vision": 3, "epoch_mean": 4.0}),
    "run_gallop_g4l4": ("gallop", "few_shot", {"n_global": 4, "n_local": 4, "topk": (2, 4, 6, 8), "dropout": 0.75}),
}
SHORT = "run_coop_r16"
LIMIT = 1e-9  # of the largest entry; measured over all seven: losses 1.1e-14, tensors 5.7e-14, logits 8.7e-14 at most


@dataclass
class Case:
    """One official run: its settings in `cases.json`, and its numbers."""

    name: str

    @cached_property
    def facts(self) -> Any:
        return json.loads((RUNS / "cases.json").read_text(encoding="utf-8"))["cases"][f"{self.name}-s{SEED}"]

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        with np.load(RUNS / f"{self.name}-s{SEED}.npz") as stored:
            return {key: torch.from_numpy(stored[key]) for key in stored.files}

    def tensors(self, field: str) -> dict[str, Tensor]:
        """What is stored as `field/<name>`, by name."""
        return {key.removeprefix(field + "/"): t for key, t in self.stored.items() if key.startswith(field + "/")}

    def recipe(self) -> Recipe:
        """The method's own, at the run's length, rate and batch: momentum, decay and warm-up are what we ship."""
        name, protocol, _ = CASES[self.name]
        asked = {key: self.facts["training"][key] for key in ("epochs", "lr", "batch")}
        return replace(find_recipe(registry.load("methods", name), protocol, "dtd"), **asked)


@dataclass
class Course:
    """What a training did: by step, by epoch, and its method when it was done."""

    method: pb.Method
    losses: list[float] = field(default_factory=list)
    terms: list[dict[str, float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    epochs: list[dict[str, Tensor]] = field(default_factory=list)  # before anything is averaged
    momentum: dict[str, Tensor] = field(default_factory=dict)


# The data and the training, ours --------------------------------------------------------------------------------------


def images(part: int, each: int) -> tuple[Tensor, Tensor]:
    """The recipe's images of eight classes, float32 held in float64, and their labels; part 3 trains, part 4 tests."""

    def noise(*key: int) -> Any:
        return np.random.default_rng([SEED, *key]).standard_normal((3, 32, 32))

    labels = np.repeat(np.arange(8), each)
    drawn = [noise(2, label) + 0.5 * noise(part, label, i % each) for i, label in enumerate(labels)]
    return torch.from_numpy(np.stack(drawn).astype(np.float32)).double(), torch.from_numpy(labels)


class OfficialOrder(EpochOrder):
    """The order of the official run, where ours would draw another."""

    def __init__(self, batches: Tensor) -> None:
        super().__init__(batches[0].numel(), SEED)
        self.batches = batches

    def permutation(self) -> list[int]:
        order: list[int] = self.batches[self.epoch].flatten().tolist()
        return order


class Shown(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Training images as they go into the tower, in the place of decoded ones."""

    def __init__(self) -> None:
        self.images, self.labels = images(3, each=8)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, int]:
        return self.images[index[0]], int(self.labels[index[0]])


def batches_of(case: Case) -> ImageLoader:
    """What `training_batches` makes, of the official run's images in its order."""
    size, order = case.facts["training"]["batch"], OfficialOrder(case.stored["batches"])
    return ImageLoader(Shown(), batch_size=size, sampler=order, drop_last=True, generator=torch.Generator())


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifts the roundings to float32 that our code makes on purpose, and these alone: they are written `.float()`."""
    rounded = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else rounded(self))


@pytest.fixture(scope="module")
def clip64(golden_clip: torch.nn.Module) -> torch.nn.Module:
    return deepcopy(golden_clip).double()


@pytest.fixture
def start(clip64: torch.nn.Module, golden_recipe: ModuleType, float64: None) -> Callable[[Case], pb.Method]:
    """Makes the method of a case, in float64, with the learned tensors of its official checkpoint."""

    def make(case: Case) -> pb.Method:
        name, _, config = CASES[case.name]
        backbone = pb.Backbone(clip64, tokenizer=golden_recipe.tokenizer())
        method = pb.create_method(name, backbone, case.facts["class_names"], **config).double()
        pb.load_official_checkpoint(method, RUNS / f"{case.name}-s{SEED}")
        return method

    return make


@pytest.fixture
def train(start: Callable[[Case], pb.Method], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Course]:
    """Trains a case; `changes` are of its recipe, `at_epoch_end` is a mistake made with the optimiser, and `after_step`
    may end the training."""

    def whole(
        case: Case,
        at_epoch_end: Callable[[Any], None] = lambda _: None,
        after_step: Callable[[Course], None] = lambda _: None,
        **changes: Any,
    ) -> Course:
        method = start(case)
        course, learned, modules = Course(method), pb.official_parameters(method), []
        configure, on_epoch_end = training.PromptTraining.configure_optimizers, method.on_epoch_end

        def configured(module: Any) -> Any:
            modules.append(module)
            return configure(module)

        def ended(epoch: int, epochs: int) -> None:
            optimizer = modules[0].trainer.optimizers[0]
            course.epochs.append({name: parameter.detach().clone() for name, parameter in learned.items()})
            course.momentum = {name: optimizer.state[p].get("momentum_buffer") for name, p in learned.items()}
            on_epoch_end(epoch, epochs)
            at_epoch_end(optimizer)

        def step(_: int, figures: Mapping[str, float]) -> None:
            course.losses.append(figures["loss"])
            course.rates.append(figures["lr"])
            course.terms.append({name[5:]: value for name, value in figures.items() if name.startswith("loss/")})
            after_step(course)

        monkeypatch.setattr(training.PromptTraining, "configure_optimizers", configured)
        monkeypatch.setattr(method, "on_epoch_end", ended)
        batches = batches_of(case)
        recipe = replace(case.recipe(), **changes)
        outcome = training.fit(method, recipe, batches, len(batches), seed=SEED, logger=step)
        course.means = [sum(terms.values()) for terms in outcome.losses]
        return course

    return whole


# Equal to the official runs -------------------------------------------------------------------------------------------


def distance(measured: Tensor | Sequence[float], stored: Tensor) -> float:
    """The largest difference, as a part of the largest stored entry."""
    measured = torch.as_tensor(measured, dtype=torch.float64)
    assert measured.shape == stored.shape
    return ((measured - stored).abs().max() / stored.abs().max()).item()


def farthest(measured: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> float:
    assert measured.keys() == stored.keys()
    return max(distance(measured[name], tensor) for name, tensor in stored.items())


@torch.no_grad()
def distances(case: Case, course: Course) -> dict[str, float]:
    """How far a training is from the official one in float64."""
    method, stored, (pixels, _) = course.method, case.stored, images(4, each=5)
    learned = {name: parameter.detach() for name, parameter in pb.official_parameters(method).items()}
    last = case.tensors(f"fp64/epoch{case.facts['training']['epochs']}")
    found = {
        "losses": distance(course.losses, stored["fp64/losses"].flatten()),
        "mean losses": distance(course.means, stored["fp64/losses"].mean(dim=1)),
        "last epoch": farthest(course.epochs[-1], last),
        "outcome": farthest(learned, case.tensors("fp64/final") or last),
        "test logits": distance(method(pixels).logits, stored["fp64/test_logits"]),
    }
    method.set_classes(case.facts["new_class_names"])
    return {**found, "logits of new classes": distance(method(pixels).logits, stored["fp64/newcls_logits"])}


@pytest.mark.parametrize("name", slow_but(CASES, SHORT))
def test_a_whole_training_equals_the_official_one(name: str, train: Callable[..., Course]) -> None:
    case = Case(name)
    course, stored, limits = train(case), case.stored, case.facts["tolerance_fp32"]
    assert course.rates == pytest.approx(stored["lr"].flatten().tolist(), rel=1e-9)
    found = distances(case, course)
    assert max(found.values()) < LIMIT, found
    for epoch in case.facts["tensor_epochs"]:  # these and the rest are stored in float32 alone
        for learned, tensor in case.tensors(f"epoch{epoch}").items():
            close(course.epochs[epoch - 1][learned], tensor, limits["tensors"])
    assert farthest(course.momentum, case.tensors("momentum_last")) < limits["momentum_relative"]
    for term, values in case.tensors("terms").items():
        close(torch.tensor([terms[term] for terms in course.terms]), values.flatten(), limits["losses"])


def close(measured: Tensor, stored: Tensor, limit: float) -> None:
    torch.testing.assert_close(measured.double(), stored.double(), rtol=0, atol=limit)


# A mistake is noticed -------------------------------------------------------------------------------------------------


def forgotten(optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


MISTAKES: dict[str, dict[str, Any]] = {
    "no momentum": {"momentum": 0.0},
    "no weight decay": {"weight_decay": 0.0},
    "momentum forgotten after each epoch": {"at_epoch_end": forgotten},
    "another warm-up": {"warmup_lr": 2e-5},
    "no warm-up": {"warmup_epochs": 0},
    "warm-up of two epochs": {"warmup_epochs": 2},
}
OF_EVERY_METHOD = ("no momentum", "no weight decay")
FAR = 1000 * LIMIT


@pytest.mark.parametrize("mistake", slow_but(MISTAKES, *OF_EVERY_METHOD))
def test_a_mistake_is_noticed(mistake: str, train: Callable[..., Course]) -> None:
    case = Case(SHORT)
    found = distances(case, train(case, **MISTAKES[mistake]))
    assert min(found.values()) > FAR, found


class Noticed(Exception):
    """A loss is not the official one."""


@pytest.mark.parametrize("mistake", OF_EVERY_METHOD)
@pytest.mark.parametrize("name", [slow(name) for name in CASES if name != SHORT])
def test_a_mistake_is_noticed_with_every_method(name: str, mistake: str, train: Callable[..., Course]) -> None:
    """By the losses alone, and then there is no need to go on."""
    case = Case(name)
    official = case.stored["fp64/losses"].flatten()

    def compared(course: Course) -> None:
        if distance(course.losses, official[: len(course.losses)]) > FAR:
            raise Noticed

    with pytest.raises(Noticed):
        train(case, after_step=compared, **MISTAKES[mistake])


@pytest.mark.slow
def test_a_shorter_cosine_is_noticed(train: Callable[..., Course], monkeypatch: pytest.MonkeyPatch) -> None:
    rate = training.learning_rate
    monkeypatch.setattr(training, "learning_rate", lambda base, epoch, last, *rest: rate(base, epoch, last - 1, *rest))
    found = distances(Case(SHORT), train(Case(SHORT)))
    assert min(found.values()) > FAR, found


@pytest.mark.slow
def test_the_first_order_in_every_epoch_is_noticed(
    train: Callable[..., Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpochOrder, "set_epoch", lambda *_: None)
    found = distances(Case(SHORT), train(Case(SHORT)))
    assert min(found.values()) > FAR, found


@pytest.mark.slow
def test_a_missing_average_is_noticed(train: Callable[..., Course], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.load("methods", "promptsrc"), "on_epoch_end", lambda *_: None)
    found = distances(Case("run_promptsrc_d3"), train(Case("run_promptsrc_d3")))
    assert max(found["losses"], found["last epoch"]) < LIMIT  # the training never sees it
    assert min(found["outcome"], found["test logits"], found["logits of new classes"]) > FAR, found
