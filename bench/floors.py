"""Bounds that no implementation can beat: touching the same memory and computing nothing."""

from __future__ import annotations

import torch

from oneshot.bench.registry import Inputs, Provider


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor as integers: no rounding, no NaN logic, any dtype."""
    flat = tensor.reshape(-1).view(torch.uint8)
    return flat.view(torch.int32) if flat.numel() % 4 == 0 else flat


def _read(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(_words(tensor).amax() for tensor in tensors)


def _copy(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.clone() for tensor in tensors)


def _rewrite(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(_words(tensor).bitwise_or_(0) for tensor in tensors)


def floor(
    name: str,
    *,
    read: tuple[str, ...] = (),
    copy: tuple[str, ...] = (),
    rewrite: tuple[str, ...] = (),
) -> Provider:
    """A floor made of passes over named inputs.

    Args:
        name: Shown in tables.
        read: Inputs read once (max-reduction over 32-bit integers).
        copy: Inputs read once and written once to freshly allocated memory, as a fresh output is.
        rewrite: Inputs read and written in place.
    """

    def call(inputs: Inputs) -> tuple[torch.Tensor, ...]:
        return (
            *_read(*(inputs[key] for key in read)),
            *_copy(*(inputs[key] for key in copy)),
            *_rewrite(*(inputs[key] for key in rewrite)),
        )

    return Provider(name, "floor", lambda: call)
