"""NumPy faces of the `hmm` family."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import ArrayLike, NDArray

from oneshot import ops
from oneshot.numpy._arrays import tensors


class HmmPosteriors(NamedTuple):
    """What :func:`hmm_posteriors` returns; None where not asked for."""

    log_likelihood: NDArray  # [B]
    gamma: NDArray  # [B, T, K]
    xi: NDArray | None  # [B, T - 1, K, K]
    xi_sum: NDArray | None  # [B, K, K]


def hmm_posteriors(
    log_init: ArrayLike,
    log_trans: ArrayLike,
    log_emit: ArrayLike,
    lengths: ArrayLike | None = None,
    log_final: ArrayLike | None = None,
    **options: Any,
) -> HmmPosteriors:
    """NumPy face of :func:`oneshot.ops.hmm_posteriors`; `options` are its other arguments."""
    found = ops.hmm_posteriors(
        **_potentials(log_init, log_trans, log_emit, lengths, log_final), **options
    )
    return HmmPosteriors(*(None if x is None else x.numpy() for x in found))  # type: ignore[arg-type]


def hmm_viterbi(
    log_init: ArrayLike,
    log_trans: ArrayLike,
    log_emit: ArrayLike,
    lengths: ArrayLike | None = None,
    log_final: ArrayLike | None = None,
    **options: Any,
) -> tuple[NDArray, NDArray]:
    """NumPy face of :func:`oneshot.ops.hmm_viterbi`: path and score."""
    found = ops.hmm_viterbi(
        **_potentials(log_init, log_trans, log_emit, lengths, log_final), **options
    )
    return found.path.numpy(), found.score.numpy()


def _potentials(
    log_init: ArrayLike,
    log_trans: ArrayLike,
    log_emit: ArrayLike,
    lengths: ArrayLike | None,
    log_final: ArrayLike | None,
) -> dict[str, Any]:
    floats = {"log_init": log_init, "log_trans": log_trans, "log_emit": log_emit}
    return tensors({**floats, "log_final": log_final}, {"lengths": lengths})
