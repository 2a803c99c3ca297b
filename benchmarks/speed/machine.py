"""What a timing was taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from promptbench.storage.versions import git_commit, library_versions, utc_now


def facts() -> dict[str, Any]:
    """Processor, cores, memory, libraries, commit and time."""
    return {
        "processor": processor(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
        "versions": library_versions(),
        "commit": git_commit(),
        "created": utc_now(),
    }


def processor() -> str:
    """Its name as Linux gives it, or what the platform knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory() -> float | None:
    """Physical memory, GiB; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
