"""A GPU that is not there: tensors that stay in the CPU's memory, and are treated as if they were on `cuda:99`.

Within `PretendedGpu`, what is moved to that device or made there is marked, as is everything computed from it. As on
a GPU, an operation on marked and other tensors is an error, and what makes the processor wait for the GPU is noted:
reading a number, copies in either direction, results whose shape depends on values. Values and gradients are those of
the CPU, bit for bit. (torch's own FakeTensorMode has no values, and cannot run backwards on a GPU that is not there.)
What is computed behind torch's back, as in numpy, is not seen, and neither are kernels: a real GPU rounds otherwise.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda:99")  # which no machine has, so that what is kept for a real one is not mixed with this
CPU = torch.device("cpu")

MARK, PINNED = "_on_pretended_gpu", "_pinned_for_pretended_gpu"  # attributes of tensors
OF_DEVICES = {"device": DEVICE, "is_cuda": True, "is_cpu": False, "get_device": DEVICE.index}
AS_THEY_ARE = ("__get__", "backward", "_parse_to")  # whose arguments say of no device where results are
OF_TWO_DEVICES = ("copy_", "set_", "type_as", "to", "_has_compatible_shallow_copy_type")
FROM_VALUES = ("tensor", "as_tensor", "asarray", "new_tensor")  # copied to the device from the CPU
INDEXING = ("__getitem__", "__setitem__")  # may take indices of the CPU
READING = (
    *("item", "tolist", "numpy", "cpu", "equal", "allclose", "is_nonzero", "nonzero", "argwhere", "masked_select"),
    *("unique", "unique_consecutive", "bincount", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    *("__array__", "__format__", "__repr__"),
)
DEEPER = (
    *("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero"),
    *("aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten._linalg_check_errors"),
)
ON_CPUS_ALONE = ("one_hot",)  # looks at its values there, and not on a GPU if it is told how many classes there are


class PretendedGpu(TorchFunctionMode):
    """The context in which the device is there.

    Attributes:
        waits: What made the processor wait for the GPU so far: `operation at folder/file:line`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._parameters = ExitStack()

    def __enter__(self) -> PretendedGpu:
        make = nn.Parameter.__new__  # of which torch tells no mode

        def made(cls: type, data: Any = None, requires_grad: bool = True) -> Any:
            parameter: Tensor = make(cls, data, requires_grad)
            mark(parameter, data is not None and is_there(data))
            return parameter

        self._parameters.enter_context(patch.object(nn.Parameter, "__new__", made))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._parameters.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = name_of(func), kwargs or {}
        given = list(tensors_in((args, kwargs)))
        there = any(map(is_there, given))
        if name in OF_DEVICES and there:
            return OF_DEVICES[name]
        if name == "data.__set__":  # how modules are moved
            func(*args, **kwargs)
            return mark(args[0], is_there(args[1]))
        if name == "pin_memory":
            return pinned(args[0])
        target = there
        if name not in AS_THEY_ARE:
            target = wanted_device(name, args, kwargs, there)
            args, kwargs = placed(args, kwargs)
            self.note(name, args, kwargs, given, there, target)
        if there and name not in (*OF_TWO_DEVICES, *INDEXING):
            refuse_mixed(name, given)
        with Deeper(self, watches=there and name not in (*READING, *INDEXING, *ON_CPUS_ALONE)):
            found = func(*args, **kwargs)
        if name in ("to", "cpu") and found is args[0] and target != there:
            found = found.clone()  # it is another tensor on another device
        for tensor in tensors_in(found):
            mark(tensor, target)
        return found

    def note(self, name: str, args: Any, kwargs: Any, given: list[Tensor], there: bool, target: bool) -> None:
        """Note what an operation waits for."""
        made = name in FROM_VALUES and target
        if made or (name in READING and there) or is_copy(name, args, kwargs, target != there):
            self.wait(name)
        elif name in INDEXING and there and any(tensor.dtype == torch.bool for tensor in given[1:]):
            self.wait(f"{name} by a mask")
        elif name in INDEXING and there and has_list(args[1]):
            self.wait(f"{name} by a list")

    def wait(self, name: str) -> None:
        """Note that the processor waits."""
        self.waits.append(f"{name} at {caller()}")


class Deeper(TorchDispatchMode):
    """Notes what waits within one operation on the GPU: in its backward pass, or in what it is made of."""

    def __init__(self, gpu: PretendedGpu, watches: bool) -> None:
        super().__init__()
        self.gpu, self.watches = gpu, watches

    def __enter__(self) -> Any:
        return super().__enter__() if self.watches else self

    def __exit__(self, *error: Any) -> None:
        if self.watches:
            super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if name in DEEPER:
            self.gpu.wait(name)
        return func(*args, **(kwargs or {}))


def name_of(func: Callable[..., Any]) -> str:
    """What an operation is called; reading and setting attributes by their names."""
    name = getattr(func, "__name__", str(func))
    if name not in ("__get__", "__set__"):
        return name
    attribute: str = getattr(getattr(func, "__self__", None), "__name__", "")
    if name == "__set__":
        return f"{attribute}.__set__"
    return attribute if attribute in OF_DEVICES else name


def wanted_device(name: str, args: Any, kwargs: Any, there: bool) -> bool:
    """Whether the results of an operation are on the GPU: where it is told, or where its tensors are."""
    if name in ("cpu", "numpy"):
        return False
    if name in ("to", "type_as") and len(args) > 1 and isinstance(args[1], Tensor):
        return is_there(args[1])
    told = [device for device in map(device_of, (*args, *kwargs.values())) if device is not None]
    return told[-1] == DEVICE if told else there


def placed(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments with the CPU in place of the GPU."""

    def real(value: Any) -> Any:
        return CPU if device_of(value) == DEVICE else value

    return tuple(map(real, args)), {key: real(value) for key, value in kwargs.items()}


def device_of(value: Any) -> torch.device | None:
    """An argument as a device, if it is one."""
    if isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda", "meta"):
        return torch.device(value)
    return value if isinstance(value, torch.device) else None


def tensors_in(found: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        yield from tensors_in(list(found.values()))
    elif isinstance(found, tuple | list):
        for part in found:
            yield from tensors_in(part)


def is_copy(name: str, args: Any, kwargs: Any, crosses: bool) -> bool:
    """Whether an operation copies between the devices, and is waited for; it `crosses` if its result is on another."""
    if name == "to":
        return crosses and not (kwargs.get("non_blocking") and is_pinned(args[0]))
    return name in ("copy_", *INDEXING) and are_mixed(tensors_in(args))


def has_list(index: Any) -> bool:
    """Whether an index has a list of positions, which is copied to a GPU each time."""
    return isinstance(index, list) or (isinstance(index, tuple) and any(isinstance(part, list) for part in index))


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor is on the GPU."""
    return MARK in tensor.__dict__


def mark(tensor: Tensor, there: bool) -> None:
    """Have a tensor be on the GPU, or on the CPU."""
    if there:
        tensor.__dict__[MARK] = True
    else:
        tensor.__dict__.pop(MARK, None)


def pinned(tensor: Tensor) -> Tensor:
    """A copy that counts as one in memory that a GPU reads by itself."""
    copy = tensor.clone()
    copy.__dict__[PINNED] = True
    return copy


def is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor is in such memory."""
    return PINNED in tensor.__dict__


def are_mixed(given: Iterable[Tensor]) -> bool:
    """Whether tensors are on both devices; single numbers on the CPU go with everything."""
    return len({is_there(tensor) for tensor in given if is_there(tensor) or tensor.dim() > 0}) > 1


def refuse_mixed(name: str, given: list[Tensor]) -> None:
    """Raise an error as torch does where an operation finds its tensors on two devices."""
    if are_mixed(given):
        (shape, *_) = (tuple(tensor.shape) for tensor in given if not is_there(tensor) and tensor.dim() > 0)
        raise RuntimeError(
            f"on a GPU, {name} would find a tensor {shape} on the CPU; make it with device=self.backbone.device, or "
            "from another one, as tensor.new_zeros and torch.zeros_like do"
        )


def caller() -> str:
    """Where the code stands that torch was called by."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != __file__ and "/torch/" not in frame.filename:
            return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"
    return "?"
