"""Features of a frozen image tower, encoded once and kept on disk.

One file holds the features of one ordered list of images, or of N random views of each. Its name is a hash of
everything that decides them: weights, transform, corruption, the identity of each image (path, size, time of change,
inode), libraries, threads, device. They are always produced by `encode`, in fixed order and batches, so that cached and
fresh features are bit-equal; dense ones are kept in half precision where a method says that it can bear it, and there
alone.

Who evaluates or trains asks for batches of what a method reads, features or pixels, and knows no cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import PIL
import torch
from safetensors import SafetensorError
from torch import Tensor

from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.data.batches import EpochOrder, FeatureBatches, pixel_batches, sent, view_batches
from promptbench.data.dataset import Dataset, Item
from promptbench.data.selection import SelectedImages
from promptbench.data.transforms import EVALUATION_TRANSFORM, SCALE, Scale, training_transform
from promptbench.storage.atomic import read_sealed, sealed, write_atomically, write_sealed
from promptbench.storage.cache import ABOUT, CLAIMS, GB, cache_dir, limit, make_room, touch
from promptbench.storage.claims import alone
from promptbench.storage.versions import library_versions

if TYPE_CHECKING:
    from promptbench.data.corruptions import Corruption

log = logging.getLogger(__name__)

FORMAT = "promptbench features/3"  # counts up where the same images give other last bits
DIMENSIONS = {"cls": 2, "local_unprojected": 3}  # of what a file holds
BATCH = 64  # or fewer in one go: part of the definition, for another number may change the last bits
DENSE_LIMIT = 2**30  # bytes of dense features of one list of images; larger lists are encoded whenever they are read
SAID = 10**8  # bytes of dense features from which on their size is said before they are made

EVALUATION_BATCH = 100  # the field's; accuracy does not depend on it
FEATURE_BATCH = 256  # a method may make text per image and class of it


class Reader(Protocol):
    """What of a method decides how it reads images."""

    @property
    def backbone(self) -> Backbone:
        """What encodes them."""

    @property
    def frozen_image_tower(self) -> bool:
        """Whether features of images can be kept, as nothing in the image tower is learned."""

    @property
    def reads_dense(self) -> bool:
        """Whether it needs the features of patches as well."""

    @property
    def half_dense(self) -> bool:
        """Whether those may be kept in half precision."""

    @property
    def reads_frozen(self) -> str:
        """When it needs what the frozen tower says of images beside their pixels, as in `Method`."""


@dataclass(frozen=True)
class Kept:
    """Which features of a list of images are kept.

    Attributes:
        dense: Also the dense ones.
        half: The dense ones in half precision.
        views: Random views of each image; 0 for the image under the evaluation transform.
        seed: Draws the views.
        scale: Of their random crops.
        corruption: Of the image under the evaluation transform.
    """

    dense: bool = False
    half: bool = False
    views: int = 0
    seed: int = 0
    scale: Scale = SCALE
    corruption: Corruption | None = None

    def size(self, backbone: Backbone, images: int) -> int:
        """Bytes of the features of so many images."""
        width = 4 * backbone.embed_dim
        if self.dense:
            width += backbone.patches * backbone.local_width * (2 if self.half else 4)
        return images * max(1, self.views) * width


def image_features(
    backbone: Backbone, dataset: Dataset, items: Sequence[Item], dense: bool = False, kept: Kept | None = None
) -> ImageFeatures:
    """Features of N images under the evaluation transform, not normalised, float32, on the CPU.

    Args:
        dense: Also the dense ones; ask `fits` first.
        kept: More than that; of V views of each image there are V * N features, view by view.
    """
    kept = kept or Kept(dense)
    features = kept_features(backbone, dataset, items, kept)
    return with_local(backbone, features) if kept.dense else features


def kept_features(backbone: Backbone, dataset: Dataset, items: Sequence[Item], kept: Kept) -> ImageFeatures:
    """Features as they are kept: dense ones before their projection, in the precision of their file; see `with_local`.

    What is in the cache stays in its file until it is looked at; what is not yet is made in memory first.
    """
    name = key(backbone, dataset, items, kept=kept)
    path = path_of(name)
    count = len(items) * max(1, kept.views)
    features = read(path, count)
    if features is None:
        with alone(cache_dir() / CLAIMS, name):
            features = read(path, count)  # another process may just have written them
            if features is None:
                say_size(backbone, dataset, len(items), kept)
                features = encode(backbone, dataset, items, kept)
                about = {"dataset": dataset.name, "backbone": backbone.name, "images": count}  # for `cache list`
                write(path, features, {**about, "dense": kept.dense, "half": kept.half, "views": kept.views})
    return features


def path_of(name: str) -> Path:
    """The file of the features with that key."""
    return cache_dir() / "features" / f"{name}.safetensors"


def fits(backbone: Backbone, images: int, half: bool = False) -> bool:
    """Whether the dense features of so many images are kept."""
    return images * backbone.patches * backbone.local_width * (2 if half else 4) <= DENSE_LIMIT


def say_size(backbone: Backbone, dataset: Dataset, images: int, kept: Kept) -> None:
    """Warns of how much of the cache large dense features are going to take."""
    size = kept.size(backbone, images)
    if kept.dense and size >= SAID:
        precision = "half precision" if kept.half else "float32"
        log.warning(
            "dense features of %s%d images of '%s' will take %.1f GB of the cache, in %s",
            f"{kept.views} views each of " if kept.views else "",
            images,
            dataset.name,
            size / GB,
            precision,
        )


@torch.no_grad()
def encode(backbone: Backbone, dataset: Dataset, items: Sequence[Item], kept: Kept) -> ImageFeatures:
    """Features computed anew, as they are kept: dense ones before their projection, rounded."""
    if kept.views:
        drawn = {"seed": kept.seed, "views": kept.views, "scale": kept.scale}
        batches = view_batches(backbone, dataset, items, batch=BATCH, **drawn)  # type: ignore[arg-type]
    else:
        batches = pixel_batches(backbone, dataset, items, batch=BATCH, corruption=kept.corruption)
    count, done = len(items) * max(1, kept.views), 0
    cls = torch.empty(count, backbone.embed_dim)  # filled in place: tensors kept one by one would take far more memory
    dense = None
    if kept.dense:
        precision = torch.float16 if kept.half else torch.float32
        dense = torch.empty(count, backbone.patches, backbone.local_width, dtype=precision)
    for batch, _ in batches:
        for images in batch.split(backbone.images_in_cache(BATCH)):
            found = backbone.encode_image(images.to(backbone.device), local=kept.dense)
            rows = slice(done, done + len(images))
            cls[rows] = found.cls
            if dense is not None and found.local_unprojected is not None:
                dense[rows] = found.local_unprojected
            done = rows.stop
    return ImageFeatures(cls, local_unprojected=dense)


@torch.no_grad()
def with_local(backbone: Backbone, features: ImageFeatures) -> ImageFeatures:
    """Dense features with their projection (N, P, D), float32, which is cheaper to compute than to keep."""
    if features.local_unprojected is None:
        return features
    unprojected = features.local_unprojected.float()
    parts = [backbone.project_local(part.to(backbone.device)).float().cpu() for part in unprojected.split(BATCH)]
    return ImageFeatures(features.cls, torch.cat(parts), None, unprojected)


@torch.no_grad()
def with_local_there(backbone: Backbone, features: ImageFeatures) -> ImageFeatures:
    """As `with_local`, of a batch, which is on the backbone's device afterwards: nothing of it comes back."""
    if features.local_unprojected is None:
        return features
    unprojected = sent(features.local_unprojected, backbone.device).float()
    parts = [backbone.project_local(part).float() for part in unprojected.split(BATCH)]
    return ImageFeatures(sent(features.cls, backbone.device), torch.cat(parts), None, unprojected)


def key(
    backbone: Backbone, dataset: Dataset, items: Sequence[Item], dense: bool = False, kept: Kept | None = None
) -> str:
    """Hash of all that decides the features of these images; arguments as in `image_features`."""
    kept = kept or Kept(dense)
    digest = hashlib.sha256()
    conditions: tuple[object, ...] = (
        FORMAT,
        backbone.weights_hash,
        backbone.architecture,
        EVALUATION_TRANSFORM if not kept.views else (training_transform(kept.scale), kept.seed, kept.views),
        sorted(library_versions().items()),
        PIL.__version__,
        torch.get_num_threads(),
        backbone.device.type,
        backbone.images_in_cache(BATCH),
        "half" if kept.dense and kept.half else kept.dense,
    )
    if torch.are_deterministic_algorithms_enabled():
        conditions += ("deterministic",)
    if backbone.device.type == "cuda":
        conditions += (torch.cuda.get_device_name(backbone.device),)
    if kept.corruption:
        conditions += (kept.corruption.identity,)
    digest.update(repr(conditions).encode())
    for item in items:
        digest.update(dataset.identity(item).encode() + b"\0")
        if kept.views or kept.corruption:  # which are drawn by its name
            digest.update(item.image.encode() + b"\0")
    return digest.hexdigest()


def write(path: Path, features: ImageFeatures, facts: dict[str, object] | None = None) -> None:
    """A sealed file with the tensors; nothing where the cache has no room for them."""
    tensors = {"cls": features.cls, "local_unprojected": features.local_unprojected}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    parts = sealed(given, {ABOUT: json.dumps({"format": FORMAT, **(facts or {})})})
    size = sum(map(len, parts))
    if size > limit():
        log.warning("features of %.1f GB are not kept: PROMPTBENCH_CACHE_GB is %g", size / GB, limit() / GB)
        return
    try:
        write_atomically(path, lambda file: write_sealed(file, parts))
    except OSError as error:
        log.warning("features cannot be kept in %s (%s)", path.parent, error.strerror or error)
        return
    make_room()


def read(path: Path, images: int) -> ImageFeatures | None:
    """Features in a file; None if it is not there, damaged or of another format, and they are computed again.

    Dense features are the file's bytes: what is not looked at takes no memory.
    """
    try:
        tensors, said = read_sealed(path)
        about = json.loads(said[ABOUT])
        right = all((x.dim(), *x.shape[:1]) == (DIMENSIONS.get(name), images) for name, x in tensors.items())
        if right and "cls" in tensors and about["format"] == FORMAT:
            touch(path)
            return ImageFeatures(tensors["cls"].clone(), local_unprojected=tensors.get("local_unprojected"))
    except OSError:
        return None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # whoever wrote it
        pass
    log.warning("the cached features %s are damaged, or of another format, and are computed again", path.name)
    return None


def still_batches(
    method: Reader, chosen: SelectedImages, batch: int, dense: bool = False
) -> Iterator[tuple[Images, Tensor]]:
    """The chosen images, corrupted where they are to be, in order under the evaluation transform: cached features for a
    frozen tower, else pixels.

    Nothing is read or encoded before somebody asks for the first batch.
    """
    dense = dense or method.reads_dense
    if reads_features(method, len(chosen.pool), dense):
        size = EVALUATION_BATCH if dense else FEATURE_BATCH
        kept = replace(kept_of(method, dense), corruption=chosen.corruption)
        yield from feature_batches(method, chosen, kept, size)
    else:
        backbone, corruption = method.backbone, chosen.corruption
        kept = Kept(corruption=corruption)
        known = frozen_features(backbone, chosen, kept) if method.reads_frozen == "always" else None
        yield from pixel_batches(backbone, chosen.dataset, chosen.items, batch, dense, corruption, known)


def reads_features(method: Reader, images: int, dense: bool) -> bool:
    """Whether a method gets the kept features of so many images instead of their pixels."""
    return method.frozen_image_tower and (not dense or fits(method.backbone, images, method.half_dense))


def feature_batches(
    method: Reader,
    chosen: SelectedImages,
    kept: Kept,
    batch: int,
    order: EpochOrder | None = None,
    drop_last: bool = True,
) -> FeatureBatches:
    """Kept features of the chosen images: of their views, or out of the whole pool, so that halves share it."""
    backbone, rows = method.backbone, None if kept.views else chosen.chosen
    features = kept_features(backbone, chosen.dataset, chosen.items if kept.views else chosen.pool, kept)
    finish = partial(with_local_there, backbone)
    return FeatureBatches(features, chosen.labels, batch, order, rows, finish, drop_last)


def frozen_features(backbone: Backbone, chosen: SelectedImages, kept: Kept) -> Tensor:
    """(N, D), or (V * N, D) of their views: what the frozen tower says of the chosen images, to go with their pixels.

    It is kept for the whole pool, so that halves share it.
    """
    if kept.views:
        return kept_features(backbone, chosen.dataset, chosen.items, kept).cls
    return kept_features(backbone, chosen.dataset, chosen.pool, kept).cls[chosen.chosen]


def kept_of(method: Reader, dense: bool, views: int = 0, seed: int = 0, scale: Scale = SCALE) -> Kept:
    """Which features of images are kept for a method with a frozen tower."""
    return Kept(dense, dense and method.half_dense, views, seed, scale)


def shown_views(
    method: Reader, chosen: SelectedImages, views: int, seed: int, scale: Scale
) -> Iterator[tuple[Images, Tensor]]:
    """Random views of the chosen images, the first of each in order, then the second; cached for a frozen tower.

    No batch holds two views of an image. Nothing is read or encoded before somebody asks for the first batch.
    """
    count = len(chosen.items)
    if not reads_features(method, count * views, method.reads_dense):
        yield from view_batches(
            method.backbone, chosen.dataset, chosen.items, batch=EVALUATION_BATCH, seed=seed, views=views, scale=scale
        )
        return
    features = kept_features(
        method.backbone, chosen.dataset, chosen.items, kept_of(method, method.reads_dense, views, seed, scale)
    )
    for view in range(views):
        rows = range(view * count, (view + 1) * count)
        yield from FeatureBatches(
            features, chosen.labels, FEATURE_BATCH, rows=rows, finish=partial(with_local_there, method.backbone)
        )
