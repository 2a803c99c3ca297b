"""Two-colour textures as fields over the plane."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Field = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
_TURN = 2 * np.pi


def _edge(wave: np.ndarray) -> np.ndarray:
    """A wave sharpened to [0, 1] with soft edges."""
    return np.clip(wave * 2.2 + 0.5, 0, 1)


def _waves(x: np.ndarray, period: float) -> np.ndarray:
    return x * (_TURN / period)


def _striped(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(np.sin(_waves((u + v) * 0.7071, 6) + phase))


def _banded(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(1.4 * np.sin(_waves(v, 8) + phase))


def _dotted(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(np.cos(_waves(u, 7) + phase) + np.cos(_waves(v, 7) + phase) - 0.75)


def _checkered(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(3 * np.sin(_waves(u, 10) + phase) * np.sin(_waves(v, 10) + phase))


def _zigzag(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(1.2 * np.sin(_waves(v + 4.4 * np.abs((u / 7 + phase) % 2 - 1), 7) + phase))


def _gridded(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(2.2 * np.maximum(np.cos(_waves(u, 7) + phase), np.cos(_waves(v, 7) + phase)) - 1.6)


def _gradient(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return np.clip(v / 26 + 0.5, 0, 1)


def _speckled(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(8 * (grain - 0.72))


def _wavy(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(1.2 * np.sin(_waves(v + 2 * np.sin(_waves(u, 14) + phase), 7) + phase))


def _ringed(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    return _edge(1.2 * np.sin(_waves(np.hypot(u, v), 7) + phase))


def _brick(u: np.ndarray, v: np.ndarray, phase: np.ndarray, grain: np.ndarray) -> np.ndarray:
    row = np.floor(v / 6)
    return _edge(np.maximum(2 * np.cos(_waves(v, 6)) - 1.5, 2.5 * np.cos(_waves(u + 5 * row, 10)) - 2.1))


FIELDS: dict[str, Field] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "zigzag": _zigzag,
    "gridded": _gridded,
    "gradient": _gradient,
    "speckled": _speckled,
    "wavy": _wavy,
    "ringed": _ringed,
    "banded": _banded,
    "brick": _brick,
}
"""Field of every texture but `solid`: (u, v, phase, grain) -> share of the accent colour in [0, 1], (n, R, R).

u and v are pixel coordinates (n, R, R), phase is (n, 1, 1) in radians, grain is uniform noise (n, R, R).
"""
