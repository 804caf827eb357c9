"""What launchers share: tensors as rows, sizes, and numbers as a kernel receives them."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """The leading dimensions: row i starts at (i // inner) * outer + (i % inner) * step.

    The last dimension has stride 1.
    """

    data: torch.Tensor
    inner: int
    outer: int
    step: int

    def arguments(self) -> tuple[torch.Tensor, int, int, int]:
        """What a kernel takes: pointer, inner, outer, step."""
        return self.data, self.inner, self.outer, self.step


def rows_of(tensor: torch.Tensor) -> Rows:
    """Walk the leading dimensions in place where two strides can say how; copy otherwise."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size == 1:
            continue
        if sizes and strides[-1] == size * stride:
            sizes[-1] *= size
            strides[-1] = stride
        else:
            sizes.append(size)
            strides.append(stride)
    if len(sizes) > 2:
        return rows_of(tensor.contiguous())
    sizes, strides = [1] * (2 - len(sizes)) + sizes, [0] * (2 - len(strides)) + strides
    return Rows(tensor, sizes[1], strides[0], strides[1])


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is not below n, nor below `least`."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def ceil_div(n: int, by: int) -> int:
    """How many blocks of `by` hold n."""
    return -(-n // by)


def single(x: float) -> float:
    """Rounded to float32, as a kernel receives every float; the interpreter would not round."""
    return struct.unpack("f", struct.pack("f", x))[0]
