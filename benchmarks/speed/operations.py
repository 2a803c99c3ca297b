"""Where the time of a step goes, by kind of operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KINDS: dict[str, tuple[str, ...]] = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "mkldnn", "_mkl", "dot", "mv"),
    "attention": ("_scaled_dot_product", "_softmax", "scaled_dot_product"),
    "pointwise": ("silu", "sigmoid", "gelu", "native_layer_norm", "add", "mul", "div", "dropout", "bernoulli", "sub"),
    "copies": ("copy", "cat", "clone", "index", "gather", "contiguous", "fill", "zero", "embedding", "take", "scatter"),
}
"""Kind -> beginnings of the names that torch gives its operations. The rest is `other`: views, autograd's own work."""


def kind_of(name: str) -> str:
    """The kind of an operation as the profiler calls it, `aten::addmm`."""
    name = name.removeprefix("aten::")
    for kind, beginnings in KINDS.items():
        if name.startswith(beginnings):
            return kind
    return "other"


def shares(step: Callable[[], Any]) -> dict[str, float]:
    """Percent of one call's time by kind of operation, of the threads that issue them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    found = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in seen.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(found.values()) or 1.0
    return {kind: round(100 * time / total, 1) for kind, time in found.items()}
