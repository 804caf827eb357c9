"""One check for every op and backend: outputs and gradients against the reference in float64."""

from __future__ import annotations

from typing import NamedTuple

import backends
import kernel_inputs
import pytest
import torch

from oneshot.ops.backends import references

REFERENCES = references()
HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALVES)
FULL = pytest.mark.gpu_free  # too long for `make test` where kernels are interpreted


def some(first, *others):
    """The first value in `make test`, all of them in `make test-gpu-free`."""
    return [first, *(pytest.param(value, marks=FULL) for value in others)]


NAN, INF = float("nan"), float("inf")


class Both(NamedTuple):
    """An output as the backend computed it, and in float64; it goes into backward as either."""

    got: torch.Tensor
    want: torch.Tensor


def wide(x):
    """In float64, as the oracle takes it."""
    return kernel_inputs.wide(x.want if isinstance(x, Both) else x)


def placed(x):
    """On the device of the backend, with its strides and what lies between them."""
    x = x.got if isinstance(x, Both) else x
    if not isinstance(x, torch.Tensor) or x.device.type == backends.DEVICE:
        return x
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(backends.DEVICE)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


def close(got, want, rtol, atol, scaled=False):
    """An output in a half format may be off by its own rounding."""
    if got.dtype in HALVES:
        rtol = max(rtol, torch.finfo(got.dtype).eps)
    if scaled and want.numel():
        atol *= _scale(want)
    torch.testing.assert_close(
        got.double().cpu(), want.double(), rtol=rtol, atol=atol, equal_nan=True
    )


def _scale(want):
    finite = want[want.isfinite()].abs()
    return max(1.0, finite.max().item()) if finite.numel() else 1.0


def check(name, *arguments, rtol=5e-6, atol=5e-6, exact=1e-10, scaled=False, judge=None):
    """Run one op on the backend and compare each output with the reference in float64.

    Args:
        name: Of the op; the arguments are those of its schema.
        rtol: Relative tolerance where the arithmetic is float32.
        atol: Absolute tolerance there.
        exact: Both, where the inputs are float64.
        scaled: atol counts in units of the largest wanted number.
        judge: (got, want) -> None, instead of comparing.

    Returns:
        For each output what the backend computed and the truth.
    """
    first = next(x for x in arguments if isinstance(x, (torch.Tensor, Both)))
    dtype = (first.got if isinstance(first, Both) else first).dtype
    reason = backends.why_not(name, dtype)
    if reason is not None:
        pytest.skip(reason)
    got = getattr(torch.ops.oneshot, name).default(*map(placed, arguments))
    want = REFERENCES[name](*map(wide, arguments))
    single = isinstance(got, torch.Tensor)
    pairs = [Both(*pair) for pair in zip(*([x] if single else x for x in (got, want)), strict=True)]
    if dtype == torch.float64:
        rtol = atol = exact
    for mine, true in pairs:
        if judge is not None:
            judge(mine, true)
        elif mine.is_floating_point():
            close(mine, true, rtol, atol, scaled)
        else:
            assert torch.equal(mine.cpu(), true)
    return pairs


def padding(mask, x):
    """`x` with NaN wherever nothing counts."""
    return torch.where(mask, x, NAN)


def ragged(lengths, width=None, keep=0.7):
    """Which places of padded rows lie inside a sequence, and which of those count."""
    inside = torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]
    return inside, inside & (torch.rand(inside.shape) < keep)


def bounds(lengths):
    """cu_seqlens of packed sequences."""
    return torch.tensor([0, *lengths]).cumsum(0)
