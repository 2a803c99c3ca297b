"""A trained prompt as a folder for others: tensors, text features, class names, the result, and a card.

Where the method scores as CLIP does, with other text, plain open_clip can use the text features.

Letters: K classes, D joint dimension.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from promptbench.checkpoints.card import card
from promptbench.checkpoints.load import CARD, CLASSES, FILES, PROMPTS, RESULT, TEXT, Trained
from promptbench.config import UsageError
from promptbench.method import Method
from promptbench.results.spec import to_plain

TOLERANCE = 1e-4  # of logits that are to be those of plain CLIP


def export(
    trained: Trained, folder: Path | str, class_names: Sequence[str] | None = None, *, force: bool = False
) -> Path:
    """Write a trained prompt as a folder, which appears whole or not at all; returns the folder.

    Args:
        trained: From `load`, of a result file or an exported folder.
        folder: New or empty.
        class_names: Whose text features to write; None for those of the training.
        force: Replace an earlier export.

    Raises:
        UsageError: The folder holds something, the method cannot score these classes, or the result is not known.
    """
    if trained.result is None:
        raise UsageError(
            f"{trained.training} says nothing of what was measured, which the card states; name the result file."
        )
    target = Path(folder).expanduser().absolute()
    check_replaceable(target, force)
    names = trained.set_classes(class_names)
    text = text_features(trained.method)
    with staged(target) as draft:
        if text is not None:
            held = save({"text_features": text}, metadata={"classes": json.dumps(list(names))})
            (draft / TEXT).write_bytes(held)
        if trained.training is not None:
            shutil.copyfile(trained.training, draft / PROMPTS)
        write_json(draft / RESULT, to_plain(trained.result))
        write_json(draft / CLASSES, {"names": list(names), "template": names.template})
        about = card(trained, trained.result, names, text, plain=scores_as_clip(trained.method, text))
        (draft / CARD).write_text(about, encoding="utf-8")
    return target


@torch.no_grad()
def text_features(method: Method) -> Tensor | None:
    """Normalised text features of the current classes, (K, D) or with leading axes, float32, on the CPU.

    None for a method that makes its text image by image.
    """
    if not method.has_text_features:
        return None
    return F.normalize(method.text_features().float(), dim=-1).cpu().contiguous()


@torch.no_grad()
def scores_as_clip(method: Method, text: Tensor | None) -> bool:
    """Whether scaled cosines of plain CLIP's image features with the text features (K, D) are the method's logits.

    A method with an image tower of its own says so; for the others it is tried on an image of noise.
    """
    if text is None or text.dim() != 2 or not method.frozen_image_tower:
        return False
    backbone = method.backbone
    noise = torch.randn(1, 3, backbone.resolution, backbone.resolution, generator=torch.Generator().manual_seed(0))
    pixels = noise.to(backbone.device)
    image = F.normalize(backbone.encode_image(pixels).cls, dim=-1)
    plain = backbone.logit_scale * image @ text.to(backbone.device).T
    return torch.allclose(method(pixels).logits, plain, rtol=0, atol=TOLERANCE)


def local_paths(value: object) -> list[str]:
    """The absolute paths in a spec, or in a part of it: what of an export names folders of this machine."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [path for part in value for path in local_paths(part)]
    parts = value.split(":") if isinstance(value, str) else []  # a backbone is ARCHITECTURE:FILE
    return [part for part in parts if Path(part).is_absolute()]


def check_replaceable(folder: Path, force: bool) -> None:
    """Raises UsageError unless the folder is new or empty or, with `force`, holds an export and nothing else."""
    try:
        there = set(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{folder} is no folder that can be written ({error.strerror}); name another one.") from error
    if there and not force:
        raise UsageError(f"{folder} is not empty; name another folder, or replace an earlier export with --force.")
    if others := sorted(there - set(FILES)):
        raise UsageError(f"{folder} holds what no export has written ({others[0]}); name another folder.")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A draft beside the folder, which takes its place once all is written.

    Raises:
        UsageError: The place cannot be written.
    """
    mark = secrets.token_hex(4)
    draft, old = (folder.with_name(f".{folder.name}.{mark}.{kind}") for kind in ("tmp", "old"))
    try:
        draft.mkdir(parents=True)
        yield draft
        with suppress(FileNotFoundError):
            os.replace(folder, old)
        os.replace(draft, folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror or error}); name another folder.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """A value as JSON, in the layout of result files."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
