"""Value loss and importance weights on the emulator, against the reference in float64."""

from __future__ import annotations

import ctypes
import itertools
import math

import pytest
import torch
from emulation import DTYPES, Device, kernels

from oneshot.reference import policy_loss as reference

LENGTHS = [1, 7, 0, 63, 30]
KINDS = {torch.float32: 1, torch.float64: 2, torch.int64: 3}


def tokens(count: int, dtype: torch.dtype, packed: bool):
    """`count` tensors of token values with NaN where nothing counts, the mask and the bounds."""
    batch, width = len(LENGTHS), max(LENGTHS)
    shape = (sum(LENGTHS),) if packed else (batch, width)
    mask = torch.rand(shape) < 0.7
    if not packed:
        mask &= torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    values = [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(count)]
    for x in values:
        x[~mask] = float("nan")
    bounds = torch.tensor([0, *itertools.accumulate(LENGTHS)]) if packed else None
    return values, mask, bounds


def common(device: Device, views, mask, bounds) -> list[object]:
    first = views[0]
    shape = (len(LENGTHS), 0 if bounds is not None else first.shape[1],
             int(first.dtype == torch.float64), first.numel())  # fmt: skip
    pointers, layouts = [], []
    for t in views:
        pointers.append(device.put(t))
        layouts += [0, 0, 0] if t is None else [
            DTYPES[t.dtype], t.stride(0) if t.dim() == 2 else 0, t.stride(-1)
        ]  # fmt: skip
    return [
        (ctypes.c_int64 * 4)(*shape), ctypes.c_void_p(device.put(bounds)),
        ctypes.c_void_p(device.put(mask)), (ctypes.c_void_p * len(pointers))(*pointers),
        (ctypes.c_int64 * len(layouts))(*layouts),
    ]  # fmt: skip


def scratch(device: Device) -> int:
    device.library.emu_parts_workspace.restype = ctypes.c_int64
    return device.scratch(device.library.emu_parts_workspace(ctypes.c_int64(len(LENGTHS))))


def real(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def doubles(*values: float) -> ctypes.Array:
    return (ctypes.c_double * len(values))(*map(float, values))


def check_value_loss(views, mask, bounds, clip, aggregate, count, count_empty, seed=0) -> None:
    library, dtype = kernels(), views[0].dtype
    tolerance = 1e-10 if dtype == torch.float64 else 3e-5
    device = Device(library, seed)
    arguments = common(device, views, mask, bounds)
    out = [device.empty((), real(views[0])), device.empty((5,), real(views[0]))]
    out.append(device.empty((len(LENGTHS),), torch.float64))
    device.check(
        library.emu_value_loss(
            *arguments, doubles(clip, aggregate, count_empty, 50),
            ctypes.c_void_p(device.put(count)), 0 if count is None else KINDS[count.dtype],
            *map(ctypes.c_void_p, (scratch(device), *out)),
        )
    )  # fmt: skip
    got = [device.get(x) for x in out]
    wide = [None if t is None else t.double() for t in views]
    want = reference.value_loss(
        wide[0], wide[1], wide[2], mask, bounds, count, clip, aggregate, count_empty, 50
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)

    upstream, weights = torch.tensor(0.7, dtype=got[0].dtype), got[2]
    device = Device(library, seed + 1)
    gradient = device.empty(views[0].shape, dtype)
    device.check(
        library.emu_value_loss_backward(
            *common(device, views, mask, bounds), ctypes.c_double(clip),
            ctypes.c_void_p(device.put(upstream)), KINDS[upstream.dtype],
            ctypes.c_void_p(device.put(weights)), ctypes.c_void_p(gradient),
        )
    )  # fmt: skip
    right = reference.value_loss_backward(
        upstream.double(), wide[0], wide[1], wide[2], mask, bounds, weights, clip
    )
    rounding = {torch.bfloat16: 4e-3, torch.float16: 1e-3}.get(dtype, tolerance)
    torch.testing.assert_close(
        device.get(gradient).double(), right, rtol=rounding, atol=max(1e-7, tolerance)
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_loss_of_every_type_and_layout(dtype: torch.dtype, packed: bool) -> None:
    views, mask, bounds = tokens(3, dtype, packed)
    check_value_loss(views, mask, bounds, 0.25, 0, None, True)


@pytest.mark.parametrize("aggregate", range(5))
@pytest.mark.parametrize("count", [None, torch.tensor(11.5)])
def test_value_loss_aggregation_and_no_clipping(aggregate: int, count) -> None:
    views, mask, bounds = tokens(3, torch.float64, False)
    check_value_loss(views, mask, bounds, math.inf, aggregate, count, False)
    check_value_loss([views[0], None, views[2]], mask, bounds, math.inf, aggregate, count, True)


def check_weights(views, mask, bounds, *options, seed=0) -> None:
    library, dtype = kernels(), views[0].dtype
    tolerance = 1e-10 if dtype == torch.float64 else 3e-5
    device = Device(library, seed)
    arguments = common(device, views, mask, bounds)
    weights = device.empty((len(LENGTHS),) if options[0] else views[0].shape, real(views[0]))
    metrics = device.empty((8,), real(views[0]))
    pointers = scratch(device), device.scratch(8), weights, metrics
    device.check(
        library.emu_importance_weights(
            *arguments, doubles(*options), *map(ctypes.c_void_p, pointers)
        )
    )
    want = reference.importance_weights(
        views[0].double(), views[1].double(), mask, bounds, *options
    )
    for a, b in zip((device.get(weights), device.get(metrics)), want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_every_type_and_layout(dtype: torch.dtype, packed: bool) -> None:
    check_weights(*tokens(2, dtype, packed), False, True, 0.5, 2.0, 20.0, False, False)


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("ignore_nan", [False, True])
def test_weight_rules(per_sequence, truncate, normalize, ignore_nan) -> None:
    views, mask, bounds = tokens(2, torch.float64, False)
    views[1][3, mask[3].nonzero()[0]] = float("nan")  # the sampler reported none
    check_weights(views, mask, bounds, per_sequence, truncate, 0.2, 3.0, 1.5, normalize, ignore_nan)
