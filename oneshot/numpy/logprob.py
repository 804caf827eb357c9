"""NumPy faces of the `logprob` family."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oneshot import ops
from oneshot.numpy._arrays import tensors


def token_logprobs_and_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    temperature: float | ArrayLike = 1.0,
    mask: ArrayLike | None = None,
    keep_mask: ArrayLike | None = None,
) -> tuple[NDArray, NDArray]:
    """NumPy face of :func:`oneshot.ops.token_logprobs_and_entropy`."""
    others = {"targets": targets, "mask": mask, "keep_mask": keep_mask}
    found = tensors({"logits": logits}, others)
    by_row: Any = temperature
    if np.ndim(temperature):
        by_row = tensors({"temperature": temperature})["temperature"]
    logprobs, entropy = ops.token_logprobs_and_entropy(temperature=by_row, **found)
    return logprobs.numpy(), entropy.numpy()
