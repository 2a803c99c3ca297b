"""Features of a frozen image tower, encoded once and kept on disk.

One file holds the features of one ordered list of images, or of N random views of each. Its name is a hash of
everything that decides them: weights, transform, the identity of each image (path, size, time of change), libraries,
threads, device. They are always produced by `encode`, in fixed order and batches, so that cached and fresh features are
bit-equal; dense ones are kept in half precision where a method says that it can bear that, and there alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from promptbench.backbone import Backbone
from promptbench.cache import cache_dir, write_atomically
from promptbench.cached import ABOUT, CLAIMS, GB, limit, make_room, touch
from promptbench.claims import alone
from promptbench.dataset import Dataset, Item
from promptbench.images import ImageFeatures
from promptbench.loading import pixel_batches, view_batches
from promptbench.provenance import library_versions
from promptbench.transforms import EVALUATION_TRANSFORM, TRAINING_TRANSFORM

log = logging.getLogger(__name__)

FORMAT = "promptbench features/2"  # counts up where the same images give other last bits
DIMENSIONS = {"cls": 2, "local_unprojected": 3}  # of what a file holds
BATCH = 64  # part of the definition: another batch size may change the last bits
DENSE_LIMIT = 2**30  # bytes of dense features of one list of images; larger lists are encoded whenever they are read
SAID = 10**8  # bytes of dense features from which on their size is said before they are made
_CHECKSUM = 32  # bytes of SHA-256 behind the tensors


@dataclass(frozen=True)
class Kept:
    """Which features of a list of images are kept.

    Attributes:
        dense: Also the dense ones.
        half: The dense ones in half precision.
        views: Random views of each image; 0 for the image under the evaluation transform.
        seed: Draws the views.
    """

    dense: bool = False
    half: bool = False
    views: int = 0
    seed: int = 0

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
                write(path, features, about(backbone, dataset, count, kept))
    return with_local(backbone, features) if kept.dense else features


def path_of(name: str) -> Path:
    """The file of the features with that key."""
    return cache_dir() / "features" / f"{name}.safetensors"


def fits(backbone: Backbone, images: int, half: bool = False) -> bool:
    """Whether the dense features of so many images are kept."""
    return images * backbone.patches * backbone.local_width * (2 if half else 4) <= DENSE_LIMIT


def say_size(backbone: Backbone, dataset: Dataset, images: int, kept: Kept) -> None:
    """Say how much large dense features are going to take."""
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
    """The same, always computed; dense features before their projection, rounded as they are kept."""
    batches = (
        view_batches(backbone, dataset, items, batch=BATCH, seed=kept.seed, views=kept.views)
        if kept.views
        else pixel_batches(backbone, dataset, items, batch=BATCH)
    )
    cls, tokens = [], []
    for images, _ in batches:
        part = backbone.encode_image(images.to(backbone.device), local=kept.dense)
        cls.append(part.cls.float().cpu())
        if part.local_unprojected is not None:
            tokens.append(part.local_unprojected.to(torch.float16 if kept.half else torch.float32).cpu())
    return ImageFeatures(torch.cat(cls), local_unprojected=torch.cat(tokens) if kept.dense else None)


@torch.no_grad()
def with_local(backbone: Backbone, features: ImageFeatures) -> ImageFeatures:
    """Dense features with their projection (N, P, D), float32, which is cheaper to compute than to keep."""
    unprojected = features.local_unprojected.float()  # type: ignore[union-attr]

    def projected() -> Iterator[torch.Tensor]:
        for part in unprojected.split(BATCH):
            yield backbone.project_local(part.to(backbone.device)).float().cpu()

    return ImageFeatures(features.cls, torch.cat(list(projected())), None, unprojected)


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
        EVALUATION_TRANSFORM if not kept.views else (TRAINING_TRANSFORM, kept.seed, kept.views),
        sorted(library_versions().items()),
        PIL.__version__,
        torch.get_num_threads(),
        backbone.device.type,
        BATCH,
        "half" if kept.dense and kept.half else kept.dense,
    )
    if torch.are_deterministic_algorithms_enabled():
        conditions += ("deterministic",)
    if backbone.device.type == "cuda":
        conditions += (torch.cuda.get_device_name(backbone.device),)
    digest.update(repr(conditions).encode())
    for item in items:
        digest.update(dataset.identity(item).encode() + b"\0")
        if kept.views:  # its views are drawn by its name
            digest.update(item.image.encode() + b"\0")
    return digest.hexdigest()


def about(backbone: Backbone, dataset: Dataset, images: int, kept: Kept) -> dict[str, object]:
    """What a file says of itself to `promptbench cache list`."""
    facts = {"dataset": dataset.name, "backbone": backbone.name, "images": images}
    return {**facts, "dense": kept.dense, "half": kept.half, "views": kept.views}


def write(path: Path, features: ImageFeatures, facts: dict[str, object] | None = None) -> None:
    """The tensors, followed by a checksum of their bytes; nothing where the cache has no room for them."""
    tensors = {"cls": features.cls, "local_unprojected": features.local_unprojected}
    given = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    data = save(
        given, metadata={ABOUT: json.dumps({"format": FORMAT, **(facts or {})})}
    )  # one: the order of more is random
    if len(data) > limit():
        log.warning("features of %.1f GB are not kept: PROMPTBENCH_CACHE_GB is %g", len(data) / GB, limit() / GB)
        return
    try:
        write_atomically(path, lambda file: file.write(data + hashlib.sha256(data).digest()))
    except OSError as error:
        log.warning("features cannot be kept in %s (%s)", path.parent, error.strerror or error)
        return
    make_room()


def read(path: Path, images: int) -> ImageFeatures | None:
    """Features from a file; None if it is not there, damaged or of another format, and they are computed again."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body = content[:-_CHECKSUM]
    if hashlib.sha256(body).digest() == content[-_CHECKSUM:]:
        try:
            tensors, head = load(body), json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
            right = all(
                tensor.is_floating_point() and (tensor.dim(), len(tensor)) == (DIMENSIONS[name], images)
                for name, tensor in tensors.items()
            )
            if right and json.loads(head["__metadata__"][ABOUT])["format"] == FORMAT:
                touch(path)
                return ImageFeatures(tensors["cls"], local_unprojected=tensors.get("local_unprojected"))
        except (SafetensorError, KeyError, TypeError, ValueError):
            pass
    log.warning("the cached features %s are damaged, or of another format, and are computed again", path.name)
    return None
