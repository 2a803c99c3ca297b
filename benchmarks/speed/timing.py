"""Timing pieces of work in turns, with a matrix product between them that says how fast the machine is just then."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .memory import memory

Piece = Callable[[], Any]
REPEATS = 3  # calls of a piece in one round, at most
TUNED = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 * 2**20)}
VARIABLES = ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


class Matmul:
    """A product of two square matrices in float32, 2 n^3 operations: what the machine can do."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.a, self.b = torch.randn(size, size), torch.randn(size, size)
        self.out = torch.empty(size, size)

    def __call__(self) -> None:
        """One product; the result stays where it is."""
        torch.mm(self.a, self.b, out=self.out)

    def rate(self, seconds: float) -> float:
        """GFLOP/s of a product that took so long."""
        return 2 * self.size**3 / seconds / 1e9

    def rates(self) -> list[float]:
        """GFLOP/s of a few products."""
        return [self.rate(seconds_of(self)) for _ in range(REPEATS)]


def seconds_of(piece: Piece) -> float:
    """Wall clock of one call."""
    began = time.perf_counter()
    piece()
    return time.perf_counter() - began


@dataclass(frozen=True)
class Turns:
    """How pieces of work take turns.

    Attributes:
        matmul: What is timed between them.
        rounds: How often all take their turn.
        turn: Seconds that a piece may take of a round, if it is to be called more than once in it.
        slow: Seconds of a piece that takes part in the first round alone.
    """

    matmul: Matmul
    rounds: int
    turn: float
    slow: float = float("inf")

    def take(self, pieces: Mapping[str, Piece]) -> dict[str, Any]:
        """Every piece once for itself, then all in turns, short ones several times a turn.

        Returns:
            `pieces`: by name, the first call (`first`, seconds; `peak_gib`, the memory it took) and the later ones
            (`seconds`); `matmul`: GFLOP/s, several a round.
        """
        timed: dict[str, dict[str, Any]] = {}
        for name, piece in pieces.items():
            first, peak = first_call(piece)
            timed[name] = {"first": first, "peak_gib": peak, "seconds": []}
        rates: list[float] = []
        for turn in range(self.rounds):
            for name, piece in pieces.items():
                if turn and timed[name]["first"] > self.slow:
                    continue
                for _ in range(max(1, min(REPEATS, int(self.turn / timed[name]["first"])))):
                    timed[name]["seconds"].append(seconds_of(piece))
                rates += self.matmul.rates()
        return {"pieces": timed, "matmul": rates}


def first_call(piece: Piece) -> tuple[float, float | None]:
    """Seconds of a call, and how far resident memory rose in it, GiB; None where the system does not say."""
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is that of the call
    except OSError:
        return seconds_of(piece), None
    before = memory("VmRSS")
    seconds = seconds_of(piece)
    return seconds, round(memory("VmHWM") - before, 3)


def give_back() -> None:
    """Has the C library return what is free, so that memory kept from earlier calls hides no peak."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def tune() -> None:
    """Has glibc keep large blocks instead of returning them after each operation; for the whole process."""
    libc = ctypes.CDLL(None)
    for option, value in TUNED.values():
        if not libc.mallopt(option, value):
            raise OSError("this C library takes no mallopt()")


def allocator(tuned: bool) -> str:
    """What serves both sides, which run in one process."""
    name = " ".join(platform.libc_ver()) or "unknown C library"
    given = [f"{variable}={os.environ[variable]}" for variable in VARIABLES if os.environ.get(variable)]
    settings = [f"mallopt {option}={value}" for option, (_, value) in TUNED.items()] if tuned else given
    return f"{name}, {', '.join(settings) or 'its default settings'}; the same for both sides, in one process"
