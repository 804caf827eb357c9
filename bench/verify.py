"""Verification before timing: outputs and gradients of each provider against float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from oneshot.bench.registry import Call, Inputs, Operation, Provider

# Largest allowed error, ||got - want|| / ||want||, of each output and each gradient, by the dtype
# the provider returns it in. bfloat16 alone rounds by 1e-3; roundings inside come on top.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
# The norm forgives a few wrong elements among many, so no element may be off by more than this
# share of |want| + mean |want|. It is wide because a gradient is a difference of larger terms.
ELEMENT_TOLERANCE = 0.1


@dataclass(frozen=True)
class Verdict:
    """Outcome of one verification.

    Args:
        status: "ok", "failed" (wrong or raised) or "not installed".
        detail: What went wrong, with the number; empty when ok.
        error: Largest relative error in the 2-norm; None if nothing could be compared.
        tolerance: What was allowed for the tensor with that error.
    """

    status: str
    detail: str = ""
    error: float | None = None
    tolerance: float | None = None


def step(
    call: Call, inputs: Inputs, differentiate: tuple[str, ...] = ()
) -> tuple[torch.Tensor, ...]:
    """One unit of work, the thing that is timed: outputs, then gradients of the named inputs."""
    if not differentiate:
        with torch.no_grad():
            return call(inputs)
    live = {
        key: value.detach().requires_grad_() if key in differentiate else value
        for key, value in inputs.items()
    }
    outputs = call(live)
    cotangents = [
        cotangent.to(output.dtype)
        for cotangent, output in zip(inputs["cotangents"], outputs, strict=True)
    ]
    leaves = [live[key] for key in differentiate]
    return (*outputs, *torch.autograd.grad(outputs, leaves, cotangents))


def expected(
    operation: Operation, inputs: Inputs
) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """Rows compared (None: all) and the float64 outputs and gradients there."""
    rows = None
    if operation.verify_rows is not None:
        total = next(iter(inputs.values())).shape[0]
        inner = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        rows = torch.cat((torch.tensor([0, total - 1]), inner[: operation.verify_rows - 2]))

    def lift(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(lift(item) for item in value)
        if not isinstance(value, torch.Tensor):
            return value
        value = value if rows is None or value.dim() == 0 else value[rows]
        return value.double() if value.is_floating_point() else value

    exact = {key: lift(value) for key, value in inputs.items()}
    return rows, step(operation.oracle, exact, operation.differentiate)


def errors(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    """Relative error in the 2-norm, and largest |got - want| / (|want| + mean |want|)."""
    if want.numel() == 0:
        return 0.0, 0.0
    difference = (got.double() - want).abs()
    if not difference.any():
        return 0.0, 0.0  # 0 wanted, 0 got
    element = torch.where(difference == 0, 0.0, difference / (want.abs() + want.abs().mean()))
    return (difference.norm() / want.norm()).item(), element.max().item()


def compare(
    operation: Operation,
    provider: Provider,
    got: tuple[torch.Tensor, ...],
    rows: torch.Tensor | None,
    want: tuple[torch.Tensor, ...],
) -> Verdict:
    """Judge a provider's outputs and gradients."""
    if len(got) != len(want):
        return Verdict("failed", f"returned {len(got)} tensors, expected {len(want)}")
    worst, share = Verdict("ok"), -1.0
    outputs = len(want) - len(operation.differentiate)
    for index, (mine, exact) in enumerate(zip(got, want, strict=True)):
        name = (
            f"output {index}"
            if index < outputs
            else f"gradient of {operation.differentiate[index - outputs]}"
        )
        mine = mine if rows is None or mine.dim() == 0 else mine[rows]
        if mine.shape != exact.shape:
            return Verdict(
                "failed", f"{name} has shape {list(mine.shape)}, expected {list(exact.shape)}"
            )
        tolerance = TOLERANCE[mine.dtype]
        error, element = errors(mine, exact)
        if not error <= tolerance:  # a NaN error fails too
            detail = f"{name} is off by {error:.3g} in the 2-norm (allowed {tolerance:.3g})"
            return Verdict("failed", detail, error, tolerance)
        if not provider.coarse and not element <= ELEMENT_TOLERANCE:
            detail = f"an element of {name} is off by {element:.3g} (allowed {ELEMENT_TOLERANCE})"
            return Verdict("failed", detail, error, tolerance)
        if error / tolerance > share:
            worst, share = Verdict("ok", "", error, tolerance), error / tolerance
    return worst
