"""Where the tests find files, and the tiny random CLIP that most of them use."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
REPOSITORY = TESTS.parent
GOLDEN = TESTS / "golden"
ARCHITECTURE = SUPPORT / "tiny-clip.json"
TINY = f"{ARCHITECTURE}:random"
