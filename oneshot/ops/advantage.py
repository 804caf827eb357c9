"""Credit assignment: from rewards and values to advantages."""

from __future__ import annotations

import torch

from oneshot.ops import _library
from oneshot.ops._checks import check_float, check_mask, check_same_device
from oneshot.reference import advantage as reference

_whiten = _library.define(
    "whiten(Tensor values, Tensor? mask, bool shift_mean, float eps) -> Tensor",
    reference.whiten,
    lambda values, mask, shift_mean, eps: values.new_empty(values.shape),
)


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Scale values to unit variance (and zero mean) over all unmasked places.

    Args:
        values: Any shape, float32 or float64; half formats are computed in float32.
        mask: Bool, same shape; False places are ignored and come back as 0. Default: all count.
        shift_mean: False keeps the mean of the values.
        eps: Added to the variance.

    Returns:
        Tensor of the shape of `values`; float32 (float64 for float64 input). Carries no gradient:
        advantages are data.

    Raises:
        TypeError: `values` is not floating point, or `mask` is not bool.
        ValueError: `mask` has another shape or device.

    Source:
        verl ``masked_whiten``: (x - mean) * rsqrt(var + 1e-8), unbiased variance.
    """
    check_float("values", values)
    if mask is not None:
        check_mask("mask", mask, values.shape, "values")
        check_same_device("mask", mask, "values", values)
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return _whiten(values.detach(), mask, shift_mean, eps)
