"""Features of a frozen image tower, encoded once and kept on disk.

One file holds the features of one ordered list of images. Its name is a hash of everything that decides them: weights,
transform, the identity of each image (path, size, time of change), libraries, threads. They are always produced by
`encode`, in fixed order and batches, so that cached and fresh features are bit-equal.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from promptbench.backbone import Backbone
from promptbench.cache import cache_dir, write_atomically
from promptbench.claims import alone
from promptbench.dataset import Dataset, Item
from promptbench.images import ImageFeatures
from promptbench.loading import pixel_batches
from promptbench.provenance import library_versions
from promptbench.transforms import EVALUATION_TRANSFORM

log = logging.getLogger(__name__)

BATCH = 64  # part of the definition: another batch size may change the last bits
DENSE_LIMIT = 2**30  # bytes of dense features of one list of images; larger lists are encoded whenever they are read
_CHECKSUM = 32  # bytes of SHA-256 behind the tensors


def image_features(backbone: Backbone, dataset: Dataset, items: Sequence[Item], dense: bool = False) -> ImageFeatures:
    """Features of N images under the evaluation transform, not normalised, float32, on the CPU.

    Args:
        dense: Also the dense ones; ask `fits` first.
    """
    name = key(backbone, dataset, items, dense)
    path = cache_dir() / "features" / f"{name}.safetensors"
    features = read(path, len(items))
    if features is None:
        with alone(cache_dir() / "claims", name):
            features = read(path, len(items))  # another process may just have written them
            if features is None:
                features = encode(backbone, dataset, items, dense)
                write(path, features)
    return with_local(backbone, features) if dense else features


def fits(backbone: Backbone, images: int) -> bool:
    """Whether the dense features of so many images are kept."""
    return images * backbone.patches * backbone.local_width * 4 <= DENSE_LIMIT


@torch.no_grad()
def encode(backbone: Backbone, dataset: Dataset, items: Sequence[Item], dense: bool = False) -> ImageFeatures:
    """The same, always computed; dense features before their projection."""
    batches = pixel_batches(backbone, dataset, items, batch=BATCH)
    parts = [backbone.encode_image(images.to(backbone.device), local=dense) for images, _ in batches]
    cls = torch.cat([part.cls.float().cpu() for part in parts])
    tokens = [part.local_unprojected.float().cpu() for part in parts if part.local_unprojected is not None]
    return ImageFeatures(cls, local_unprojected=torch.cat(tokens) if dense else None)


@torch.no_grad()
def with_local(backbone: Backbone, features: ImageFeatures) -> ImageFeatures:
    """Dense features with their projection (N, P, D), which is cheaper to compute than to keep."""

    def projected() -> Iterator[torch.Tensor]:
        for part in features.local_unprojected.split(BATCH):  # type: ignore[union-attr]
            yield backbone.project_local(part.to(backbone.device)).float().cpu()

    return ImageFeatures(features.cls, torch.cat(list(projected())), None, features.local_unprojected)


def key(backbone: Backbone, dataset: Dataset, items: Sequence[Item], dense: bool) -> str:
    """Hash of all that decides the features of these images."""
    digest = hashlib.sha256()
    conditions = (
        backbone.weights_hash,
        backbone.architecture,
        EVALUATION_TRANSFORM,
        sorted(library_versions().items()),
        PIL.__version__,
        torch.get_num_threads(),
        backbone.device.type,
        BATCH,
        dense,
    )
    digest.update(repr(conditions).encode())
    for item in items:
        digest.update(dataset.identity(item).encode() + b"\0")
    return digest.hexdigest()


def write(path: Path, features: ImageFeatures) -> None:
    """The tensors, followed by a checksum of their bytes."""
    tensors = {"cls": features.cls, "local_unprojected": features.local_unprojected}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None})
    write_atomically(path, lambda file: file.write(data + hashlib.sha256(data).digest()))


def read(path: Path, images: int) -> ImageFeatures | None:
    """Features from a file; None if it is not there or damaged, and then they are computed again."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body = content[:-_CHECKSUM]
    if hashlib.sha256(body).digest() == content[-_CHECKSUM:]:
        try:
            tensors = load(body)
            if len(tensors["cls"]) == images:
                return ImageFeatures(tensors["cls"], local_unprojected=tensors.get("local_unprojected"))
        except (SafetensorError, KeyError):
            pass
    log.warning("the cached features %s are damaged and are computed again", path.name)
    return None
