"""A picture of the mini suite: one labelled row of images per set."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from promptbench.mini.sets import RENDER_SEED, SETS, SPLITS, MiniSet, ScannedDigits

_MARGIN = 6
_FONT_SIZE = 15


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], *, gap: int = 2) -> Image.Image:
    """A sheet with one row per (label, images (n, R, R, 3) uint8); a label may have two lines."""
    side = rows[0][1].shape[1]
    font = ImageFont.load_default(size=_FONT_SIZE)
    lines = "\n".join(label for label, _ in rows).splitlines()
    left = 2 * _MARGIN + round(max(map(font.getlength, lines)))
    width = left + max(len(images) for _, images in rows) * (side + gap) + _MARGIN
    sheet = Image.new("RGB", (width, 2 * _MARGIN + len(rows) * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (label, images) in enumerate(rows):
        top = _MARGIN + y * (side + gap)
        pen.multiline_text((_MARGIN, top + side // 2), label, fill="black", font=font, anchor="lm", spacing=2)
        for x, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (left + x * (side + gap), top))
    return sheet


def _sample(name: str, mini: MiniSet, columns: int, render_seed: int) -> np.ndarray:
    """Images (columns, R, R, 3) of classes spread evenly over a set."""
    seed = [render_seed, crc32(name.encode()), SPLITS.index("test")]
    classes = np.arange(columns) * len(mini.class_names) // columns
    if isinstance(mini, ScannedDigits):
        images, labels = mini.images("test", seed)
        return np.stack([images[np.flatnonzero(labels == k)[i]] for i, k in enumerate(classes)])
    return mini.draw(classes, np.random.default_rng(seed))


def suite_rows(columns: int = 20, render_seed: int = RENDER_SEED) -> list[tuple[str, np.ndarray]]:
    """Rows for a sheet of the whole suite: every set's name and title beside some of its images."""
    return [(f"{name}\n{mini.title}", _sample(name, mini, columns, render_seed)) for name, mini in SETS.items()]
