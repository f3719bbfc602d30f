"""Another device without one: tensors that hold their values here and claim to stand elsewhere.

On a machine with a CPU alone, a tensor that was left behind, or made on the wrong device, does no harm and is not
found. Inside :class:`FakeDevice`, what is put on :data:`FAKE_DEVICE` says that it stands there, computes as ever, and
refuses what a GPU refuses: operands from two devices, a generator of the CPU, products of integers, and to become an
array. The device is PyTorch's ``meta``, the one besides the CPU whose gradients need no driver.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")

FAKE_DEVICE: Final = torch.device("meta")
_OPS: Final = torch.ops.aten
_ACROSS: Final = (_OPS._to_copy.default, _OPS.copy_.default)
"""Copies, which may go from one device to the other."""
_READS: Final = (_OPS._local_scalar_dense.default, _OPS.equal.default)
"""Ask for a number, which is had from any device."""
_PICKS: Final = (_OPS.index.Tensor, _OPS._unsafe_index.Tensor, _OPS.index_put_.default, _OPS.index_put.default)
"""Take indices from the CPU on any device."""
_PRODUCTS: Final = (_OPS.mm.default, _OPS.bmm.default, _OPS.addmm.default, _OPS.baddbmm.default)


class WrongDeviceError(RuntimeError):
    """Something that a GPU would refuse."""


class FakeDeviceTensor(torch.Tensor):
    """A tensor that claims to stand elsewhere, and the tensor that holds its values."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> FakeDeviceTensor:
        """Wrap values."""
        made: FakeDeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            dtype=values.dtype,
            device=FAKE_DEVICE,
            requires_grad=values.requires_grad,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute here."""
        return _compute(operation, args, kwargs or {})

    # What PyTorch does past the dispatcher.
    @property
    def data(self) -> torch.Tensor:
        """The same values without a gradient."""
        return FakeDeviceTensor(self.values)

    @data.setter
    def data(self, other: FakeDeviceTensor) -> None:
        self.values = other.values

    def tolist(self) -> Any:
        """As plain numbers."""
        return self.values.tolist()

    def __getitem__(self, key: Any) -> Any:
        """Lists of indices become tensors on the CPU."""
        return super().__getitem__(_with_tensors(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        """The same."""
        super().__setitem__(_with_tensors(key), value)

    def __deepcopy__(self, memo: Any) -> Any:
        """Parameters stay parameters."""
        copy = FakeDeviceTensor(self.values.detach().clone())
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy


class FakeDevice(TorchDispatchMode):
    """Inside, :data:`FAKE_DEVICE` is a device with values."""

    def __enter__(self) -> FakeDevice:
        """Replace what PyTorch does past its dispatcher."""
        self._lifted = torch._C._only_lift_cpu_tensors()
        self._made = torch.tensor, torch.as_tensor
        self._inference = torch.inference_mode.__enter__, torch.inference_mode.__exit__
        torch._C._set_only_lift_cpu_tensors(True)
        torch.tensor, torch.as_tensor = map(_moved, self._made)

        # Tensors of inference mode cannot be wrapped; without gradients they compute the same.
        def enter(mode: Any) -> None:
            mode.instead = torch.no_grad()
            mode.instead.__enter__()

        def leave(mode: Any, *error: Any) -> None:
            mode.instead.__exit__(*error)

        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = enter, leave  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave everything as it was."""
        super().__exit__(*error)
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = self._inference  # type: ignore[method-assign]
        torch.tensor, torch.as_tensor = self._made
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute here, also what makes tensors from nothing."""
        return _compute(operation, args, kwargs or {})


def _compute(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do an operation on the values, and say where its results stand."""
    distant: list[FakeDeviceTensor] = []
    near: list[torch.Tensor] = []

    def unwrapped(leaf: Any) -> Any:
        if isinstance(leaf, FakeDeviceTensor):
            distant.append(leaf)
            return leaf.values
        if isinstance(leaf, torch.Tensor):
            near.append(leaf)
        return leaf

    inner_args, inner_kwargs = _mapped(unwrapped, args), _mapped(unwrapped, kwargs)
    device = kwargs.get("device")
    there = bool(distant) if device is None else torch.device(device).type == FAKE_DEVICE.type
    _refuse(operation, args, kwargs, distant, near, there)
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
    if operation is _OPS.histc.default and not inner_args[0].is_floating_point():
        # A CPU counts no integers, as accelerators do.
        result = operation(inner_args[0].float(), *inner_args[1:], **inner_kwargs).to(inner_args[0].dtype)
    else:
        result = operation(*inner_args, **inner_kwargs)
    if operation is _OPS.copy_.default:
        return args[0]
    if operation in _READS or not there:
        return result
    same = {id(tensor.values): tensor for tensor in distant}  # what is changed in place stays the same tensor

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return same[id(leaf)] if id(leaf) in same else FakeDeviceTensor(leaf)

    return _mapped(wrapped, result)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to the leaves of an operation's arguments or results; PyTorch's own tree_map takes longer."""
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(function, item) for item in value])
    if isinstance(value, Mapping):
        return {key: _mapped(function, item) for key, item in value.items()}
    return function(value)


def _refuse(
    operation: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    distant: Sequence[torch.Tensor],
    near: Sequence[torch.Tensor],
    there: bool,
) -> None:
    """Refuse what a GPU refuses.

    Raises:
        WrongDeviceError: with the operation and the shapes.
    """
    if any(tensor.is_meta for tensor in near):
        raise WrongDeviceError(f"{operation}: a tensor without values, which was made past this device")
    if there and isinstance(kwargs.get("generator"), torch.Generator):
        raise WrongDeviceError(f"{operation}: a generator of the CPU for values elsewhere")
    if distant and operation in _PRODUCTS and not distant[0].dtype.is_floating_point:
        raise WrongDeviceError(f"{operation}: a product of integers")
    if not distant or operation in _ACROSS:
        return
    if operation in _PICKS and isinstance(args[0], FakeDeviceTensor):
        near = [leaf for leaf in args[2:3] if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeDeviceTensor)]
    # Single numbers of the CPU are taken on any device.
    if left := [tuple(tensor.shape) for tensor in near if tensor.ndim]:
        shapes = [tuple(tensor.shape) for tensor in distant]
        raise WrongDeviceError(f"{operation}: expected all tensors on one device, got {left} here, {shapes} elsewhere")


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, FakeDeviceTensor) else leaf


def _with_tensors(key: Any) -> Any:
    """An index in which lists of numbers are tensors."""
    parts = key if isinstance(key, tuple) else (key,)
    indices = tuple(torch.from_numpy(np.array(part)) if isinstance(part, list) and part else part for part in parts)
    return indices if isinstance(key, tuple) else indices[0]


def _moved(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``torch.tensor`` and ``torch.as_tensor`` by way of the CPU, since they do not ask the dispatcher."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        tensor = data if isinstance(data, FakeDeviceTensor) else make(_mapped(_values, data), *args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


def on_both_devices(loaded: Any, ask: Callable[[str], Result]) -> tuple[Result, Result]:
    """What a loaded model gives on the CPU, and what it gives elsewhere, where it then stays.

    Args:
        loaded: the model, on the CPU.
        ask: asks it; told ``"here"`` or ``"there"``, for files of its own.
    """
    here = ask("here")
    with FakeDevice():
        loaded.model.to(FAKE_DEVICE)
        loaded.device = FAKE_DEVICE
        values = itertools.chain(loaded.model.named_parameters(), loaded.model.named_buffers())
        assert not [name for name, value in values if not isinstance(value, FakeDeviceTensor)]
        return here, ask("there")
