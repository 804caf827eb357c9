"""Numbers of ops: Python floats, or 0-dim tensors where `torch.compile` follows ones that vary."""

from __future__ import annotations

from typing import Any

import torch


def refuse_gradient(name: str, value: Any) -> None:
    """Raise ValueError for a tensor that requires grad: its gradient would be lost in silence."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise ValueError(
            f"{name} must be a number or a tensor without gradient, got a tensor that requires "
            f"grad: the op has no derivative in {name}, pass {name}.detach()"
        )


def number(name: str, value: Any) -> float:
    """A coefficient as a float, which no gradient passes."""
    refuse_gradient(name, value)
    return float(value)


def is_finite(value: float) -> bool:
    """`math.isfinite`, which Dynamo cannot ask of a symbol; nor ``value < inf``, always true to it."""
    return -1.7976931348623157e308 <= value <= 1.7976931348623157e308


def varies(value: float) -> bool:
    """Whether Dynamo, while it traces, follows `value` as a symbol, whose type it says is float.

    Of a constant it is known whether it equals some odd number. The odd number must be a literal:
    Dynamo would follow a global as a symbol, too.
    """
    known = torch.fx.experimental.symbolic_shapes.statically_known_true
    return not (known(value == 0.6180339887498949) or known(value != 0.6180339887498949))


def as_tensor(value: float | list[float] | torch.Tensor) -> torch.Tensor:
    """One number, or several, as a float64 tensor on the CPU that follows a symbol.

    An addition is what the compiler turns into arithmetic of tensors; `torch.full` of a symbol
    would be compiled anew for each value.
    """
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list):
        return torch.stack([as_tensor(x) for x in value])
    return torch.zeros((), dtype=torch.float64, device="cpu") + value
