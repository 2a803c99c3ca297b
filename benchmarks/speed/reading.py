"""Reading training images again, as every epoch does: plain decodes each file anew, ours keeps what it decoded."""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch

from promptbench.clip.backbone import Backbone
from promptbench.data.batches import MEMORY, Views

from .ours import image_files
from .timing import Turns


def time_reading(backbone: Backbone, images: int, turns: Turns) -> dict[str, Any]:
    """Seconds for one random view of each image, in one process."""
    from torchvision import transforms

    plain_view = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                backbone.resolution, scale=(0.08, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(backbone.mean, backbone.std),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        chosen = image_files(Path(folder), images, backbone.resolution)
        views = Views(backbone, chosen.dataset, chosen.items, keep=MEMORY, augment_seed=1)
        epochs = count()

        def plain() -> None:
            torch.stack([plain_view(chosen.dataset.open(item)) for item in chosen.items])

        def ours() -> None:
            epoch = next(epochs)
            torch.stack([views[index, epoch][0] for index in range(images)])

        with torch.random.fork_rng(devices=[]):
            timed = turns.take({f"plain-images-{images}": plain, f"ours-images-{images}": ours})
    return {"method": "reading", "classes": 0, **timed}
