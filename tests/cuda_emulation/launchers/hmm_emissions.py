"""The emulated CUDA kernels of `combine_emissions`, with the arguments and outputs of the ops."""

from __future__ import annotations

import ctypes

import torch
from emulation import Device, kernels
from hmm_device import integers, pointers


def _arguments(device, log_emissions, observations, weights, normalize):
    soft = observations.is_floating_point()
    inputs = (log_emissions, observations if soft else None, None if soft else observations,
              weights)  # fmt: skip
    batch, steps = observations.shape[:2]
    numbers = integers(batch * steps, *log_emissions.shape[-3:], log_emissions.dim() == 3,
                       normalize)  # fmt: skip
    return pointers(*map(device.put, inputs)), numbers


def combine_emissions(log_emissions, observations, weights, normalize, seed=0):
    device, library = Device(kernels(), seed), kernels()
    out = device.empty((*observations.shape[:2], log_emissions.shape[-2]), log_emissions.dtype)
    given = _arguments(device, log_emissions, observations, weights, normalize)
    double = int(log_emissions.dtype == torch.float64)
    device.check(library.emu_emissions(double, *given, ctypes.c_void_p(out)))
    return device.get(out)


def combine_emissions_backward(grad, log_emissions, observations, weights, normalize, seed=0):
    device, library = Device(kernels(), seed), kernels()
    inputs, numbers = _arguments(device, log_emissions, observations, weights, normalize)
    soft = observations.is_floating_point()
    out = [
        None if x is None else device.empty(x.shape, grad.dtype)
        for x in (log_emissions, observations if soft else None, weights)
    ]
    library.emu_emissions_workspace.restype = ctypes.c_int64
    workspace = device.scratch(library.emu_emissions_workspace(inputs, numbers))
    device.check(
        library.emu_emissions_backward(
            int(grad.dtype == torch.float64), inputs, numbers, ctypes.c_void_p(device.put(grad)),
            pointers(*out), ctypes.c_void_p(workspace),
        )
    )  # fmt: skip
    return tuple(grad.new_empty(0) if x is None else device.get(x) for x in out)
