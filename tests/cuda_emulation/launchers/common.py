"""What launchers on the emulator pass to ctypes."""

from __future__ import annotations

import ctypes

import torch
from emulation import DTYPES

# Kinds of a single number on the device.
KINDS = {torch.float32: 1, torch.float64: 2, torch.int64: 3}


def integers(*numbers: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(numbers))(*map(int, numbers))


def doubles(*numbers: float) -> ctypes.Array:
    return (ctypes.c_double * len(numbers))(*map(float, numbers))


def pointers(*addresses: int | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(address) for address in addresses]


def dtype_of(tensor: torch.Tensor) -> ctypes.c_int:
    return ctypes.c_int(DTYPES[tensor.dtype])


def real_type(tensor: torch.Tensor) -> torch.dtype:
    """What results are returned in: float32, float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def workspace(function: ctypes._CFuncPtr, *arguments: object) -> int:
    """The bytes that a launcher asks for."""
    function.restype = ctypes.c_int64
    return function(*arguments)
