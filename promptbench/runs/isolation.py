"""What a run may change in its process and the next one must not find, and output that nobody reads.

The code of a method, of a dataset or of a library that they call may enter another folder, set defaults of torch, draw
from global generators or close what it prints to. Put back is what this module lists; modules that are patched, threads
and the backbone itself are not.
"""

from __future__ import annotations

import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any


class Quiet:
    """A text stream on which everything can be written, whether or not it arrives, and which cannot be closed.

    Args:
        stream: Where it goes, as long as that works; None for nowhere.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with suppress(OSError, ValueError, AttributeError):
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write, if that is possible."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def close(self) -> None:
        """Others still write."""

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return not getattr(self.stream, "closed", True) and bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def as_it_was() -> Iterator[None]:
    """Within it, the process may be changed, and what is said may get lost; afterwards all of this is as it was."""
    with ExitStack() as stack:
        for part in (keep_process, keep_python, keep_logging, keep_torch):
            part(stack)
        sys.stdout, sys.stderr = Quiet(sys.stdout), Quiet(sys.stderr)
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
    import numpy as np

    stack.callback(random.setstate, random.getstate())
    stack.callback(np.random.set_state, np.random.get_state())
    stack.callback(partial(np.seterr, **np.geterr()))
    stack.enter_context(warnings.catch_warnings())
    keep(stack, sys.getrecursionlimit, sys.setrecursionlimit)
    for name in ("stdin", "stdout", "stderr", "excepthook", "argv", "path"):
        keep_attribute(stack, sys, name)
    for listed in (sys.argv, sys.path):
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
    import torch

    stack.enter_context(torch.inference_mode(False))  # which keeps all that decides about gradients
    stack.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    keep(stack, torch.get_default_dtype, torch.set_default_dtype)
    keep(
        stack,
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    )
    keep(stack, torch.get_num_threads, torch.set_num_threads)
    keep(stack, torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly)
    keep(stack, deterministic, lambda held: torch.use_deterministic_algorithms(held[0], warn_only=held[1]))
    keep(stack, flushes_denormal, torch.set_flush_denormal)
    keep_autocast(stack)
    keep_backends(stack)


def deterministic() -> tuple[bool, bool]:
    """Whether torch is held to deterministic algorithms, and whether it only warns where it has none."""
    import torch

    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def flushes_denormal() -> bool:
    """Whether the smallest numbers count as 0."""
    import torch

    return not bool(torch.tensor([1e-310], dtype=torch.float64, device="cpu").mul(1.0))


def keep_autocast(stack: ExitStack) -> None:
    """The precision of matrix products, and of which devices."""
    import torch

    stack.callback(torch.clear_autocast_cache)
    keep(stack, torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)
    for device in ("cpu", "cuda"):
        enabled, chosen = partial(torch.is_autocast_enabled, device), partial(torch.get_autocast_dtype, device)
        keep(stack, enabled, partial(torch.set_autocast_enabled, device))
        keep(stack, chosen, partial(torch.set_autocast_dtype, device))


def keep_backends(stack: ExitStack) -> None:
    """Which algorithms the libraries below torch take, and how exact those are."""
    import torch
    from torch.backends import opt_einsum  # which torch 2.4 does not import itself

    of = torch.backends
    parts = [getattr(library, name, None) for library in (of.cudnn, of.mkldnn) for name in ("matmul", "conv", "rnn")]
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
