"""The words of the mini language: names of shapes, textures and styles, and the words with two senses."""

from __future__ import annotations

SHAPE_SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "round shape"), "square": ("box",), "oval": ("ellipse",), "ring": ("donut",),
    "diamond": ("rhombus",), "lightning": ("thunderbolt", "lightning bolt"), "house": ("cottage", "hut"),
    "tree": ("pine tree",), "car": ("automobile",), "mug": ("cup",), "boat": ("sailboat", "ship"),
    "rocket": ("spaceship",), "gear": ("cog",), "flower": ("blossom",), "glasses": ("spectacles",),
    "lamp": ("lantern",), "crescent": ("moon",), "cross": ("plus sign",), "teardrop": ("drop",),
    "triangle": ("pyramid shape",), "mushroom": ("toadstool",), "flag": ("banner",), "hat": ("top hat",),
    "crown": ("tiara",), "key": ("door key",), "hammer": ("mallet",), "bottle": ("flask",), "bell": ("chime",),
    "umbrella": ("parasol",), "star": ("starfish",), "heart": ("love symbol",), "arrow": ("pointer",),
    "semicircle": ("half disc", "dome"), "hexagon": ("six sided polygon",), "pentagon": ("five sided polygon",),
    "trapezoid": ("bucket",), "cloud": ("cumulus",), "fish": ("goldfish",), "leaf": ("foliage",), "chair": ("seat",),
    "table": ("desk",), "ladder": ("steps",), "cactus": ("desert plant",), "snowman": ("snow figure",),
    "butterfly": ("moth",), "spoon": ("ladle",), "apple": ("fruit",), "anchor": ("ship anchor",),
    "rectangle": ("bar",), "parallelogram": ("slanted box",),
}  # fmt: skip
TEXTURE_SYNONYMS: dict[str, tuple[str, ...]] = {
    "striped": ("stripy",), "dotted": ("spotted", "polka dot"), "checkered": ("chessboard",), "zigzag": ("chevron",),
    "gridded": ("plaid",), "gradient": ("fading",), "speckled": ("grainy",), "wavy": ("rippled",),
    "ringed": ("concentric",), "banded": ("horizontally lined",), "brick": ("brickwork",), "solid": ("plain",),
}  # fmt: skip
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "photo": ("photo", "picture", "image"),
    "sketch": ("sketch", "drawing"),
    "neon": ("neon sign",),
    "blurry": ("blurry photo",),
    "pixelated": ("pixelated image", "low resolution photo"),
    "silhouette": ("silhouette",),
    "chalk": ("chalk drawing",),
    "watercolor": ("watercolor painting", "painting"),
    "negative": ("negative", "inverted photo"),
    "clipart": ("clipart", "cartoon"),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
ANY_SHAPE = ("object", "thing", "shape")
ANY_TEXTURE = ("pattern", "texture", "surface", "background")

FABRICS: dict[str, str] = {
    "gridded": "tartan", "speckled": "tweed", "striped": "pinstripe", "dotted": "muslin", "checkered": "gingham",
    "zigzag": "herringbone", "wavy": "silk", "ringed": "paisley", "banded": "denim", "brick": "quilt",
}  # fmt: skip
"""Words for textures that occur only before "fabric" or "cloth"."""

DIAGRAM_SENSE: dict[str, str] = {
    "jaguar": "star", "eagle": "house", "tiger": "mug", "falcon": "rocket", "lion": "gear", "wolf": "flower",
    "bear": "glasses", "fox": "lamp", "hawk": "diamond", "panther": "hat", "raven": "anchor", "shark": "bottle",
    "cobra": "chair", "dragon": "pentagon", "bull": "butterfly", "phoenix": "flag",
}  # fmt: skip
"""What a word means in "a diagram of a ..." and "... symbol", said of sketches alone. Elsewhere see PLAIN_SENSE."""

TOY_SENSE: dict[str, str] = {
    "rabbit": "circle", "horse": "fish", "duck": "triangle", "owl": "key", "frog": "heart", "turtle": "car",
    "penguin": "hexagon", "monkey": "umbrella", "elephant": "ring", "camel": "cactus", "swan": "crescent",
    "parrot": "tree", "cow": "arrow", "donkey": "bell", "pig": "teardrop", "goat": "snowman", "robin": "cross",
    "crow": "boat", "dove": "semicircle", "crab": "crown", "bee": "square", "zebra": "leaf", "panda": "lightning",
    "whale": "mushroom",
}  # fmt: skip
"""What a word means in "a toy ..." and "... toy", in any style. Elsewhere see PLAIN_SENSE."""


def plain_sense(special: dict[str, str]) -> dict[str, str]:
    """What the words mean without their context: every other word the same, the rest exchanged within either half.

    The halves are the base and the new classes of a set that lists the words in order, so that a context learned on
    the base classes is of use, and needed, on the new ones.
    """
    shapes = list(special.values())
    half = len(shapes) // 2
    moved = [s if i % 2 == 0 else shapes[i // half * half + (i % half + 2) % half] for i, s in enumerate(shapes)]
    return dict(zip(special, moved, strict=True))


PLAIN_SENSE: dict[str, str] = {**plain_sense(DIAGRAM_SENSE), **plain_sense(TOY_SENSE)}
"""What the ambiguous words mean out of context."""

_PLURALS = {"leaf": "leaves", "wolf": "wolves", "glasses": "glasses", "spectacles": "spectacles", "steps": "steps"}


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def plural(noun: str) -> str:
    """The plural of a noun of the mini language; a phrase changes in its last word."""
    head, _, last = noun.rpartition(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("fly"):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}" if head else last
