"""Checkpoints written by the methods' authors: found, read without running what they contain, loaded into a method.

Known are Dassl's `{run}/{model_name}/model.pth.tar-{epoch}` beside a one-line file `checkpoint` that names the latest,
which most authors build on, single files with a `state_dict`, dictionaries of tensors under `weights`, and a single
tensor.

Reading them runs nothing that they contain; `unpickle` says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from promptbench.config import UsageError
from promptbench.storage.unpickle import checkpoint

if TYPE_CHECKING:
    from promptbench.method import Method


@dataclass(frozen=True, kw_only=True)
class OfficialCheckpoint:
    """What a file of the authors' code holds that is of use here.

    Attributes:
        state: Learned and frozen tensors by the authors' names, on CPU, in the precision of the file.
        epoch: As stored: counted from 1 in Dassl's files, from 0 in GalLoP's; None where the file does not say.
        meta: The other plain values (numbers, strings, None) at the top of the file, such as `val_result`.
    """

    state: dict[str, Tensor]
    epoch: int | None
    meta: dict[str, Any]


def read_official(path: str | Path) -> OfficialCheckpoint:
    """The tensors in a file or folder written by the authors' code; nothing in it is executed.

    Args:
        path: A checkpoint file, the folder of a run, the model's folder in it, or a folder with one `.ckpt`.

    Raises:
        UsageError: If there is no such file, or several, or it is damaged, or of torch's format before version 1.6.
    """
    try:
        file = _find(Path(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be searched for a checkpoint: {error}.") from error
    content = checkpoint(file)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UsageError(f"{file} holds no 'state_dict', so it is not a checkpoint of a known official code.")
    epoch = content.get("epoch")
    plain = (bool, int, float, str, type(None))
    return OfficialCheckpoint(
        state={
            name.removeprefix("module."): value.detach()  # the prefix that `nn.DataParallel` adds
            for name, value in state.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        },
        epoch=epoch if isinstance(epoch, int) else None,
        meta={k: v for k, v in content.items() if isinstance(k, str) and k != "epoch" and isinstance(v, plain)},
    )


def official_parameters(method: Method) -> dict[str, nn.Parameter]:
    """The method's parameters under the names that the authors' checkpoints give them."""
    return method.official_parameters()


@torch.no_grad()
def load_official_checkpoint(method: Method, path: str | Path) -> None:
    """Copies the learned tensors of an official checkpoint into `method`, converted to its precision.

    Token buffers (`token_prefix`, `token_suffix`) belong to the training classes and are left out, as are the frozen
    towers, and what the method says is of no use to it. Nothing is changed unless everything fits.

    Args:
        method: Built with the settings of the training: number of context tokens, depth, position.
        path: As for `read_official`.

    Raises:
        UsageError: As for `read_official`, and if a learned tensor is missing, of another shape, or has no place here.
    """
    state = read_official(path).state
    ours = official_parameters(method)
    if set(state) == {""} and len(ours) == 1:  # a tensor by itself, without a name
        state = dict.fromkeys(ours, state[""])
    state = {name: tensor for name, tensor in state.items() if not name.startswith(method.official_unused)}
    own = {id(parameter): name for name, parameter in method.named_parameters()}
    empty = {parameter: parameter.data for parameter in ours.values() if not parameter.numel()}
    method.make_room({own[id(parameter)]: state[name] for name, parameter in ours.items() if name in state})
    problems = _mismatches(state, ours)
    if problems:
        for parameter, nothing in empty.items():
            parameter.data = nothing
        raise UsageError(f"{path} does not fit this {type(method).__name__}: {'; '.join(problems)}.")
    for name, parameter in ours.items():
        parameter.copy_(state[name])


def _mismatches(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded into `ours`, one phrase each."""
    missing = [name for name in ours if name not in state]
    surplus = [name for name in state if name not in ours and not _is_frozen(name)]
    problems = []
    if missing:
        problems.append(f"it lacks {_listed(missing)}")
    if surplus:
        problems.append(
            f"it also holds {_listed(surplus)}, for which there is no place here (another method or depth?)"
        )
    for name, parameter in ours.items():
        if name in state and state[name].shape != parameter.shape:
            there, here = tuple(state[name].shape), tuple(parameter.shape)
            problems.append(f"{name} is {there} in the file, {here} here{_hint(name, there, here)}")
        elif name in state and not state[name].is_floating_point():
            problems.append(f"{name} is of type {state[name].dtype} in the file, which is no learned tensor")
    return problems


def _hint(name: str, there: tuple[int, ...], here: tuple[int, ...]) -> str:
    """The setting that a difference in the shape of a context points to."""
    if there[-1:] != here[-1:]:
        return " (another backbone?)"
    if name.rpartition(".")[2] != "ctx":
        return ""
    if len(there) != len(here):
        return ": csc=true?" if len(there) > len(here) else ": csc=false?"
    if there[-2] != here[-2]:
        return f": n_ctx={there[-2]}?"
    return " (other classes?)"


def _listed(names: list[str]) -> str:
    """At most four of the names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _is_frozen(name: str) -> bool:
    """Whether an official name is that of a token buffer or of CLIP's own weights, a frozen teacher's included.

    Learned prompts inside the towers carry `VPT` in their name.
    """
    if "ZS_image_encoder." in name or name.rpartition(".")[2] in {"token_prefix", "token_suffix"}:
        return True
    return name.startswith(("image_encoder.", "text_encoder.", "logit_scale")) and "VPT" not in name


# Which file -----------------------------------------------------------------------------------------------------------


def _find(path: Path) -> Path:
    """The checkpoint file that `path` is or leads to."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"There is no checkpoint at {path}.")
    found = _in_folder(path)
    if found is not None:
        return found
    inside = {folder: _in_folder(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
    files = [file for file in inside.values() if file is not None]
    if len(files) == 1:
        return files[0]
    which = f"several ({_listed([str(file.relative_to(path)) for file in files])})" if files else "none"
    raise UsageError(f"{path} should hold one official checkpoint and holds {which}; give the path of the file itself.")


def _in_folder(folder: Path) -> Path | None:
    """The latest checkpoint lying directly in `folder`: as its `checkpoint` file says, else by epoch."""
    pointer = folder / "checkpoint"
    if pointer.is_file():
        return _pointed_at(pointer)
    files = [file for file in folder.iterdir() if file.is_file()]
    numbered = {file.name.rpartition("-")[2]: file for file in files if file.name.startswith("model.pth.tar-")}
    epochs = [epoch for epoch in numbered if epoch.isdecimal()]
    if epochs:
        return numbered[max(epochs, key=int)]
    others = [file for file in files if file.name == "model-best.pth.tar" or file.suffix == ".ckpt"]
    if len(others) > 1:
        names = _listed(sorted(file.name for file in others))
        raise UsageError(f"{folder} holds several checkpoints ({names}); give the path of one.")
    return others[0] if others else None


def _pointed_at(pointer: Path) -> Path:
    """The file that Dassl's one-line `checkpoint` names, which must lie beside it."""
    with pointer.open("rb") as stream:
        name = stream.readline(4096).decode("utf-8", errors="replace").strip()
    file = pointer.parent / name
    if "\0" in name or file.resolve().parent != pointer.parent.resolve():
        raise UsageError(f"{pointer} names {name!r}, which is not a file of its own folder.")
    if not file.is_file():
        raise UsageError(f"{pointer} names {name!r}, which is not there.")
    return file
