"""Checks that every family shares; each message names the argument and what came."""

from __future__ import annotations

from typing import Any

import torch

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def kind_of(x: Any) -> str:
    """The type of what came instead of a tensor, for a message."""
    kind = type(x)
    if kind.__module__ == "builtins":
        return kind.__name__
    hint = "; oneshot.numpy takes arrays" if kind.__module__ == "numpy" else ""
    return f"{kind.__module__}.{kind.__name__}{hint}"


def check_tensor(name: str, x: Any) -> None:
    """Raise TypeError unless `x` is a tensor."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {kind_of(x)}")


def check_float(name: str, tensor: torch.Tensor) -> None:
    """Raise TypeError unless `tensor` is a tensor of fp32, fp64, bf16 or fp16."""
    check_tensor(name, tensor)
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")


def check_values(
    allowed: torch.Tensor,
    message: str,
    values: torch.Tensor,
    error: type[Exception] = ValueError,
) -> None:
    """Raise `error` unless all of `allowed` holds of `values`.

    On an accelerator and while a program is traced nothing waits for the answer: the device or the
    traced program fails instead.
    """
    if (
        torch.compiler.is_compiling()
        or allowed.device.type != "cpu"
        or torch._C._len_torch_dispatch_stack()  # make_fx, fake tensors
    ):
        torch._assert_async(allowed.all(), message)
    elif not allowed.all():
        place = (~allowed).nonzero()[0].tolist()
        where = place[0] if len(place) == 1 else tuple(place)
        raise error(f"{message}, got {values[tuple(place)].tolist()} at place {where}")


def as_bool(name: str, mask: torch.Tensor) -> torch.Tensor:
    """A mask as bool: bool as it is, and integers or floats that are all exactly 0 or 1."""
    check_tensor(name, mask)
    if mask.dtype == torch.bool:
        return mask
    if mask.is_complex():
        raise TypeError(f"{name} must be bool, or integers or floats of 0 and 1, got {mask.dtype}")
    on = mask == 1
    check_values(on | (mask == 0), f"{name} must be bool, or numbers that are all 0 or 1", mask)
    return on


def as_mask(
    name: str, mask: torch.Tensor, shape: torch.Size, shape_of: str, other: torch.Tensor
) -> torch.Tensor:
    """A mask of this shape as bool; raises unless it lies on the device of `other`."""
    check_tensor(name, mask)
    if mask.shape != shape:
        raise ValueError(
            f"{name} must have the shape of {shape_of} {list(shape)}, got {list(mask.shape)}"
        )
    check_same_device(name, mask, shape_of, other)
    return as_bool(name, mask)


def as_int64(name: str, x: torch.Tensor) -> torch.Tensor:
    """Raise TypeError unless `x` is an int32 or int64 tensor; returns it as int64."""
    check_tensor(name, x)
    if x.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int64 or int32, got {x.dtype}")
    return x.to(torch.int64)


def check_same_device(
    name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor
) -> None:
    """Raise unless both tensors are on the same device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {tensor.device}"
        )


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
