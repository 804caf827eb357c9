"""NumPy faces of the `hmm` family."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oneshot._load import require_native
from oneshot.numpy import _arrays

Floats = NDArray[np.float32]


class HmmPosteriors(NamedTuple):
    """What :func:`hmm_posteriors` returns; None where not asked for."""

    log_likelihood: Floats  # [B]
    gamma: Floats  # [B, T, K]
    xi: Floats | None  # [B, T - 1, K, K]
    xi_sum: Floats | None  # [B, K, K]


def hmm_posteriors(
    log_init: ArrayLike,
    log_trans: ArrayLike,
    log_emit: ArrayLike,
    lengths: ArrayLike | None = None,
    log_final: ArrayLike | None = None,
    *,
    xi: bool = False,
    xi_sum: bool = False,
) -> HmmPosteriors:
    """NumPy face of :func:`oneshot.ops.hmm_posteriors` (float32, one thread).

    `log_trans` is [K, K] or [1|B, 1|T-1, K, K].
    """
    arrays = _potentials(log_init, log_trans, log_emit, lengths, log_final)
    return HmmPosteriors(*require_native().hmm_posteriors(*arrays, xi, xi_sum))


def hmm_viterbi(
    log_init: ArrayLike,
    log_trans: ArrayLike,
    log_emit: ArrayLike,
    lengths: ArrayLike | None = None,
    log_final: ArrayLike | None = None,
) -> tuple[NDArray[np.int64], Floats]:
    """NumPy face of :func:`oneshot.ops.hmm_viterbi`: path and score (float32, one thread)."""
    arrays = _potentials(log_init, log_trans, log_emit, lengths, log_final)
    path, score = require_native().hmm_viterbi(*arrays)
    return path, score


def _potentials(
    log_init: ArrayLike,
    log_trans: ArrayLike,
    log_emit: ArrayLike,
    lengths: ArrayLike | None,
    log_final: ArrayLike | None,
) -> tuple[Any, ...]:
    emit = np.ascontiguousarray(log_emit, dtype=np.float32)
    if emit.ndim != 3 or emit.shape[1] < 1 or emit.shape[2] < 1:
        raise ValueError(
            f"log_emit must have the shape [B, T, K] with T, K >= 1, got {list(emit.shape)}"
        )
    batch, steps, states = emit.shape
    trans = np.ascontiguousarray(log_trans, dtype=np.float32)
    if trans.ndim == 2:
        trans = trans[None, None]
    if (
        trans.ndim != 4
        or trans.shape[0] not in (1, batch)
        or trans.shape[1] not in (1, steps - 1)
        or trans.shape[2:] != (states, states)
    ):
        raise ValueError(
            f"log_trans must have the shape [K, K] or [1|B, 1|T-1, K, K] for log_emit "
            f"{list(emit.shape)}, got {list(np.shape(log_trans))}"
        )
    counts = _arrays.integers("lengths", lengths, batch)
    if counts is not None and counts.size and not 0 <= counts.min() <= counts.max() <= steps:
        raise ValueError(f"lengths must lie in [0, {steps}], got {counts.min()} to {counts.max()}")
    init = _vector("log_init", log_init, batch, states)
    final = None if log_final is None else _vector("log_final", log_final, batch, states)
    return init, trans, emit, counts, final


def _vector(name: str, x: ArrayLike, batch: int, states: int) -> Floats:
    dense = np.ascontiguousarray(x, dtype=np.float32)
    if dense.shape == (states,):
        return dense[None]
    if dense.shape != (batch, states):
        raise ValueError(
            f"{name} must have the shape [{states}] or [{batch}, {states}], got {list(dense.shape)}"
        )
    return dense
