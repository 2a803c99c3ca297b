"""Images as a method reads them: kept features where its image tower is frozen, else pixels, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from promptbench.clip.images import Images
from promptbench.data.batches import EpochOrder, FeatureBatches, pixel_batches
from promptbench.data.features import Kept, fits, kept_features, with_local
from promptbench.data.selection import SelectedImages
from promptbench.method import Method

EVALUATION_BATCH = 100  # the field's; accuracy does not depend on it
FEATURE_BATCH = 256  # a method may make text per image and class of it


def still_batches(
    method: Method, chosen: SelectedImages, batch: int, dense: bool = False
) -> Iterator[tuple[Images, Tensor]]:
    """The chosen images in order under the evaluation transform: cached features for a frozen tower, else pixels.

    Nothing is read or encoded before somebody asks for the first batch.
    """
    dense = dense or method.reads_dense
    if reads_features(method, len(chosen.pool), dense):
        size = EVALUATION_BATCH if dense else FEATURE_BATCH
        yield from feature_batches(method, chosen, kept_of(method, dense), size)
    else:
        yield from pixel_batches(method.backbone, chosen.dataset, chosen.items, batch=batch, dense=dense)


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
