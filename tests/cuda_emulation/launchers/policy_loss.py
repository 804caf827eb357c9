"""The emulated CUDA kernels of `policy_loss`, with the arguments and outputs of the ops."""

from __future__ import annotations

import ctypes

import torch
from emulation import DTYPES, Device, kernels
from launchers.common import KINDS, doubles, integers, pointers, real_type, workspace


def _batch(tokens, cu_seqlens) -> int:
    return tokens.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1


def _tokens(device: Device, views, mask, cu_seqlens) -> list[object]:
    """Shape, bounds, mask, then pointer and layout of each view (None, or one value a sequence)."""
    first = views[0]
    width = first.shape[1] if first.dim() == 2 else 0
    addresses, layouts = [], []
    for t in views:
        addresses.append(device.put(t))
        if t is None:
            layouts += [0, 0, 0]
        elif t.shape == first.shape and t.dim() == first.dim():
            layouts += [DTYPES[t.dtype], t.stride(0) if t.dim() == 2 else 0, t.stride(-1)]
        else:
            layouts += [DTYPES[t.dtype], t.stride(0), 0]
    mask = None if mask is None else mask.contiguous()
    return [
        integers(_batch(first, cu_seqlens), width, first.dtype == torch.float64, first.numel()),
        *pointers(device.put(cu_seqlens), device.put(mask)),
        (ctypes.c_void_p * len(addresses))(*addresses), integers(*layouts),
    ]  # fmt: skip


def _number(device: Device, t: torch.Tensor | None) -> list[object]:
    return [*pointers(device.put(t)), 0 if t is None else KINDS[t.dtype]]


def policy_loss(
    logprobs, old, advantages, mask, ref, entropy, weights, cu_seqlens, count, options, max_length,
    seed=0,
):  # fmt: skip
    device, library = Device(kernels(), seed), kernels()
    views = (logprobs, old, advantages, ref, entropy, weights)
    batch, real = _batch(logprobs, cu_seqlens), real_type(logprobs)
    out = [device.empty((), real), device.empty((14,), real)]
    out.append(device.empty((4, batch), torch.float64))
    sums = device.scratch(workspace(library.emu_policy_workspace, ctypes.c_int64(batch)))
    device.check(library.emu_policy_loss(
        *_tokens(device, views, mask, cu_seqlens), doubles(*options, max_length),
        *_number(device, count), *pointers(sums, *out),
    ))  # fmt: skip
    return tuple(map(device.get, out))


def policy_loss_backward(
    grad_loss, logprobs, old, advantages, mask, ref, weights, cu_seqlens, sums, need_logprobs,
    need_entropy, options, max_length, seed=0,
):  # fmt: skip
    device = Device(kernels(), seed)
    views = (logprobs, old, advantages, ref, None, weights)
    needs = (need_logprobs, need_entropy)
    out = [device.empty(logprobs.shape, logprobs.dtype) if need else None for need in needs]
    device.check(kernels().emu_policy_loss_backward(
        *_tokens(device, views, mask, cu_seqlens), doubles(*options, max_length),
        *_number(device, grad_loss), *pointers(device.put(sums.contiguous()), *out),
    ))  # fmt: skip
    return tuple(logprobs.new_empty(0) if x is None else device.get(x) for x in out)


def value_loss(
    values, old, returns, mask, cu_seqlens, count, clip, aggregate, count_empty, max_length, seed=0
):
    device, library = Device(kernels(), seed), kernels()
    batch, real = _batch(values, cu_seqlens), real_type(values)
    out = [device.empty((), real), device.empty((5,), real)]
    out.append(device.empty((batch,), torch.float64))
    sums = device.scratch(workspace(library.emu_parts_workspace, ctypes.c_int64(batch)))
    device.check(library.emu_value_loss(
        *_tokens(device, (values, old, returns), mask, cu_seqlens),
        doubles(clip, aggregate, count_empty, max_length), *_number(device, count),
        *pointers(sums, *out),
    ))  # fmt: skip
    return tuple(map(device.get, out))


def value_loss_backward(grad_loss, values, old, returns, mask, cu_seqlens, weights, clip, seed=0):
    device = Device(kernels(), seed)
    gradient = device.empty(values.shape, values.dtype)
    device.check(kernels().emu_value_loss_backward(
        *_tokens(device, (values, old, returns), mask, cu_seqlens), ctypes.c_double(clip),
        *_number(device, grad_loss), *pointers(device.put(weights.contiguous()), gradient),
    ))  # fmt: skip
    return device.get(gradient)


def importance_weights(
    logprobs, sampler, mask, cu_seqlens, per_sequence, truncate, low, high, log_ratio_clamp,
    normalize, ignore_nan, seed=0,
):  # fmt: skip
    device, library = Device(kernels(), seed), kernels()
    batch, real = _batch(logprobs, cu_seqlens), real_type(logprobs)
    out = [device.empty((batch,) if per_sequence else logprobs.shape, real)]
    out.append(device.empty((8,), real))
    sums = device.scratch(workspace(library.emu_parts_workspace, ctypes.c_int64(batch)))
    device.check(library.emu_importance_weights(
        *_tokens(device, (logprobs, sampler), mask, cu_seqlens),
        doubles(per_sequence, truncate, low, high, log_ratio_clamp, normalize, ignore_nan),
        *pointers(sums, device.scratch(8), *out),
    ))  # fmt: skip
    return tuple(map(device.get, out))
