"""Our methods against the numbers of the official implementations, on the small CLIP.

`golden/<case>.npz` holds learned tensors as the authors' code saved them (`learned/<name>`) and what it computed with
them: `logits` and `new_logits` of other class names, `loss`, its gradients (`grad/<name>`), and the losses before each
of three steps of SGD (learning rate 0.002, momentum 0.9). GalLoP's logits are the mean of its two kinds of cosines,
scaled. `clip.npz` holds features of the plain CLIP, `transform.npz` an image and what evaluation makes of it.

They are those of a small CLIP whose weights are a formula of a seed, and of images that go with it. With
z = default_rng([seed, crc32(name)]).standard_normal(shape) for the key `name` of the state dict, a weight is

    ln(30)                      logit_scale
    1 + 0.1 z, 0.1 z            weight and bias of a LayerNorm
    0.5 z                       embeddings of tokens and of the class, positions of the image tower
    0.25 z                      positions of the text tower
    z / sqrt(shape[0])          the projections
    0.1 z                       any other bias
    1.5 z / sqrt(shape[1])      weights of attention's input
    z / sqrt(prod(shape[1:]))   the rest
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptbench.checkpoints.official import official_parameters
from promptbench.checks.installation.report import FAIL, PASS, Check
from promptbench.clip.backbone import Backbone
from promptbench.clip.load import load_backbone
from promptbench.data.transforms import EvaluationTransform
from promptbench.method import Method, create_method

SEED = 7101
CLASS_NAMES = (
    "golden retriever",
    "pizza",
    "Boeing 737-800",
    "annual crop land",
    "apply eye makeup",
    "bishop of llandaff",
    "faux leather",
    "abyssinian",
    "jack-o'-lantern",
    "forget-me-not",
    "hors d'oeuvre",
    "sea_lion",
)
NEW_CLASS_NAMES = (
    "tiger cat",
    "2012 Ferrari 458 Italia Coupe",
    "black-and-tan coonhound",
    "highway or road",
    "Shar-Pei",
)
LABELS = (2, 0, 11, 5, 7, 2)


def small_backbone(seed: int = SEED) -> Backbone:
    """The CLIP of the reference numbers, float32, on the CPU."""
    config = resources.files("promptbench.checks.installation").joinpath("small-clip.json")
    backbone: Backbone = load_backbone(f"{config}:random")
    state = backbone.clip.state_dict()
    backbone.clip.load_state_dict({name: weight(name, tuple(tensor.shape), seed) for name, tensor in state.items()})
    return backbone


def weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The tensor that the recipe gives to the key `name` of the state dict, float32."""
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    owner, _, kind = name.rpartition(".")
    if name == "logit_scale":
        value = np.full(shape, math.log(30))
    elif owner.rpartition(".")[2] in {"ln_1", "ln_2", "ln_pre", "ln_post", "ln_final"}:
        value = 0.1 * noise + (kind == "weight")
    elif name in {"token_embedding.weight", "visual.class_embedding", "visual.positional_embedding"}:
        value = 0.5 * noise
    elif name == "positional_embedding":
        value = 0.25 * noise
    elif name in {"visual.proj", "text_projection"}:
        value = noise * shape[0] ** -0.5
    elif name.endswith("bias"):
        value = 0.1 * noise
    elif name.endswith(".attn.in_proj_weight"):
        value = 1.5 * noise * shape[1] ** -0.5
    else:
        value = noise * math.prod(shape[1:]) ** -0.5
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def build_images(seed: int = SEED, count: int = 6, resolution: int = 32) -> Tensor:
    """(count, 3, resolution, resolution) float32 standard normal noise, as it enters the image tower."""
    shape = (count, 3, resolution, resolution)
    return torch.from_numpy(np.random.default_rng([seed, 1]).standard_normal(shape).astype(np.float32))


FEATURES = 1e-5  # how far apart features may be, and so on
LOGITS = 1e-4
LOSS = 2e-5
GRADIENT = 1e-4
TRANSFORM = 1e-6
MOMENTUM = 0.9
LEARNING_RATE = 0.002
STEPS = 3

Numbers = Mapping[str, Tensor]


class Case(NamedTuple):
    """A method as its authors' code was run, and the weight decay of the three steps."""

    method: str
    config: Mapping[str, Any]
    weight_decay: float = 5e-4


CASES: Mapping[str, Case] = {
    "coop_end_init": Case("coop", {"n_ctx": 4, "ctx_init": "a photo of a", "class_token_position": "end"}),
    "coop_middle_16": Case("coop", {"n_ctx": 16, "ctx_init": "", "class_token_position": "middle"}),
    "cocoop_init4": Case("cocoop", {"n_ctx": 4, "ctx_init": "a photo of a"}),
    "vpt_d3": Case("vpt", {"n_ctx": 4, "depth": 3}),
    "maple_d3": Case("maple", {"n_ctx": 2, "ctx_init": "a photo of a", "depth": 3}),
    "gallop_g4l4": Case("gallop", {"n_global": 4, "n_local": 4, "topk": (2, 4, 6, 8), "dropout": None}, 1e-2),
}


def check_parity() -> Iterator[Check]:
    """All comparisons with reference numbers, on the CPU in float32."""
    backbone = small_backbone()
    yield from _attempt("transform of an image", _transform, backbone)
    yield from _attempt("CLIP", _plain, backbone)
    for name in CASES:
        yield from _attempt(name, check_case, name, backbone)


def check_case(name: str, backbone: Backbone) -> list[Check]:
    """One method against its reference numbers."""
    case = CASES[name]
    stored = read(name)
    images = build_images()
    labels = torch.tensor(LABELS)
    method = create_method(case.method, backbone, CLASS_NAMES, **case.config)
    learned = official_parameters(method)
    with torch.no_grad():
        for key, parameter in learned.items():
            parameter.copy_(stored[f"learned/{key}"])
        logits = method(images).logits
        method.set_classes(NEW_CLASS_NAMES)
        new_logits = method(images).logits
        method.set_classes(CLASS_NAMES)
    losses, gradients = three_steps(method, images, labels, case.weight_decay)
    apart = max(_apart(gradients[key], stored[f"grad/{key}"], relative=True) for key in learned)
    return [
        _within(f"{name}, logits", _apart(logits, stored["logits"]), LOGITS),
        _within(f"{name}, logits of new classes", _apart(new_logits, stored["new_logits"]), LOGITS),
        _within(f"{name}, loss", _apart(losses[0], stored["loss"]), LOSS),
        _within(f"{name}, gradients, parts of the largest", apart, GRADIENT),
        _within(f"{name}, losses of three steps", _apart(losses, stored["losses"]), LOSS),
    ]


def three_steps(
    method: Method, images: Tensor, labels: Tensor, weight_decay: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses (3,) before each of three steps, and the gradients of the first by their official names."""
    learned = official_parameters(method)
    losses: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    optimizer = torch.optim.SGD(
        method.parameter_groups(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=weight_decay
    )
    for step in range(STEPS):
        loss = torch.stack(list(method.loss(images, labels).values())).sum()
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {name: _gradient(parameter) for name, parameter in learned.items()}
        optimizer.step()
    return torch.stack(losses), gradients


def read(name: str) -> Numbers:
    """The stored numbers of a case."""
    path = resources.files("promptbench.checks.installation").joinpath("golden").joinpath(f"{name}.npz")
    with path.open("rb") as file, np.load(file) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def _plain(backbone: Backbone) -> list[Check]:
    """The features that both towers give without prompts, against those of the official CLIP."""
    stored = read("clip")
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASS_NAMES]
    with torch.no_grad():
        tokens = backbone.embed_text(texts)
        text = backbone.encode_text(tokens.embeddings, tokens.eot)
        image = backbone.encode_image(build_images()).cls
    return [
        _within("CLIP, image features", _apart(image, stored["encode_image"]), FEATURES),
        _within("CLIP, text features", _apart(text, stored["encode_text"]), FEATURES),
    ]


def _transform(backbone: Backbone) -> list[Check]:
    """An image resized, cropped and normalised by the Pillow and torchvision here; decoding is left out."""
    stored = read("transform")
    transform = EvaluationTransform(backbone.resolution, mean=backbone.mean, std=backbone.std)
    tensor = transform(Image.fromarray(stored["image_uint8"].numpy()))
    return [_within("transform of an image", _apart(tensor, stored["tensor"]), TRANSFORM)]


def _attempt(what: str, check: Callable[..., list[Check]], *arguments: object) -> list[Check]:
    """What a check finds, or one that failed where the code here raises."""
    try:
        return check(*arguments)
    except Exception as error:  # whatever a version of a library does differently
        return [Check(part="parity", what=what, outcome=FAIL, why=f"{type(error).__name__}: {error}")]


def _within(what: str, difference: float, tolerance: float) -> Check:
    """A largest difference, which has to be 0 up to rounding."""
    outcome = PASS if difference <= tolerance else FAIL
    return Check(part="parity", what=what, outcome=outcome, measured=difference, expected=0, tolerance=tolerance)


def _apart(measured: Tensor, stored: Tensor, relative: bool = False) -> float:
    """The largest difference of two tensors of the same shape, or its part of the largest stored entry."""
    if measured.shape != stored.shape:
        raise ValueError(f"{tuple(measured.shape)} numbers, not {tuple(stored.shape)}")
    largest = float((measured.detach().double() - stored.double()).abs().max())
    if not math.isfinite(largest):
        raise ValueError("there are numbers that are not finite")
    return largest / float(stored.abs().max()) if relative else largest


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ValueError("a learned tensor has no gradient")
    return parameter.grad.clone()
