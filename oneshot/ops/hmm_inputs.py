"""What every op of the `hmm` family takes: checks, and one canonical form."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from oneshot.ops._checks import as_int64, check_choice, check_float, check_same_device
from oneshot.ops._library import as_data

TransAxis = Literal["sequence", "step"] | None


class Potentials(NamedTuple):
    """Arguments of the torch ops, in their order; float32 or float64."""

    log_init: Tensor  # [1|B, K]
    log_trans: Tensor  # [1|B, 1|T-1, K, K]
    log_emit: Tensor  # [B, T, K]
    lengths: Tensor | None  # int64 [B]
    log_final: Tensor | None  # [1|B, K]

    def as_data(self) -> Potentials:
        """The same without gradients."""
        return Potentials(*(x if x is None else as_data(x) for x in self))  # type: ignore[arg-type]


def at_least_float32(x: Tensor) -> Tensor:
    """Half formats as float32; autograd casts the gradient back."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both are float64 or neither is, on one device.

    Half formats and float32 go together, as autocast mixes them: all are computed in float32.
    """
    check_float(name, x)
    if (x.dtype == torch.float64) != (other.dtype == torch.float64):
        raise TypeError(
            f"{name} and {other_name} must be both float64 or neither, got {x.dtype} and "
            f"{other.dtype}"
        )
    check_same_device(name, x, other_name, other)


def integers(name: str, x: Tensor, size: int, other_name: str, other: Tensor) -> Tensor:
    """As int64; raises unless `x` is int64 or int32, [size], on the other's device."""
    x = as_int64(name, x)
    if x.shape != (size,):
        raise ValueError(
            f"{name} must have the shape [{size}], one for each sequence, got {list(x.shape)}"
        )
    check_same_device(name, x, other_name, other)
    return x


def _vector(name: str, x: Tensor, log_emit: Tensor) -> Tensor:
    batch, _, states = log_emit.shape
    check_like(name, x, "log_emit", log_emit)
    if x.shape == (states,):
        return at_least_float32(x)[None]
    if x.shape != (batch, states):
        raise ValueError(
            f"{name} must have the shape [{states}] or [{batch}, {states}] "
            f"(log_emit is {list(log_emit.shape)}), got {list(x.shape)}"
        )
    return at_least_float32(x)


# What log_trans may be, by trans_axis.
_FORMS = {
    None: "[K, K] or [1|B, 1|T-1, K, K]",
    "sequence": "[B, K, K] (trans_axis='sequence')",
    "step": "[T-1, K, K] (trans_axis='step')",
}


def _matrices(x: Tensor, log_emit: Tensor, trans_axis: TransAxis) -> Tensor:
    batch, steps, states = log_emit.shape
    check_like("log_trans", x, "log_emit", log_emit)
    check_choice("trans_axis", trans_axis, tuple(_FORMS))
    if x.dim() == 3 and trans_axis is None:
        raise ValueError(
            f"log_trans has 3 dimensions {list(x.shape)}: pass trans_axis='sequence' if they are "
            "[B, K, K], one matrix for each sequence, or trans_axis='step' if they are "
            "[T-1, K, K], one for each step to the next (4-D, [1|B, 1|T-1, K, K], needs none)"
        )
    if x.dim() == 2:
        matrices = x[None, None]
    elif x.dim() == 3:
        matrices = x[:, None] if trans_axis == "sequence" else x[None]
    else:
        matrices = x
    rows = {None: (1, batch), "sequence": (batch,), "step": (1,)}[trans_axis]
    columns = {None: (1, steps - 1), "sequence": (1,), "step": (steps - 1,)}[trans_axis]
    if (
        (trans_axis is not None and x.dim() != 3)
        or matrices.dim() != 4
        or matrices.shape[0] not in rows
        or matrices.shape[1] not in columns
        or matrices.shape[2:] != (states, states)
    ):
        raise ValueError(
            f"log_trans must have the shape {_FORMS[trans_axis]} for log_emit [B, T, K] = "
            f"{list(log_emit.shape)}, got {list(x.shape)}"
        )
    return at_least_float32(matrices)


def potentials(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None,
    log_final: Tensor | None,
    trans_axis: TransAxis,
) -> Potentials:
    """Check everything that is cheap; the values of `lengths` are the kernel's to check."""
    check_float("log_emit", log_emit)
    if log_emit.dim() != 3 or log_emit.shape[1] < 1 or log_emit.shape[2] < 1:
        raise ValueError(
            f"log_emit must have the shape [B, T, K] with T, K >= 1, got {list(log_emit.shape)}"
        )
    if lengths is not None:
        lengths = integers("lengths", lengths, log_emit.shape[0], "log_emit", log_emit)
    return Potentials(
        _vector("log_init", log_init, log_emit),
        _matrices(log_trans, log_emit, trans_axis),
        at_least_float32(log_emit),
        lengths,
        None if log_final is None else _vector("log_final", log_final, log_emit),
    )
