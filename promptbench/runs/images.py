"""Images as a method reads them: kept features where its image tower is frozen, else pixels, in batches."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

from promptbench.data.batches import Batches, EpochOrder, FeatureBatches, pixel_batches
from promptbench.data.features import Kept, fits, kept_features, with_local
from promptbench.data.selection import SelectedImages
from promptbench.method import Method

EVALUATION_BATCH = 100  # the field's; accuracy does not depend on it
FEATURE_BATCH = 256  # a method may make text per image and class of it


def still_batches(method: Method, chosen: SelectedImages, batch: int, dense: bool = False) -> Batches:
    """The chosen images in order under the evaluation transform: cached features for a frozen tower, else pixels."""
    dense = dense or method.reads_dense
    if reads_features(method, len(chosen.pool), dense):
        return LazyFeatures(method, chosen, dense)
    return pixel_batches(method.backbone, chosen.dataset, chosen.items, batch=batch, dense=dense)


class LazyFeatures:
    """Batches of cached features that are looked up when somebody asks for them."""

    def __init__(self, method: Method, chosen: SelectedImages, dense: bool) -> None:
        self.method, self.chosen, self.dense = method, chosen, dense

    @cached_property
    def batches(self) -> FeatureBatches:
        batch = EVALUATION_BATCH if self.dense else FEATURE_BATCH
        return feature_batches(self.method, self.chosen, kept_of(self.method, self.dense), batch)

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def reads_features(method: Method, images: int, dense: bool) -> bool:
    """Whether a method gets the kept features of so many images instead of their pixels."""
    return method.frozen_image_tower and (not dense or fits(method.backbone, images, method.half_dense))


def feature_batches(
    method: Method, chosen: SelectedImages, kept: Kept, batch: int, order: EpochOrder | None = None
) -> FeatureBatches:
    """Kept features of the chosen images: of their views, or out of the whole pool, so that halves share it."""
    backbone, rows = method.backbone, None if kept.views else chosen.chosen
    features = kept_features(backbone, chosen.dataset, chosen.items if kept.views else chosen.pool, kept)
    return FeatureBatches(features, chosen.labels, batch, order, rows, finish=partial(with_local, backbone))


def kept_of(method: Method, dense: bool, views: int = 0, seed: int = 0) -> Kept:
    """Which features of images are kept for a method with a frozen tower."""
    return Kept(dense, dense and method.half_dense, views, seed)
