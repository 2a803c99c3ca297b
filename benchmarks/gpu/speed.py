"""Training steps of the speed benchmark on a GPU: plain beside ours, and how near they are to what the card can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from promptbench.benchmarks.speed.measure import OF_RECIPES
from promptbench.benchmarks.speed.ours import optimizer_of, our_step
from promptbench.benchmarks.speed.plain import PLAIN
from promptbench.benchmarks.speed.steps import Pair

from promptbench.clip.backbone import Backbone
from promptbench.clip.load import load_backbone
from promptbench.training.numerics import float32_in_full

from .part import Row, Setting, case, left_out

BACKBONES = ("ViT-B-16-quickgelu:random", "ViT-L-14-quickgelu:random")
CLASSES = (100, 1000)
METHODS = ("coop", "maple", "cocoop", "promptsrc", "vpt", "gallop", "clip_lora", "kgcoop", "tip_adapter_f")
CACHED = ("coop", "kgcoop", "tip_adapter_f")  # both sides train on kept image features
SECONDS = 0.5  # that the calls of a step may take together, the first ones apart
CALLS = 20  # of a step, at most
DEADLINE = 80  # seconds after which no other step is begun
GRAPHED = ("coop", 100)  # the step whose launches are looked at


class Card:
    """The device and the rate of its own matrix product.

    Attributes:
        rate: FLOP/s of a product of two square matrices in float32, TF32 off.
    """

    def __init__(self, device: str, size: int) -> None:
        self.device = device
        a, b = torch.randn(2, size, size, device=device)
        a @ b  # the library is loaded
        self.rate = 2 * size**3 / statistics.median(self.time(lambda: a @ b))

    def wait(self) -> None:
        """Until everything is done."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def time(self, piece: Callable[[], Any]) -> list[float]:
        """Seconds of several calls."""
        found = [self.once(piece)]
        while len(found) < CALLS and sum(found) < SECONDS:
            found.append(self.once(piece))
        return found

    def once(self, piece: Callable[[], Any]) -> float:
        """Seconds of one call, to its end on the device."""
        self.wait()
        began = time.perf_counter()
        piece()
        self.wait()
        return time.perf_counter() - began

    def time_and_peak(self, piece: Callable[[], Any]) -> tuple[list[float], float | None]:
        """Seconds of several calls, and the GiB that they take besides what is there; None on a CPU."""
        if not self.device.startswith("cuda"):
            return self.time(piece), None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        seconds = self.time(piece)
        return seconds, round((torch.cuda.max_memory_allocated(self.device) - before) / 2**30, 3)


def steps(setting: Setting) -> Iterator[Row]:
    """Plain and ours, method by method, on ever larger backbones and numbers of classes, as far as time goes."""
    float32_in_full()
    began = time.perf_counter()
    card = Card(setting.device, 512 if setting.short else 8192)
    yield {"what": "matrix product", "passed": True, "tflops": card.rate / 1e12}
    names, sizes, methods = (("mini",), (4,), METHODS[:1]) if setting.short else (BACKBONES, CLASSES, METHODS)
    backbones = [load_backbone(name).to(setting.device) for name in names]
    for classes, backbone, label in product(sizes, backbones, methods):
        if time.perf_counter() - began > DEADLINE:
            yield left_out(f"{backbone.name}, {classes} classes, {label}", "no time left")
        else:
            yield from both(card, backbone, label, classes)


def both(card: Card, backbone: Backbone, label: str, classes: int) -> Iterator[Row]:
    """The rows of our step and the plain one."""
    batch, cached = OF_RECIPES[label], label in CACHED
    what = f"{backbone.name}, {classes} classes, {label}"
    pairs: list[Pair] = []

    def ours() -> Row:
        pairs.append(Pair(label, backbone, classes, batch))
        return measured(card, pairs[0].our_piece(batch, cached), batch)

    def plain() -> Row:
        try:
            return measured(card, pairs[0].plain_piece(batch, cached), batch)
        except torch.cuda.OutOfMemoryError:
            return {"passed": None, "left_out": "out of memory"}

    yield case(f"{what}, ours", ours)
    if label not in PLAIN or not pairs:
        yield left_out(f"{what}, plain", "there is none, or ours failed")
        return
    yield case(f"{what}, plain", plain)


def measured(card: Card, step: Callable[[], Any], images: int) -> Row:
    """Seconds of a step, images a second, its FLOP/s over those of the matrix product, and its memory."""
    from torch.utils.flop_counter import FlopCounterMode

    step()  # what is computed once, is
    with FlopCounterMode(display=False) as counter:
        step()
    calls, peak = card.time_and_peak(step)
    seconds, work = statistics.median(calls), counter.get_total_flops()
    return {
        "milliseconds": round(1000 * seconds, 3),
        "images_per_second": round(images / seconds, 1),
        "gflop": round(work / 1e9, 3),
        "of_matrix_product": round(work / seconds / card.rate, 4),
        "peak_gib": peak,
    }


# Launches -------------------------------------------------------------------------------------------------------------


def launches(setting: Setting) -> Iterator[Row]:
    """A step on cached features, which is many small operations: as it is, and as a CUDA graph."""
    card, pair = of_many_kernels(setting)
    label = pair.label
    eager = pair.our_piece(OF_RECIPES[label], cached=True)
    yield case("eager", partial(measured, card, eager, OF_RECIPES[label]))
    yield case("kernels", partial(kernels, card, eager))
    yield case("CUDA graph", partial(graphed, card, pair)) if setting.on_gpu else left_out("CUDA graph")


def compilation(setting: Setting) -> Iterator[Row]:
    """The same step by `torch.compile`."""
    if not setting.on_gpu:
        yield left_out("torch.compile")
        return
    card, pair = of_many_kernels(setting)
    yield case("torch.compile", partial(compiled, card, pair))


def of_many_kernels(setting: Setting) -> tuple[Card, Pair]:
    """The card, and CoOp with as many classes as a step of small kernels has."""
    float32_in_full()
    card = Card(setting.device, 512 if setting.short else 8192)
    label, classes = ("coop", 4) if setting.short else GRAPHED
    backbone = load_backbone("mini" if setting.short else BACKBONES[0]).to(setting.device)
    return card, Pair(label, backbone, classes, OF_RECIPES[label])


def kernels(card: Card, step: Callable[[], Any]) -> Row:
    """How many operations of torch a step has, and on a GPU how many kernels and for how long they run."""
    from torch.profiler import DeviceType, ProfilerActivity, profile

    on_gpu = card.device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        step()
        card.wait()
    events = profiled.events() or []
    on_card = [event for event in events if event.device_type == DeviceType.CUDA]
    return {
        "operations": sum(event.name.startswith("aten::") for event in events),
        "kernels": len(on_card),
        "busy_milliseconds": round(sum(event.device_time_total for event in on_card) / 1000, 3),
    }


def graphed(card: Card, pair: Pair) -> Row:
    """The whole step, optimiser included, captured once and replayed; it moves the learned tensors as the step does."""
    batch = OF_RECIPES[pair.label]
    images, labels, optimizer = pair.images(batch, cached=True), pair.labels[:batch], optimizer_of(pair.parameters)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            our_step(pair.method, images, labels, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        our_step(pair.method, images, labels, optimizer)
    found = measured_calls(card, graph.replay, batch)
    before = [parameter.detach().clone() for parameter in pair.parameters]
    graph.replay()
    card.wait()
    moved = any(not torch.equal(*tensors) for tensors in zip(pair.parameters, before, strict=True))
    return {"passed": moved, **found}


def compiled(card: Card, pair: Pair) -> Row:
    """The step with its loss compiled; the compilation apart."""
    batch = OF_RECIPES[pair.label]
    images, labels, optimizer = pair.images(batch, cached=True), pair.labels[:batch], optimizer_of(pair.parameters)
    loss = torch.compile(pair.method.loss, mode="reduce-overhead")

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        torch.stack(list(loss(images, labels).values())).sum().backward()
        optimizer.step()

    compilation = card.once(step)
    step()
    return {**measured_calls(card, step, batch), "compilation": compilation}


def measured_calls(card: Card, step: Callable[[], Any], images: int) -> Row:
    """Seconds of a step whose operations cannot be counted."""
    seconds = statistics.median(card.time(step))
    return {"milliseconds": round(1000 * seconds, 3), "images_per_second": round(images / seconds, 1)}
