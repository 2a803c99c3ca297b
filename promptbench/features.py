"""Features of a frozen image tower, encoded once and kept on disk.

One file holds the features of one ordered list of images. Its name is a hash of everything that decides them: weights,
transform, the identity of each image (path, size, time of change), libraries, threads. They are always produced by
`encode`, in fixed order and batches, so that cached and fresh features are bit-equal.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from promptbench.backbone import Backbone
from promptbench.cache import cache_dir, write_atomically
from promptbench.dataset import Dataset, Item
from promptbench.loading import pixel_batches
from promptbench.transforms import EVALUATION_TRANSFORM

log = logging.getLogger(__name__)

BATCH = 64  # part of the definition: another batch size may change the last bits


def image_features(backbone: Backbone, dataset: Dataset, items: Sequence[Item]) -> Tensor:
    """Global features (N, D) of the images under the evaluation transform, not normalised, float32, on the CPU."""
    path = cache_dir() / "features" / f"{key(backbone, dataset, items)}.npy"
    cached = read(path, (len(items), backbone.embed_dim))
    if cached is not None:
        return cached
    features = encode(backbone, dataset, items)
    write_atomically(path, lambda file: save(file, features))
    return features


@torch.no_grad()
def encode(backbone: Backbone, dataset: Dataset, items: Sequence[Item]) -> Tensor:
    """The same, always computed."""
    batches = pixel_batches(backbone, dataset, items, batch=BATCH)
    return torch.cat([backbone.encode_image(images.to(backbone.device)).cls.float().cpu() for images, _ in batches])


def key(backbone: Backbone, dataset: Dataset, items: Sequence[Item]) -> str:
    """Hash of all that decides the features of these images."""
    digest = hashlib.sha256()
    conditions = (
        backbone.weights_hash,
        EVALUATION_TRANSFORM,
        backbone.resolution,
        backbone.mean,
        backbone.std,
        torch.__version__,
        torch.get_num_threads(),
        backbone.device.type,
        BATCH,
    )
    digest.update(repr(conditions).encode())
    for item in items:
        digest.update(dataset.identity(item).encode() + b"\0")
    return digest.hexdigest()


def save(file: BinaryIO, features: Tensor) -> None:
    """The array, followed by a checksum of its bytes."""
    buffer = io.BytesIO()
    np.save(buffer, features.numpy())
    file.write(buffer.getvalue())
    file.write(hashlib.sha256(buffer.getvalue()).digest())


def read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Features from a file; None if it is not there or damaged, and then they are computed again."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body, checksum = content[:-32], content[-32:]
    if hashlib.sha256(body).digest() != checksum:
        log.warning("the cached features %s are damaged and are computed again", path.name)
        return None
    array = np.load(io.BytesIO(body), allow_pickle=False)
    if array.shape != shape or array.dtype != np.float32:
        return None
    return torch.from_numpy(array)
