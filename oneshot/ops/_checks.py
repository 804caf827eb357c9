"""Checks that every family shares; each message names the argument and what came."""

from __future__ import annotations

import torch

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_float(name: str, tensor: torch.Tensor) -> None:
    """Raise TypeError unless `tensor` is fp32, fp64, bf16 or fp16."""
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")


def check_mask(name: str, mask: torch.Tensor, shape: torch.Size, shape_of: str) -> None:
    """Raise unless `mask` is a bool tensor of exactly this shape."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(
            f"{name} must have the shape of {shape_of} {list(shape)}, got {list(mask.shape)}"
        )


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
