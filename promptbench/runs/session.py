"""Where the runs of a call read and write, what they share, what each is made of, and what it may change.

What a run is made of, which its plan does not know, are digests of weights, images, names, splits and code. They are
fields of the spec that renew a run instead of naming it: a finished run with others is done again.

The code of a method, of a dataset or of a library that they call may enter another folder, set defaults of torch, draw
from global generators or close what it prints to, and the next run must not find it so. `as_it_was` lists what is put
back; modules that are patched, threads and the backbone itself are not.
"""

from __future__ import annotations

import hashlib
import locale
import logging
import os
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch.backends import opt_einsum  # which torch 2.4 does not import itself

from promptbench.clip.backbone import ARCHITECTURE, Backbone
from promptbench.clip.load import files_of, load_backbone, state_of
from promptbench.clip.prompts import FrozenTexts
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.data.dataset import Dataset, contents_digest, open_dataset
from promptbench.data.selection import SelectedImages, Selection, few_validation_of, open_selection, shown_names
from promptbench.protocol import Evaluation
from promptbench.results.result import find, find_predictions
from promptbench.results.spec import Spec
from promptbench.runs.listener import Quiet
from promptbench.runs.plan import Run
from promptbench.storage.atomic import write_atomically
from promptbench.storage.cache import cache_dir
from promptbench.storage.versions import code_digest, library_versions
from promptbench.suite import Suite
from promptbench.training.numerics import hold_to_bits

Same = TypeVar("Same", bound="Session")

TRAINING, EVALUATION = "promptbench.runs.train", "promptbench.runs.evaluate"  # whose code decides figures
VALIDATION = "validation"  # what the images that a temperature is fitted on are called beside evaluations
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where runs read and write, on which device, and what they keep; other processes and machines are told it.

    Attributes:
        output: The folder that results and learned tensors go to.
        roots: Data roots; only read.
        device: `cpu`, `cuda` or `cuda:N`.
        save_predictions: Whether each run keeps its scores of every image.
        may_train: Whether a training that is not stored is made; otherwise it is an error.
        skip_unreadable: Whether images that cannot be read are left out; otherwise they are an error.
        loggers: Names in `listener.LOGGERS` that watch each run.
        learned: Key and file of a training that is evaluated though other versions or code have done it; None where a
            training must be what a run of today would do.
        named: The output folder as it was given, for what is said of it; `output` stays the same wherever code goes.
    """

    output: Path
    roots: tuple[Path, ...] = ()
    device: str = "cpu"
    save_predictions: bool = False
    may_train: bool = True
    skip_unreadable: bool = False
    loggers: tuple[str, ...] = ()
    learned: tuple[str, Path] | None = None
    named: Path = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", self.output)
        object.__setattr__(self, "output", self.output.absolute())

    def is_finished(self, spec: Spec) -> bool:
        """Whether the result of a run is there, and its predictions where they are wanted."""
        if find(self.output, spec) is None:
            return False
        return not self.save_predictions or find_predictions(self.output, spec) is not None


class Session:
    """The backbone and the opened datasets of this process; another process opens its own.

    Args:
        place: Where runs read and write.
        suite: Names the backbone and the datasets.
    """

    def __init__(self, place: Place, suite: Suite) -> None:
        self.place, self.suite = place, suite
        self._datasets: dict[str, Dataset] = {}
        self.found: dict[Any, Any] = {}  # what was looked up of runs; see `identity`

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Session is of one process; hand over its place and its suite.")

    def at(self: Same, **changes: Any) -> Same:
        """A session at another place, with nothing opened yet.

        Args:
            changes: Fields of the place.
        """
        return type(self)(replace(self.place, **changes), self.suite)

    @property
    def output(self) -> Path:
        """The folder that results and learned tensors go to."""
        return self.place.output

    @property
    def roots(self) -> tuple[Path, ...]:
        """Data roots."""
        return self.place.roots

    @property
    def device(self) -> str:
        """`cpu`, `cuda` or `cuda:N`."""
        return self.place.device

    @property
    def save_predictions(self) -> bool:
        """Whether each run keeps its scores of every image."""
        return self.place.save_predictions

    @property
    def may_train(self) -> bool:
        """Whether a training that is not stored is made."""
        return self.place.may_train

    @property
    def skip_unreadable(self) -> bool:
        """Whether images that cannot be read are left out."""
        return self.place.skip_unreadable

    @property
    def loggers(self) -> tuple[str, ...]:
        """Who watches each run."""
        return self.place.loggers

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen backbone, loaded when the first run needs it."""
        backbone: Backbone = load_backbone(self.suite.backbone).to(self.device)
        return backbone

    def close(self) -> None:
        """Let go of what is opened; it is opened again where somebody asks for it."""
        vars(self).pop("backbone", None)
        self._datasets.clear()

    def is_finished(self, spec: Spec) -> bool:
        """Whether the result of a run is there, and its predictions where they are wanted."""
        return self.place.is_finished(spec)

    def conditions(self) -> dict[str, Any]:
        """What the results of this session say of it besides."""
        return {}

    def nearest(self, names: ClassNames) -> list[int]:
        """The position, for each class name, of the other one whose frozen text is nearest, looked up once."""
        return once(self, ("nearest", names, names.template), lambda: nearest_texts(self.backbone, names))

    def dataset(self, name: str) -> Dataset:
        """A dataset of the suite, opened once."""
        if name not in self._datasets:
            entry = self.suite.entry(name)
            dataset = open_dataset(entry.dataset, entry.options, self.roots, alias=entry.name)
            dataset.skip_unreadable = self.skip_unreadable
            self._datasets[name] = dataset
        return self._datasets[name]


def identified(session: Session, run: Run) -> Run:
    """The run with all that it is made of in its spec.

    Raises:
        UsageError: Its images, its code or the weights are not there.
    """
    found: dict[str, Any] = {}
    for part in PARTS:
        found |= part(session, run)
    weights, architecture = backbone_digests(session)
    found |= {"weights_hash": weights, "architecture": architecture}
    return replace(run, spec=replace(run.spec, **found))


def recognised(session: Session, run: Run, may_load: bool = True) -> Run:
    """The run with what can be told now; what cannot, such as of images that are gone, stays empty.

    Args:
        may_load: Whether the backbone may be loaded for it.
    """
    found: dict[str, Any] = {}
    for part in PARTS:
        with suppress(UsageError):
            found |= part(session, run)
    weights, architecture = remembered_backbone(session, may_load)
    found |= {"weights_hash": weights, "architecture": architecture}
    return replace(run, spec=replace(run.spec, **found))


def of_training(session: Session, run: Run) -> dict[str, Any]:
    """Digests of the images and the names trained with, of a method that sees images."""
    dataset = session.dataset(run.plan.train.dataset)
    found = {"split_digest": once(session, ("split", dataset.name), dataset.split_digest)}
    if not run.method.sees_images():
        return found
    train = selected(session, run.plan.train, run.spec.data_seed)
    place = ("sample", run.plan.train, run.spec.data_seed)
    found["sample_digest"] = once(session, place, lambda: contents_digest(dataset, train.pool))
    found["trained_names"] = sentences_digest(train.class_names)
    return found


def of_evaluations(session: Session, run: Run) -> dict[str, Any]:
    """Digests of the images scored and the names shown, by evaluation."""
    names: dict[str, str] = {}
    templates: dict[str, Any] = {}
    contents: dict[str, str] = {}
    for evaluation in run.plan.evaluations:
        chosen = selected(session, evaluation.selection, run.spec.data_seed)
        shown = shown_by(session, evaluation, chosen, run.spec.data_seed)
        names[evaluation.name], templates[evaluation.name] = names_digest(shown), shown.template
        contents[evaluation.name] = contents_of(session, evaluation.selection, chosen, run.spec.data_seed)
    if run.spec.temperature:
        selection = few_validation_of(run.plan.train)
        chosen = selected(session, selection, run.spec.data_seed)
        contents[VALIDATION] = contents_of(session, selection, chosen, run.spec.data_seed)
    return {"class_names": names, "templates": templates, "contents": contents}


def selected(session: Session, selection: Selection, seed: int) -> SelectedImages:
    """The images of a selection, opened once."""

    def opened() -> SelectedImages:
        return open_selection(session.dataset, selection, seed, nearest=session.nearest)

    return once(session, ("images", selection, seed), opened)


def shown_by(session: Session, evaluation: Evaluation, chosen: SelectedImages, seed: int) -> ClassNames:
    """The class names that an evaluation shows, looked up once."""
    return once(session, ("names", evaluation, seed), lambda: shown_names(session.dataset, evaluation.names, chosen)[0])


def contents_of(session: Session, selection: Selection, chosen: SelectedImages, seed: int) -> str:
    """The digest of selected images, computed once."""
    return once(session, ("contents", selection, seed), lambda: contents_digest(chosen.dataset, chosen.items))


def nearest_texts(backbone: Backbone, names: ClassNames) -> list[int]:
    """The position, for each of K class names, of the other one whose frozen text, in the templates of the dataset, has
    the largest cosine with its own; the first of equal ones."""
    templates = (names.template,) if isinstance(names.template, str) else names.template
    texts = FrozenTexts(backbone, templates, names).features()  # (K, D)
    cosines = (texts @ texts.T).fill_diagonal_(-torch.inf)
    return cosines.argmax(dim=1).tolist()


def names_digest(names: ClassNames) -> str:
    """SHA-256 over class names, in order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def sentences_digest(names: ClassNames) -> str:
    """SHA-256 over class names and the words around them."""
    return hashlib.sha256(f"{names_digest(names)} {names.template!r}".encode()).hexdigest()


def of_code(session: Session, run: Run) -> dict[str, str]:
    """Digests of what the method, the datasets, the scores, training and evaluation do."""
    trained = modules_of(session.dataset(run.plan.train.dataset).plugin)
    evaluated = set(modules_of(type(run.protocol)))
    for evaluation in run.plan.evaluations:
        evaluated.update(modules_of(session.dataset(evaluation.selection.dataset).plugin))
    for score in run.scores.values():
        evaluated.update(modules_of(type(score)))
    try:
        return {
            "method_code": code_digest(*modules_of(run.method)),
            "data_code": code_digest(*trained),
            "training_code": code_digest(TRAINING),
            "evaluation_code": code_digest(EVALUATION, *sorted(evaluated)),
        }
    except (OSError, SyntaxError) as error:
        raise UsageError(f"The code of a run cannot be read: {error}.") from error


def modules_of(cls: type) -> list[str]:
    """The modules of a plugin's class and of those that it inherits from, the framework's contract among them."""
    own = [base.__module__ for base in cls.__mro__ if base is not object and hasattr(base, "plugin_kind")]
    return sorted(set(own))


def backbone_digests(session: Session) -> tuple[str, str]:
    """Digests of the weights and of the architecture, of the backbone itself."""
    return session.backbone.weights_hash, session.backbone.architecture


def remembered_backbone(session: Session, may_load: bool = True) -> tuple[str, str]:
    """Digests of the weights and of the architecture as they are now; "" where they are not known.

    They are remembered for the files behind the backbone's name, by their places, sizes and times of change, so that
    the backbone is only loaded once for each state of them; a memo that was damaged counts as none. The weights behind
    a tag of open_clip never change.

    Args:
        may_load: Whether the backbone is loaded where nothing is remembered.
    """
    memo = once(session, "memo of the backbone", lambda: _memo(session.suite.backbone))
    if memo is None:
        return "", ""
    remembered = once(session, "backbone", lambda: _remembered(memo))
    if remembered is not None or not may_load:
        return remembered or ("", "")
    session.found["backbone"] = remember_backbone(session)
    return session.found["backbone"]  # type: ignore[no-any-return]


def remember_backbone(session: Session) -> tuple[str, str]:
    """Load the backbone, if it is not yet, and remember its digests; "" where that cannot be."""
    memo = _memo(session.suite.backbone)
    if memo is None:
        return "", ""
    try:
        found = backbone_digests(session)
    except UsageError:  # whoever needs the weights says so
        return "", ""
    line = f"{' '.join(found)} {_checksum(memo, *found)}\n"
    with suppress(OSError):
        write_atomically(memo, lambda file: file.write(line.encode()))
    return found


def _remembered(memo: Path) -> tuple[str, str] | None:
    """The digests in a memo; None where there is none, or it is not what was written for these files."""
    try:
        weights, architecture, checksum = memo.read_text(encoding="ascii").removesuffix("\n").split(" ")
    except (OSError, ValueError):
        return None
    return (weights, architecture) if checksum == _checksum(memo, weights, architecture) else None


def _checksum(memo: Path, *found: str) -> str:
    return hashlib.sha256(f"{memo.name} {' '.join(found)}".encode()).hexdigest()


def _memo(backbone: str) -> Path | None:
    """The file that remembers the digests of a backbone; None where no files are behind its name."""
    try:
        states = [state_of(path) for path in files_of(backbone)]
    except (OSError, UsageError):
        return None
    versions = library_versions()
    made_by = (versions["promptbench"], versions["open_clip"], versions["torch"], ARCHITECTURE)
    facts = repr((backbone, states, *made_by)).encode()
    return cache_dir() / "weights" / hashlib.sha256(facts).hexdigest()[:32] if states else None


PARTS = (of_training, of_evaluations, of_code)


def once(session: Session, what: Any, look: Callable[[], T]) -> T:
    """What `look` finds, found once in a session."""
    if what not in session.found:
        session.found[what] = look()
    return session.found[what]  # type: ignore[no-any-return]


@contextmanager
def as_it_was(deterministic: bool = False) -> Iterator[None]:
    """Within it, the process may be changed, and what is said may get lost; afterwards all of this is as it was.

    Args:
        deterministic: Whether it begins with torch being held to algorithms that give the same bits each time, also in
            processes that are started within it.
    """
    with ExitStack() as stack:
        for part in (keep_process, keep_python, keep_logging, keep_torch):
            part(stack)
        sys.stdout, sys.stderr = Quiet(sys.stdout), Quiet(sys.stderr)
        if deterministic:
            hold_to_bits(True)
        yield


def keep(stack: ExitStack, get: Callable[[], Any], put: Callable[[Any], object]) -> None:
    """At the end of a stack, something is put back if it is another one.

    Torch refuses to tell what was set in an old way and in a new one; then it is left alone, or put back in any case.
    """
    try:
        before = get()
    except RuntimeError:
        return

    def put_back() -> None:
        with suppress(RuntimeError):
            if get() == before:
                return
        put(before)

    stack.callback(put_back)


def keep_attribute(stack: ExitStack, owner: Any, name: str) -> None:
    """At the end of a stack, an attribute is put back; one that this version of a library lacks is none."""
    if hasattr(owner, name):
        keep(stack, partial(getattr, owner, name), partial(setattr, owner, name))


def keep_process(stack: ExitStack) -> None:
    """Folder, environment, locale and signal handlers."""
    with suppress(OSError):  # a folder that was removed
        stack.callback(enter, os.getcwd())
    keep(stack, lambda: dict(os.environ), put_environment)
    keep(stack, partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL))
    if threading.current_thread() is threading.main_thread():
        for number in signal.valid_signals():
            if signal.getsignal(number) is not None:  # else it is not Python's, which cannot put it back
                keep(stack, partial(signal.getsignal, number), partial(signal.signal, number))


def enter(folder: str) -> None:
    """Make a folder the current one again, if it is still there."""
    with suppress(OSError):
        os.chdir(folder)


def put_environment(before: Mapping[str, str]) -> None:
    """Give the environment the variables that it had."""
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def keep_python(stack: ExitStack) -> None:
    """Generators, what is done about odd numbers and warnings, and what in `sys` is there to be changed."""
    stack.callback(random.setstate, random.getstate())
    stack.callback(np.random.set_state, np.random.get_state())
    stack.callback(partial(np.seterr, **np.geterr()))
    keep(stack, sys.getrecursionlimit, sys.setrecursionlimit)
    for name in ("stdin", "stdout", "stderr", "excepthook", "argv", "path"):
        keep_attribute(stack, sys, name)
    for name in ("filters", "showwarning"):
        keep_attribute(stack, warnings, name)
    listed: Any
    for listed in (sys.argv, sys.path, warnings.filters):
        keep_list(stack, listed)


def keep_list(stack: ExitStack, listed: list[Any]) -> None:
    """At the end of a stack, a list holds what it held."""
    stack.callback(listed.__setitem__, slice(None), list(listed))


def keep_logging(stack: ExitStack) -> None:
    """What is logged, and where, by everybody and by promptbench."""
    stack.callback(logging.disable, logging.root.manager.disable)
    known = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]
    for logger in known:
        if logger is logging.root or logger.name.startswith("promptbench"):
            stack.callback(logger.setLevel, logger.level)
            keep_attribute(stack, logger, "disabled")
            keep_attribute(stack, logger, "propagate")
            keep_list(stack, logger.handlers)
            keep_list(stack, logger.filters)


def keep_torch(stack: ExitStack) -> None:
    """Defaults, threads, generators, gradients, autocast, and which algorithms are taken."""
    stack.enter_context(torch.inference_mode(False))  # which keeps all that decides about gradients
    stack.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    keep(stack, torch.get_default_dtype, torch.set_default_dtype)
    keep(stack, default_device, put_default_device)
    keep(stack, torch.get_num_threads, torch.set_num_threads)
    keep(stack, torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly)
    keep(stack, deterministic, lambda held: torch.use_deterministic_algorithms(held[0], warn_only=held[1]))
    keep(stack, flushes_denormal, torch.set_flush_denormal)
    keep_autocast(stack)
    keep_backends(stack)


def default_device() -> torch.device:
    """Where tensors are made."""
    return torch.empty(0).device


def put_default_device(device: torch.device) -> None:
    """Have tensors made there; on a CPU without a look at every call, which naming it would take."""
    torch.set_default_device(None if device.type == "cpu" else device)
    try:
        torch.get_default_device()
    except AttributeError:  # torch 2.4 does not know it any more
        torch.set_default_device(device)


def deterministic() -> tuple[bool, bool]:
    """Whether torch is held to deterministic algorithms, and whether it only warns where it has none."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def flushes_denormal() -> bool:
    """Whether the smallest numbers count as 0."""
    return not bool(torch.tensor([1e-310], dtype=torch.float64, device="cpu").mul(1.0))


def keep_autocast(stack: ExitStack) -> None:
    """The precision of matrix products, and of which devices."""
    stack.callback(torch.clear_autocast_cache)
    keep(stack, torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)
    for device in ("cpu", "cuda"):
        enabled, chosen = partial(torch.is_autocast_enabled, device), partial(torch.get_autocast_dtype, device)
        keep(stack, enabled, partial(torch.set_autocast_enabled, device))
        keep(stack, chosen, partial(torch.set_autocast_dtype, device))


def keep_backends(stack: ExitStack) -> None:
    """Which algorithms the libraries below torch take, and how exact those are."""
    of = torch.backends
    named = product((of.cudnn, of.mkldnn), ("matmul", "conv", "rnn"))
    parts = [getattr(library, name, None) for library, name in named]
    for owner in (of.cuda.matmul, *parts, of):  # put back from the last on: what is general comes first
        keep_attribute(stack, owner, "fp32_precision")
    for name in ("allow_tf32", "enabled", "benchmark", "deterministic"):
        keep_attribute(stack, of.cudnn, name)
    for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        keep_attribute(stack, of.cuda.matmul, name)
    keep_attribute(stack, of.mkldnn, "enabled")
    keep_attribute(stack, opt_einsum, "enabled")
    keep(stack, torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    keep(stack, of.cuda.flash_sdp_enabled, of.cuda.enable_flash_sdp)
    keep(stack, of.cuda.mem_efficient_sdp_enabled, of.cuda.enable_mem_efficient_sdp)
    keep(stack, of.cuda.math_sdp_enabled, of.cuda.enable_math_sdp)
    keep(stack, of.cuda.cudnn_sdp_enabled, of.cuda.enable_cudnn_sdp)


def asked_by_signal(error: BaseException) -> bool:
    """Whether an error was raised by the handler of a signal, such as that of a task whose time is over."""
    of_children = getattr(signal, "SIGCHLD", None)  # by which torch says that a loader process died
    handlers = [signal.getsignal(number) for number in signal.valid_signals() if number != of_children]
    codes = {code_of(handler) for handler in handlers if callable(handler)}
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return not codes.isdisjoint(frames)


def code_of(handler: Any) -> CodeType | None:
    """What runs when a handler is called; None where that is not Python."""
    return getattr(getattr(handler, "__func__", handler), "__code__", None)
