"""Numbers of ops: Python floats, or tensors where `torch.compile` follows numbers that vary.

Public functions check a number first and then pass it through `number`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def refuse_gradient(name: str, value: Any) -> None:
    """Raise ValueError for a tensor that requires grad: its gradient would be lost in silence."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise ValueError(
            f"{name} must be a number or a tensor without gradient, got a tensor that requires "
            f"grad: the op has no derivative in {name}, pass {name}.detach()"
        )


def number(name: str, value: Any) -> Any:
    """A coefficient as a float, which no gradient passes; as a 0-dim tensor if Dynamo follows it.

    An op makes a constant of a float that it takes, and the next value would be compiled anew.
    """
    refuse_gradient(name, value)
    if torch.compiler.is_dynamo_compiling() and _varies(value):
        return as_tensor(value)
    return float(value)


def numbers(values: Iterable[Any]) -> list[float] | torch.Tensor:
    """Several for one argument ``float[]``: one float64 tensor if any of them is a tensor."""
    values = list(values)
    if torch.compiler.is_dynamo_compiling() and any(isinstance(x, torch.Tensor) for x in values):
        return torch.stack([as_tensor(x) for x in values])
    return [float(x) for x in values]


def as_tensor(value: Any) -> torch.Tensor:
    """A number as a 0-dim float64 tensor on the CPU, like all numbers of an overload ``traced``.

    An addition is what the compiler turns into arithmetic of tensors; it specialises `torch.full`.
    """
    if isinstance(value, torch.Tensor):
        return value
    return torch.zeros((), dtype=torch.float64, device="cpu") + value


def is_finite(value: float) -> bool:
    """`math.isfinite`, which Dynamo cannot ask of a symbol; to it, ``value < inf`` always holds."""
    return -1.7976931348623157e308 <= value <= 1.7976931348623157e308


def _varies(value: float) -> bool:
    """Whether Dynamo follows `value` as a symbol, whose type it says is float.

    Of a constant it is known whether it equals some odd number. The odd number must be a literal:
    Dynamo would follow a global as a symbol, too.
    """
    known = torch.fx.experimental.symbolic_shapes.statically_known_true
    return not (known(value == 0.6180339887498949) or known(value != 0.6180339887498949))
