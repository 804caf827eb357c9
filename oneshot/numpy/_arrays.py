"""From arrays to tensors that share their memory, as the ops take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Arrays = Mapping[str, ArrayLike | None]
_FLOATS = ("float16", "float32", "float64")


def tensors(floats: Arrays, others: Arrays | None = None) -> dict[str, Any]:
    """Named arguments of an op.

    Args:
        floats: Brought to one dtype, the widest of them by NumPy's rules; integers and Python
            numbers count as float64. None stays None.
        others: Masks and integers. Integers of any width become int64.

    Raises:
        TypeError: An array holds no numbers, or floats that torch does not have.
    """
    numbers = {name: _numbers(name, x) for name, x in floats.items() if x is not None}
    widest = np.result_type(*(x.dtype for x in numbers.values()))
    found = {name: _tensor(x.astype(widest, copy=False)) for name, x in numbers.items()}
    for name, array in (others or {}).items():
        if array is not None:
            dense = np.asarray(array)
            whole = dense.dtype.kind in "iu" or dense.size == 0
            found[name] = _tensor(dense.astype(np.int64) if whole else _known(name, dense))
    return {name: found.get(name) for name in (*floats, *(others or {}))}


def _numbers(name: str, array: ArrayLike) -> NDArray:
    dense = np.asarray(array)
    return dense.astype(np.float64) if dense.dtype.kind in "iu" else _known(name, dense)


def _known(name: str, dense: NDArray) -> NDArray:
    if dense.dtype.kind != "b" and dense.dtype.name not in _FLOATS:
        raise TypeError(
            f"{name} must be an array of {', '.join(_FLOATS)}, integers or bool, got {dense.dtype}"
        )
    return dense


def _tensor(array: NDArray) -> torch.Tensor:
    """Without a copy, but for arrays that torch cannot see: read-only or walked backwards."""
    visible = array.flags.writeable and all(step >= 0 for step in array.strides)
    return torch.from_numpy(array if visible else array.copy())
