"""What controls put in the place of what a method knows: noise for images, random prompts for learned ones.

A control leaves all else as it is, the number of parameters included, so that what a method loses is what was taken.

Letters: B images, n prompt tokens, d width of a tower, D joint dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def noise_like(features: Tensor, fresh: bool) -> Tensor:
    """Gaussian noise (B, D) that has, image by image, the mean and the standard deviation of features (B, D).

    It is made for each image alone: a batch may have one image, and no image may tell of those beside it.

    Args:
        features: Of B images.
        fresh: Whether it is drawn anew, by torch's global generator, as in training; otherwise an image gets the same
            noise each time, which the signs of its features about their mean seed: another image's is another, however
            alike the two are.
    """
    drawn = torch.randn_like(features) if fresh else torch.stack([_own_noise(row) for row in features])
    drawn = (drawn - drawn.mean(dim=-1, keepdim=True)) / _std(drawn)
    return features.mean(dim=-1, keepdim=True) + _std(features) * drawn


def _std(features: Tensor) -> Tensor:
    """Standard deviation (B, 1) over the dimensions of features (B, D)."""
    return features.std(dim=-1, keepdim=True, correction=0)


def _own_noise(feature: Tensor) -> Tensor:
    """The noise (D,) of one image with a feature (D,)."""
    signs = (feature > feature.mean()).cpu().numpy().tobytes()  # which no rounding changes, or hardly ever
    return _normal(feature, f"noise {hashlib.sha256(signs).hexdigest()}")


@torch.no_grad()
def randomize(prompts: Mapping[str, nn.Parameter], seed: int) -> None:
    """Replace prompts in place by random ones: every token gets another direction, and keeps its norm.

        v <- |v| z / |z|,   z normal

    Args:
        prompts: Learned tensors (..., n, d) by name.
        seed: Of the training. Draws are none of those that first values come from.
    """
    for name, prompt in prompts.items():
        drawn = _normal(prompt, f"random prompts {seed} {name}")
        scale = prompt.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
        prompt.copy_(drawn * scale)


def _normal(like: Tensor, said: str) -> Tensor:
    """Normal values in the shape of a tensor, the same on every device, seeded by a text."""
    seed = int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") >> 1
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(like)
