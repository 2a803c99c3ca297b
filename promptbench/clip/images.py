"""Batches of images, and what the image tower says of them.

Letters: B images, P patches, d width of the image tower, D joint dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """What the image tower says of a batch. Projected features are not normalised.

    Of a ResNet, P counts the positions of the last feature map, and the value path is that of the attention pool.

    Attributes:
        cls: (B, D), the global feature.
        local: (B, P, D), dense features from the last block's value path, projected; None unless asked for.
        patches: (B, P, d), the patch tokens after the last block and `ln_post`, unprojected, or a ResNet's last
            feature map; None unless asked for.
        local_unprojected: (B, P, d), `local` before the projection; of a ResNet, whose value path ends in the joint
            space, `local` itself (B, P, D). None unless asked for.
    """

    cls: Tensor
    local: Tensor | None = None
    patches: Tensor | None = None
    local_unprojected: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageFeatures:
        """`function` applied to every tensor that is there."""
        dense = [self.local, self.patches, self.local_unprojected]
        return ImageFeatures(function(self.cls), *(None if tensor is None else function(tensor) for tensor in dense))


@dataclass(frozen=True)
class Images:
    """A batch of images: pixels (B, 3, H, W), normalised, or the features of a frozen image tower, or both.

    Attributes:
        pixels: What the image tower reads, or None.
        features: What it says of them without prompts, or None.
        dense: Whether whoever scores these images asks for dense features too: `Backbone.encode_image` then returns
            them unless it is told otherwise.
    """

    pixels: Tensor | None = None
    features: ImageFeatures | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        if self.pixels is None and self.features is None:
            raise ValueError("an Images batch needs pixels or features")

    def __len__(self) -> int:
        return len(self.pixels if self.pixels is not None else self.features.cls)  # type: ignore[union-attr,arg-type]

    def __getitem__(self, part: slice) -> Images:
        pixels = None if self.pixels is None else self.pixels[part]
        return replace(self, pixels=pixels, features=self.features and self.features.map(lambda t: t[part]))

    def to(self, device: torch.device | str) -> Images:
        """The batch on another device."""
        pixels = None if self.pixels is None else self.pixels.to(device)
        return replace(self, pixels=pixels, features=self.features and self.features.map(lambda t: t.to(device)))
