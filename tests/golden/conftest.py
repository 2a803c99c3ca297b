"""Fixtures of the reference cases: the small CLIP of the recipe, its images and the stored numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import golden_clip as golden_clip_recipe
import golden_reference
import numpy as np
import pytest
import torch
from torch import Tensor

from promptbench.clip.backbone import Backbone

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def golden_recipe() -> ModuleType:
    """The module `golden_clip.py`: weights and images for any seed."""
    return golden_clip_recipe


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The module `reference.py`: the plain forward passes."""
    return golden_reference


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return HERE


@pytest.fixture(scope="session")
def golden_clip(golden_recipe: ModuleType) -> torch.nn.Module:
    """The small CLIP of the reference cases (seed 7101), float32, eval, frozen."""
    return golden_recipe.build_clip()


@pytest.fixture(scope="session")
def golden_images(golden_recipe: ModuleType) -> Tensor:
    """(6, 3, 32, 32) images of the reference cases."""
    return golden_recipe.build_images()


@pytest.fixture(scope="session")
def golden_labels(golden_recipe: ModuleType) -> Tensor:
    return torch.tensor(golden_recipe.LABELS)


@pytest.fixture(scope="session")
def golden_pixels() -> Callable[..., Tensor]:
    """Further images of the reference cases: noise by its tag, of a shape that ends in (3, 32, 32)."""

    def draw(tag: int, *shape: int) -> Tensor:
        drawn = np.random.default_rng([7101, tag]).standard_normal((*shape, 3, 32, 32))
        return torch.from_numpy(drawn.astype(np.float32))

    return draw


@pytest.fixture
def golden_backbone(golden_clip: torch.nn.Module, golden_recipe: ModuleType) -> Backbone:
    return Backbone(golden_clip, tokenizer=golden_recipe.tokenizer())


@pytest.fixture(scope="session")
def golden_case() -> Callable[[str], dict[str, Tensor]]:
    """Reads the stored numbers of a case: field name -> tensor."""

    def read(name: str) -> dict[str, Tensor]:
        with np.load(HERE / f"{name}-s7101.npz") as stored:
            return {key: torch.from_numpy(stored[key]) for key in stored.files}

    return read
