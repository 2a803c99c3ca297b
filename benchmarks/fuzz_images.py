"""Images that are none, or not quite, and those whose size no memory holds."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from promptbench.benchmarks.fuzz_changes import Draw, damaged

_NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def image_bytes(draw: Draw) -> bytes:
    """An image that is none, or not quite."""
    stream = io.BytesIO()
    kind = draw(st.sampled_from(("PNG", "JPEG", "GIF", "TIFF", "WEBP", "PPM", "BMP", "ICO", "JPEG2000")))
    mode = draw(st.sampled_from(("RGB", "L", "P", "1", "I;16" if kind in ("PNG", "TIFF") else "RGB")))
    image = Image.new("I;16", (16, 16), 700) if mode == "I;16" else Image.fromarray(_NOISE).convert(mode)
    try:
        image.save(stream, kind)
    except (OSError, ValueError):  # not every format has every mode
        image.convert("RGB").save(stream, kind)
    how = draw(st.integers(0, 6))
    if how == 0:
        return png_bomb(draw(st.sampled_from((20_000, 100_000, 2**31 - 1))), draw(st.sampled_from((1, 8))))
    if how == 1:
        texts = (
            b"",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            b"<svg/>",
            b"GIF89a",
            b"P6 9999999 9999999 255\n",
        )
        return draw(st.sampled_from(texts))
    return damaged(draw, stream.getvalue()) if how > 2 else stream.getvalue()


def png_bomb(side: int, depth: int, whole: bool = False) -> bytes:
    """A small PNG that says it has `side` by `side` grey pixels of `depth` bits; all of them are there if `whole`."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    line = b"\0" * min(10**6, (side * depth + 7) // 8 + 1)
    packed = zlib.compressobj()
    body = b"".join(packed.compress(line) for _ in range(side if whole else 16)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def gif_bomb(side: int) -> bytes:
    """A GIF with a screen of `side` by `side` pixels and a picture of one."""
    stream = io.BytesIO()
    Image.new("P", (1, 1)).save(stream, "GIF")
    held = bytearray(stream.getvalue())
    held[6:10] = struct.pack("<HH", side, side)
    return bytes(held)


def tiff_bomb(side: int) -> bytes:
    """A deflated TIFF of `side` by `side` grey pixels, all there."""
    stream = io.BytesIO()
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        Image.new("L", (side, side)).save(stream, "TIFF", compression="tiff_adobe_deflate")
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return stream.getvalue()


def bomb(name: str) -> bytes:
    """A decompression bomb: `png 8 bit 13000` has so many pixels on a side."""
    kind, *words = name.split()
    side = int(words[-1])
    if kind == "png":
        return png_bomb(side, int(words[0]), whole=side < 30_000)
    return {"gif": gif_bomb, "tiff": tiff_bomb}[kind](side)
