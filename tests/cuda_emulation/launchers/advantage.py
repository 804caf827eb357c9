"""The emulated CUDA kernels of `advantage`, with the arguments and outputs of the ops."""

from __future__ import annotations

import ctypes

import torch
from emulation import Device, kernels
from launchers.common import integers, pointers, workspace

BASELINES, SCALES = ("mean", "loo", "opo", "none"), ("std", "batch_std", "none")


def group_advantages(
    rewards, mask, lengths, group_size, group_ids, group_sizes,
    baseline, scale, ddof, eps, singleton, nan, seed=0,
):  # fmt: skip
    device, library = Device(kernels(), seed), kernels()
    rewards = rewards.contiguous()
    mask, lengths, group_ids, group_sizes = (
        None if t is None else t.contiguous() for t in (mask, lengths, group_ids, group_sizes)
    )
    out = device.empty(rewards.shape, rewards.dtype)
    rows, steps = rewards.shape[0], rewards.shape[1] if rewards.dim() == 2 else 1
    codes = (ctypes.c_int * 5)(
        BASELINES.index(baseline), SCALES.index(scale), ddof,
        ("raw", "zero").index(singleton), ("propagate", "ignore").index(nan),
    )  # fmt: skip
    scratch = device.scratch(workspace(library.emu_group_workspace, ctypes.c_int64(rows)))
    device.check(library.emu_group_advantages(
        int(rewards.dtype == torch.float64), *pointers(device.put(rewards), device.put(mask), out),
        integers(rows, steps), *pointers(device.put(lengths)), ctypes.c_int64(group_size),
        *pointers(device.put(group_ids), device.put(group_sizes)),
        ctypes.c_int64(0 if group_sizes is None else group_sizes.numel()), codes,
        ctypes.c_double(eps), *pointers(scratch),
    ))  # fmt: skip
    return device.get(out)


def gae(rewards, values, mask, bootstrap, cu_seqlens, gamma, lam, seed=0):
    device, library = Device(kernels(), seed), kernels()
    packed = cu_seqlens is not None
    rewards, values, mask = (
        t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (rewards, values, mask)
    )
    advantages = device.empty(rewards.shape, rewards.dtype)
    returns = device.empty(rewards.shape, rewards.dtype)
    numbers = integers(
        cu_seqlens.numel() - 1 if packed else rewards.shape[0],
        0 if packed else rewards.shape[1],
        0 if packed else rewards.stride(0),
        0 if packed else values.stride(0),
        0 if packed or mask is None else mask.stride(0),
        0 if bootstrap is None else bootstrap.stride(0),
        rewards.numel(),
    )
    given = map(device.put, (rewards, values, mask, bootstrap, cu_seqlens))
    device.check(library.emu_gae(
        int(rewards.dtype == torch.float64), *pointers(*given, advantages, returns), numbers,
        ctypes.c_double(gamma), ctypes.c_double(lam),
    ))  # fmt: skip
    return device.get(advantages), device.get(returns)


def whiten(values, mask, shift_mean, eps, seed=0):
    device, library = Device(kernels(), seed), kernels()
    values, mask = values.contiguous(), None if mask is None else mask.contiguous()
    count = ctypes.c_int64(values.numel())
    scratch = device.scratch(workspace(library.emu_whiten_workspace, count))
    out = device.empty(values.shape, values.dtype)
    device.check(library.emu_whiten(
        int(values.dtype == torch.float64),
        *pointers(device.put(values), device.put(mask), out), count, ctypes.c_bool(shift_mean),
        ctypes.c_double(eps), *pointers(scratch),
    ))  # fmt: skip
    return device.get(out)
