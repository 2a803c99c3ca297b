"""Training: one loop for every method.

SGD with momentum, Adam or AdamW on the method's learned tensors, cosine schedule with constant warm-up; the model of
the last step is the outcome, nothing is selected. Stepped per epoch, the schedule is Dassl's
(KaiyangZhou/Dassl.pytorch, dassl/optim/lr_scheduler.py), including its oddity that the cosine starts after the warm-up
and keeps its full period; stepped per step, it is torch's CosineAnnealingLR over the steps after the warm-up.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial as calling
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from promptbench.clip.image_tower import Images
from promptbench.config import Terminated
from promptbench.data.batches import EpochOrder, sent
from promptbench.method import Method
from promptbench.recipe import Recipe
from promptbench.training.files import (
    Partial,
    PartialFile,
    TrainingOutcome,
    partial_seconds,
    restore,
    resumable,
    state_of,
)
from promptbench.training.numerics import halved, of_trainer

Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss
StepLogger = Callable[[int, Mapping[str, float]], None]  # steps done, figures of the last

LOGGED_STEPS = 1000  # of a training, roughly, however long it is
LOOK = 0.5  # seconds between two looks at the losses of a GPU, which wait until it has done all that it was given


def learning_rate(
    base: float, epoch: int, max_epoch: int, warmup_epochs: int = 1, warmup_lr: float = 1e-5, lr_end: float = 0.0
) -> float:
    """The learning rate of an epoch counted from 0: constant while warming up, then cosine.

        lr(e) = warmup_lr                                                              e < w
        lr(e) = lr_end + (base - lr_end) / 2 * (1 + cos(pi * (e - w) / max_epoch))     e >= w

    with w warm-up epochs; Dassl's period are all epochs, so that the last one does not reach the end of the cosine. All
    of these may be counted in steps, too.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return lr_end + 0.5 * (base - lr_end) * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max_epoch))


class Step(NamedTuple):
    """A step that was taken, its loss not yet read.

    Attributes:
        number: Counted from 1, over all epochs.
        place: In its epoch, counted from 0.
        loss: What was minimised.
        terms: Of the loss, where a logger is told of the step.
        lr: The learning rate of the first group.
    """

    number: int
    place: int
    loss: Tensor
    terms: Mapping[str, Tensor]
    lr: float


class PromptTraining(pl.LightningModule):
    """A method in training. The backbone is moved with it, and stays out of its checkpoints."""

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        steps_per_epoch: int,
        progress: Progress | None = None,
        log_step: StepLogger | None = None,
        partial: PartialFile | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.progress = progress
        self.log_step = log_step
        self.partial = partial
        self.resumed = resumable(partial, method)
        at_the_start: dict[str, Any] = {"losses": [], "images": 0, "seconds": 0.0}
        facts: Mapping[str, Any] = self.resumed.facts if self.resumed is not None else at_the_start
        self.losses: list[dict[str, float]] = list(facts["losses"])
        self.images: int = facts["images"]
        self.earlier: float = facts["seconds"]
        self.first_epoch = len(self.losses)
        self.began = self.noted = time.perf_counter()
        self._sums: dict[str, Tensor] = {}
        self._unread: list[Step] = []
        self._looked = self.began
        self._seen = self._steps = 0  # images and steps of the epoch under way
        self._ended = False
        self._done = self.first_epoch * steps_per_epoch
        self.total_steps = recipe.total_steps(steps_per_epoch)
        self.epochs = recipe.passes(steps_per_epoch)

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 0 over all processes; Lightning counts those of this one."""
        return self.first_epoch + self.current_epoch

    @property
    def seconds(self) -> float:
        """Wall clock of the training so far, that of the processes before this one included."""
        return self.earlier + time.perf_counter() - self.began

    def on_train_start(self) -> None:
        """Where the training was begun before, everything that the next epoch depends on is put back."""
        if self.resumed is not None:
            restore(self.method, self.trainer.optimizers[0], self.resumed, self.method.backbone.device)
            self.resumed = None  # its memory

    def training_step(self, batch: tuple[Images, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        terms, loss = loss_of(self.method, images, labels)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=loss.device)) + term.detach() * len(labels)
        self._seen += len(labels)
        self._steps += 1
        self._done += 1
        logged = {name: term.detach() for name, term in terms.items()} if self._is_logged() else {}
        self._unread.append(Step(self._done, batch_idx, loss.detach(), logged, self.lr))
        if loss.device.type == "cpu" or time.perf_counter() - self._looked >= LOOK:
            self._look()
        return loss

    @property
    def lr(self) -> float:
        """The learning rate of the first group."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def _is_logged(self) -> bool:
        """Whether a logger is told of this step: of the first, the last, and of others at equal distances."""
        if self.log_step is None:
            return False
        total = self.total_steps
        return self._done == total or (self._done - 1) % max(1, total // LOGGED_STEPS) == 0

    def _look(self) -> None:
        """Reads the losses of the steps taken since the last look, and tells of them.

        Raises:
            TrainingDiverged: One is not finite.
        """
        steps, self._unread, self._looked = self._unread, [], time.perf_counter()
        for step, loss in zip(steps, numbers(step.loss for step in steps), strict=True):
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the loss became {loss}", self, step.place, step.lr)
            if self.progress:
                self.progress(step.number, self.total_steps, loss)
            if self.log_step and step.terms:
                terms = {f"loss/{name}": term for name, term in read(step.terms).items()}
                self.log_step(step.number, {"loss": loss, **terms, "lr": step.lr, "epoch": float(self.epoch + 1)})

    def on_train_epoch_end(self) -> None:
        self._look()
        finite = read({name: torch.isfinite(learned).all() for name, learned in self.method.named_parameters()})
        if not all(finite.values()):
            name = min(finite, key=lambda name: finite[name])
            raise TrainingDiverged(f"the learned tensor {name} became infinite or NaN", self, self._steps - 1, self.lr)
        self.losses.append({name: total / self._seen for name, total in read(self._sums).items()})
        self.images += self._seen
        self._sums, self._seen, self._steps = {}, 0, 0
        with torch.no_grad():
            self.method.on_epoch_end(self.epoch, self.epochs)
        under_way = self.epoch + 1 < self.epochs
        if self.partial is not None and under_way and time.perf_counter() - self.noted >= partial_seconds():
            facts = {"losses": self.losses, "images": self.images, "seconds": self.seconds}
            self.partial.write(Partial(state_of(self.method, self.trainer.optimizers[0]), facts))
            self.noted = time.perf_counter()
        self._ended = not under_way

    def check_ended(self) -> None:
        """Raise an error unless every step was done: a StopIteration of a method's code is none to Lightning."""
        if not self._ended or self._done < self.total_steps:
            raise RuntimeError(
                f"the training ended after {self._done} of {self.total_steps} steps, as it does where the method's "
                "code raises StopIteration"
            )

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        groups = [dict(group) for group in self.method.parameter_groups()]
        for group in groups:
            group["lr"] = group["initial_lr"] = recipe.lr * group.pop("lr_scale", 1.0)
        optimizer = optimizer_of(recipe, groups)
        factors = [self._factor(group["lr"]) for group in groups]
        done = self.first_epoch if recipe.schedule == "epoch" else self._done
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors, last_epoch=done - 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": recipe.schedule}}

    def _factor(self, base: float) -> Callable[[int], float]:
        """Epoch or step to the factor on a group's rate `base`; one whose rate is 0 never moves, warm-up included."""
        recipe = self.recipe
        period, warmup = self.epochs, recipe.warmup_epochs
        if recipe.schedule == "step":
            warmup *= self.steps_per_epoch
            period = max(1, self.total_steps - warmup)
        rest = (period, warmup, recipe.warmup_lr, recipe.lr_end)
        return lambda time: learning_rate(base, time, *rest) / base if base else 0.0

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        images, labels = batch
        move = calling(sent, device=device)
        return images.map(move), move(labels)


def fit(
    method: Method,
    recipe: Recipe,
    batches: Iterable[tuple[Images, Tensor]],
    steps_per_epoch: int,
    *,
    seed: int,
    precision: str = "32",
    device: str = "cpu",
    progress: Progress | None = None,
    logger: StepLogger | None = None,
    partial: PartialFile | None = None,
) -> TrainingOutcome:
    """Train a method in place; it is in training mode meanwhile and in evaluation mode afterwards.

    Args:
        batches: One pass over the training images each time it is iterated.
        steps_per_epoch: Batches in a pass.
        seed: Draws what a method draws in its loss; the global generators are left as they were.
        precision: One of `numerics.PRECISIONS`.
        device: `cpu`, `cuda` or `cuda:N`.
        progress: Called for every step, in order: after it, and on a GPU up to `LOOK` later.
        logger: Called after some `LOGGED_STEPS` of all steps; it changes no number.
        partial: Where the training notes after an epoch how it stands, and from where it goes on, bit-identical on a
            CPU, if it was begun before.

    Raises:
        TrainingDiverged: If a loss is not finite; on a GPU, further steps may have followed.
    """
    kind, _, index = device.partition(":")
    with quiet_lightning(), torch.random.fork_rng(), halved(precision, method):
        module = PromptTraining(method, recipe, steps_per_epoch, progress, logger, partial)
        order = getattr(batches, "sampler", None)
        if isinstance(order, EpochOrder):
            order.begin_at(module.first_epoch)
        torch.manual_seed(seed)
        trainer = pl.Trainer(
            max_epochs=module.epochs - module.first_epoch,
            max_steps=module.total_steps - module.first_epoch * steps_per_epoch,
            accelerator="gpu" if kind == "cuda" else "cpu",
            devices=[int(index)] if index else 1,
            **of_trainer(precision, method, device),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with keyboard_interrupt():
            trainer.fit(module.train(), train_dataloaders=batches)  # Lightning leaves the mode as it finds it
        module.check_ended()
    seconds = module.seconds
    method.eval().to(method.backbone.device)
    return TrainingOutcome(module.losses, seconds, module.images / seconds)


def numbers(scalars: Iterable[Tensor]) -> list[float]:
    """The values of scalars, read at once."""
    tensors = [scalar.reshape(()) for scalar in scalars]
    return torch.stack(tensors).tolist() if tensors else []


def read(named: Mapping[str, Tensor]) -> dict[str, float]:
    """The values of scalars by name, read at once."""
    return dict(zip(named, numbers(named.values()), strict=True))


def optimizer_of(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser of a recipe on groups of learned tensors that have their rates."""
    lr, decay = recipe.lr, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, weight_decay=decay)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr, betas=recipe.betas, eps=recipe.eps, weight_decay=decay)


def backward(method: Method, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What a step of training gives the optimiser of these images, in the `grad` of the learned tensors.

    Gradients that were there are replaced. The method is in training mode meanwhile, and draws what it draws at random
    from torch's generators.

    Args:
        images: B images, or their pixels.
        labels: (B,) int64, positions among the method's current classes.

    Returns:
        The terms of the loss by name; they sum to what is minimised.
    """
    was_training = method.training
    method.train().zero_grad(set_to_none=True)
    try:
        with torch.enable_grad():
            terms, loss = loss_of(method, images if isinstance(images, Images) else Images(images), labels)
            loss.backward()
    finally:
        method.train(was_training)
    return {name: term.detach() for name, term in terms.items()}


@contextmanager
def keyboard_interrupt() -> Iterator[None]:
    """A context in which Ctrl-C stays a KeyboardInterrupt, and SIGTERM is one: Lightning would turn both into an exit
    of the process, which otherwise is something that a method's code asks for."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise Terminated from None
    except SystemExit as stopped:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """A context in which Lightning says nothing: its hints are for people who configure its Trainer themselves."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Differentiated(torch.autograd.Function):
    """An autograd function: a number whose gradients with respect to some tensors are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(outer[0] * gradient for gradient in ctx.saved_tensors)


def loss_of(method: Method, images: Images, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of `method.loss` for B images that are minimised, and their sum, to be differentiated.

    In groups where `method.images_at_once()` is below B, fp16 autocast apart, and term by term for a method that
    combines their gradients: these are then computed here, and the sum's backward pass hands them over; the terms
    themselves have none.
    """
    size = method.images_at_once()
    if size is None or size >= len(labels) or scaled(labels.device):
        size = len(labels)
    if not torch.is_grad_enabled() or (size == len(labels) and not method.combines_gradients):
        terms = minimised(method, method.loss(images, labels))
        return terms, total(terms)
    learned = [p for p in method.parameters() if p.requires_grad]
    sums: dict[str, Tensor] = {}
    gradients: dict[str, list[Tensor]] = {}  # of each term, or of all in one
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        terms = method.loss(images[part], labels[part])
        share = len(labels[part]) / len(labels)
        for name, loss in (terms if method.combines_gradients else {"": total(terms)}).items():
            known = gradients.setdefault(name, [torch.zeros_like(p) for p in learned])
            with torch.autocast(labels.device.type, enabled=False):  # a backward pass is never within one
                found = torch.autograd.grad(loss, learned, retain_graph=method.combines_gradients, allow_unused=True)
            for gradient, of_group in zip(known, found, strict=True):
                if of_group is not None:
                    gradient += share * of_group
        for name, term in minimised(method, terms).items():
            sums[name] = sums.get(name, 0) + share * term.detach()
    combined = method.combine_gradients(gradients) if method.combines_gradients else gradients[""]
    return sums, Differentiated.apply(total(sums), combined, *learned)


def minimised(method: Method, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms of a loss without those that only guide the gradients of others."""
    return {name: term for name, term in terms.items() if name not in method.guides}


def scaled(device: torch.device) -> bool:
    """Whether the loss is going to be scaled so that its gradients fit half precision: the groups' would not be."""
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the loss terms, which is minimised."""
    return torch.stack(list(terms.values())).sum()


class TrainingDiverged(RuntimeError):
    """A loss or a learned tensor became NaN or infinite; the message says where.

    Attributes:
        where: `epoch` and `step`, counted from 1, and `lr`.
    """

    def __init__(self, what: str, module: PromptTraining, step: int, rate: float) -> None:
        self.where = {"epoch": module.epoch + 1, "step": step + 1, "lr": rate}
        super().__init__(
            f"{what} in epoch {module.epoch + 1} of {module.epochs}, step {step + 1} of "
            f"{module.steps_per_epoch}, at learning rate {rate:.3g}; a smaller lr may help"
        )
