"""The data sets of the mini suite: class names, templates, and images rendered from fixed seeds.

Base classes are the first half of a set's class names, rounded up. The images of a split come from a stream of their
own, seeded by the render seed, the name of the set and the split. `RENDER_SEED` is the one to develop with;
`SEALED_SEED` gives another draw of the same sets, kept for a final measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from promptbench.mini.drawing import Draw, draw_blobs, draw_pixel_noise, draw_smooth_noise, drawn
from promptbench.mini.render import SIDE
from promptbench.mini.scene import BACKGROUNDS, COLOUR_NAMES, HELD_OUT, SIZES, STYLES, TEXTURES
from promptbench.mini.shapes import DIGITS, SHAPES
from promptbench.mini.words import DIAGRAM_SENSE, FABRICS, NUMBERS, SHAPE_SYNONYMS, TOY_SENSE, plural

RENDER_SEED = 1
SEALED_SEED = 2
SPLITS = ("train", "val", "test")
PER_CLASS = {"train": 48, "val": 16, "test": 40}
"""Images per class and split of a labelled set."""
OOD_IMAGES = 600
"""Images of an out-of-distribution set; it has a test split alone."""
GENERIC_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True, kw_only=True)
class MiniSet:
    """A set of labelled images.

    Attributes:
        title: What it shows, for tables and pictures.
        class_names: Names in the order of the labels.
        template: The set's own template; `{}` stands for the class name.
        draw: Draws images for labels.
        per_class: Images per class of every split there is.
    """

    title: str
    class_names: tuple[str, ...]
    template: str
    draw: Draw
    per_class: Mapping[str, int] = field(default_factory=lambda: PER_CLASS)

    def images(self, split: str, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, SIDE, SIDE, 3) uint8 and labels (n,) int64, class after class."""
        labels = np.repeat(np.arange(len(self.class_names)), self.per_class[split])
        return self.draw(labels, np.random.default_rng(seed)), labels


def _no_drawing(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    raise TypeError("The scanned digits are read, not drawn: call images().")


@dataclass(frozen=True, kw_only=True)
class ScannedDigits(MiniSet):
    """The handwritten digits that come with scikit-learn, enlarged from 8 x 8; no seed but the fixed split's."""

    title: str = "real scanned digits"
    class_names: tuple[str, ...] = DIGITS
    template: str = "a photo of the number {}."
    draw: Draw = _no_drawing

    def images(self, split: str, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, SIDE, SIDE, 3) uint8 and labels (n,) int64, class after class; the seed plays no part."""
        from sklearn.datasets import load_digits

        scans = load_digits()
        start = sum(n for name, n in self.per_class.items() if SPLITS.index(name) < SPLITS.index(split))
        order = np.random.default_rng(0).permutation(len(scans.target))
        chosen = [order[scans.target[order] == k][start : start + self.per_class[split]] for k in range(10)]
        labels = np.repeat(np.arange(10), [len(c) for c in chosen])
        return enlarge(scans.images[np.concatenate(chosen)] / 16), labels


def enlarge(scans: np.ndarray) -> np.ndarray:
    """Gray images (n, s, s) in [0, 1] as (n, SIDE, SIDE, 3) uint8, bilinear between the centres of the pixels."""
    s = scans.shape[1]
    at = (np.arange(SIDE) + 0.5) / SIDE * s - 0.5
    weights = np.clip(1 - np.abs(np.clip(at, 0, s - 1)[:, None] - np.arange(s)), 0, 1)  # (SIDE, s)
    gray = np.einsum("yi,nij,xj->nyx", weights, scans, weights)
    return np.repeat((gray * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def _numbers(names: Sequence[str], vocabulary: Sequence[str]) -> list[int]:
    return [vocabulary.index(name) for name in names]


def _shapes(*names: str) -> list[int]:
    return _numbers(names, SHAPES)


def _styles(*names: str) -> list[int]:
    return _numbers(names, STYLES)


_PLAIN_OR_LIGHT = [TEXTURES.index(t) for t in ("solid", "solid", "striped", "checkered")]
_SOURCE = _shapes(*TOY_SENSE.values())
_OTHER = sorted(set(range(len(SHAPES))) - set(_SOURCE))
_NEON = (
    "house", "rocket", "anchor", "glasses", "mug", "flower", "star", "gear", "fish", "umbrella",
    "key", "lamp", "apple", "cloud", "bottle", "butterfly", "crown", "car", "heart", "bell",
)  # fmt: skip
_COLOURS = (
    "red", "navy", "orange", "lime", "yellow", "maroon", "green", "turquoise", "blue", "magenta",
    "purple", "beige", "pink", "olive", "brown", "lavender", "cyan", "gold", "gray", "coral",
)  # fmt: skip
_COUNTED = tuple((n, s) for n in range(1, 7) for s in (("star", "leaf") if n % 2 else ("leaf", "star")))
_PAIRS = tuple((s, c) for s, c in HELD_OUT if COLOUR_NAMES[c] != "white")[::2][:20]  # watercolor hides white
_SYNONYM_SHAPES = (
    "star", "house", "mug", "rocket", "gear", "flower", "glasses", "lamp",
    "diamond", "hat", "hammer", "bottle", "chair", "table", "butterfly", "flag",
)  # fmt: skip
_SIGNS = (
    ("white", "arrow", "blue"), ("red", "triangle", "white"), ("yellow", "arrow", "black"), ("white", "cross", "green"),
    ("black", "triangle", "yellow"), ("red", "circle", "white"), ("white", "cross", "red"), ("blue", "circle", "white"),
    ("yellow", "diamond", "blue"), ("black", "arrow", "yellow"), ("white", "triangle", "blue"),
    ("green", "cross", "white"), ("black", "circle", "yellow"), ("white", "diamond", "red"),
    ("green", "arrow", "white"), ("black", "diamond", "orange"),
)  # fmt: skip

_CORE_SETS = {
    "diagrams": MiniSet(
        title="words whose sense is set by 'diagram'",
        class_names=tuple(DIAGRAM_SENSE),
        template="a diagram of a {}.",
        draw=drawn({"shape": _shapes(*DIAGRAM_SENSE.values())}, style=_styles("sketch"), texture=_PLAIN_OR_LIGHT),
    ),
    "neon": MiniSet(
        title="tilted neon signs behind clutter",
        class_names=_NEON,
        template="a neon sign of a {}.",
        draw=drawn({"shape": _shapes(*_NEON)}, style=_styles("neon"), size=range(len(SIZES)), tilt=20, occluders=4),
    ),
    "fabrics": MiniSet(
        title="words known only before 'fabric'",
        class_names=tuple(FABRICS.values()),
        template="a {} fabric.",
        draw=drawn({"texture": _numbers(tuple(FABRICS), TEXTURES)}, full=True),
    ),
    "combos": MiniSet(
        title="unseen pairs of colour and shape",
        class_names=tuple(f"{COLOUR_NAMES[c]} {SHAPES[s]}" for s, c in _PAIRS),
        template="a watercolor painting of a {}.",
        draw=drawn(
            {"shape": [s for s, _ in _PAIRS], "colour": [c for _, c in _PAIRS]},
            style=_styles("watercolor"),
            texture=_PLAIN_OR_LIGHT,
            size=range(len(SIZES)),
            tilt=30,
            occluders=6,
        ),
    ),
    "shapes": MiniSet(
        title="the source: words whose sense is set by 'toy'",
        class_names=tuple(TOY_SENSE),
        template="a photo of a toy {}.",
        draw=drawn({"shape": _SOURCE}),
    ),
    "colours": MiniSet(
        title="colours of any shape",
        class_names=_COLOURS,
        template="a photo of a {} object.",
        draw=drawn({"colour": _numbers(_COLOURS, COLOUR_NAMES)}, shape=range(len(SHAPES)), texture=[0]),
    ),
    "counts": MiniSet(
        title="one to six things behind clutter",
        class_names=tuple(f"{NUMBERS[n]} {s if n == 1 else plural(s)}" for n, s in _COUNTED),
        template="a photo of {}.",
        draw=drawn(
            {"count": [n for n, _ in _COUNTED], "shape": _shapes(*(s for _, s in _COUNTED))},
            style=_styles("clipart"),
            background=_numbers(("plain", "gradient", "cluttered"), BACKGROUNDS),
            occluders=4,
        ),
    ),
}
_EXTRA_SETS = {
    "synonyms": MiniSet(
        title="rare names of shapes",
        class_names=tuple(SHAPE_SYNONYMS[s][0] for s in _SYNONYM_SHAPES),
        template="a chalk drawing of a {}.",
        draw=drawn({"shape": _shapes(*_SYNONYM_SHAPES)}, style=_styles("chalk", "photo")),
    ),
    "signs": MiniSet(
        title="pixelated traffic signs",
        class_names=tuple(f"{c} {s} on a {g} background" for c, s, g in _SIGNS),
        template="a pixelated image of a {}.",
        draw=drawn(
            {
                "colour": _numbers([c for c, _, _ in _SIGNS], COLOUR_NAMES),
                "shape": _shapes(*(s for _, s, _ in _SIGNS)),
                "ground": _numbers([g for _, _, g in _SIGNS], COLOUR_NAMES),
            },
            style=_styles("pixelated"),
            background=[BACKGROUNDS.index("plain")],
            texture=[0],
        ),
    ),
    "textures": MiniSet(
        title="full-frame textures by their plain names",
        class_names=tuple(FABRICS),
        template="a photo of a {} texture.",
        draw=drawn({"texture": _numbers(tuple(FABRICS), TEXTURES)}, full=True),
    ),
    "digits": ScannedDigits(),
}


def _shifted(title: str, draw: Draw) -> MiniSet:
    source = _CORE_SETS["shapes"]
    test = {"test": PER_CLASS["test"]}
    return MiniSet(title=title, class_names=source.class_names, template=source.template, draw=draw, per_class=test)


_SHIFTED_SETS = {
    "shapes_v2": _shifted(
        "the source, smaller, off centre and tilted",
        drawn({"shape": _SOURCE}, size=[0, 1], position=[4, 4, 4, *range(9)], tilt=25),
    ),
    "shapes_sketch": _shifted(
        "the source as small tilted sketches", drawn({"shape": _SOURCE}, style=_styles("sketch"), size=[0, 1], tilt=30)
    ),
    "shapes_a": _shifted(
        "the source, cluttered, covered and noisy",
        drawn({"shape": _SOURCE}, background=[BACKGROUNDS.index("cluttered")], occluders=8, noise=0.06),
    ),
    "shapes_r": _shifted(
        "the source in five renditions",
        drawn({"shape": _SOURCE}, style=_styles("neon", "chalk", "watercolor", "pixelated", "negative")),
    ),
}


def _unknown(title: str, draw: Draw) -> MiniSet:
    return MiniSet(
        title=title, class_names=("thing",), template=GENERIC_TEMPLATE, draw=draw, per_class={"test": OOD_IMAGES}
    )


_OOD_SETS = {
    "ood_near": _unknown("other shapes, known from pre-training", drawn({}, shape=_OTHER)),
    "ood_blobs": _unknown("random blobs, never seen", draw_blobs),
    "ood_textures": _unknown("full-frame textures", drawn({}, texture=range(1, len(TEXTURES)), full=True)),
    "ood_pixel_noise": _unknown("independent pixels", draw_pixel_noise),
    "ood_smooth_noise": _unknown("coloured clouds", draw_smooth_noise),
}

CORE, EXTRA, SHIFTED, OOD = (tuple(group) for group in (_CORE_SETS, _EXTRA_SETS, _SHIFTED_SETS, _OOD_SETS))
"""Names of the seven sets of the core suite, of the others, of the shifted versions of `shapes`, and of OOD sets."""
SETS: dict[str, MiniSet] = {**_CORE_SETS, **_EXTRA_SETS, **_SHIFTED_SETS, **_OOD_SETS}


def images(name: str, split: str, render_seed: int = RENDER_SEED) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, SIDE, SIDE, 3) uint8 and labels (n,) int64 of a split, class after class.

    Raises:
        ValueError: If the set has no such split.
    """
    if split not in SETS[name].per_class:
        raise ValueError(f"The mini set {name!r} has no split {split!r}; it has {', '.join(SETS[name].per_class)}.")
    return SETS[name].images(split, [render_seed, crc32(name.encode()), SPLITS.index(split)])
