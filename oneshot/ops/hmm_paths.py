"""State paths of the `hmm` family: the best one, and samples. Outputs are data: no gradient."""

from __future__ import annotations

import operator
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from oneshot.ops import _library
from oneshot.ops.hmm_inputs import TransAxis, integers, potentials
from oneshot.reference import hmm as reference
from oneshot.reference import hmm_sampling

_INPUTS = "Tensor log_init, Tensor log_trans, Tensor log_emit, Tensor? lengths, Tensor? log_final"

_viterbi = _library.define(
    f"hmm_viterbi({_INPUTS}) -> (Tensor path, Tensor score)",
    reference.hmm_viterbi,
    lambda _init, _trans, log_emit, *_: (
        log_emit.new_empty(log_emit.shape[:2], dtype=torch.int64),
        log_emit.new_empty(log_emit.shape[:1]),
    ),
)
_sample = _library.define(
    f"hmm_sample({_INPUTS}, Tensor? sequence_ids, SymInt num_samples, SymInt seed) -> Tensor",
    hmm_sampling.hmm_sample,
    lambda _init, _trans, log_emit, _lengths, _final, _ids, num_samples, _seed: log_emit.new_empty(
        (num_samples, *log_emit.shape[:2]), dtype=torch.int64
    ),
)


class HmmPath(NamedTuple):
    """The path of the largest score, int64 [B, T], and that score, [B]."""

    path: Tensor
    score: Tensor


def hmm_viterbi(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None = None,
    log_final: Tensor | None = None,
    *,
    trans_axis: TransAxis = None,
) -> HmmPath:
    """The state path of the largest score.

    Ties go to the lowest state: the lowest of the best last states, and at every step back the
    lowest of the best predecessors.

    Args:
        log_init: As in :func:`oneshot.ops.hmm_log_likelihood`, like all inputs.
        log_trans: [K, K], [1|B, 1|T-1, K, K], or 3-D with `trans_axis`.
        log_emit: [B, T, K].
        lengths: int64 or int32 [B]. Default: T.
        log_final: [K] or [B, K]. Default: 0.
        trans_axis: ``"sequence"`` or ``"step"`` for a 3-D `log_trans`.

    Returns:
        ``path`` int64 [B, T], -1 behind the end of a sequence, and ``score`` [B], float32 (float64
        for float64 inputs). Where no path is possible the score is -inf, where the sequence uses a
        NaN or +inf it is NaN, both with a path of -1. An empty sequence has the score 0.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`oneshot.ops.hmm_log_likelihood`.

    Source:
        Viterbi 1967; Rabiner 1989, equations 32-35.
    """
    x = potentials(log_init, log_trans, log_emit, lengths, log_final, trans_axis)
    return HmmPath(*_viterbi(*x.as_data()))


def hmm_sample(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None = None,
    log_final: Tensor | None = None,
    *,
    seed: SupportsIndex,
    num_samples: SupportsIndex = 1,
    sequence_ids: Tensor | None = None,
    trans_axis: TransAxis = None,
) -> Tensor:
    """State paths drawn from the posterior over whole paths.

    A draw depends on the sequence's own inputs, on seed, sequence id, number of the sample and
    step, and on nothing else: not on batch order, neighbours, padding, threads or the generators of
    torch.

    Args:
        log_init: As in :func:`oneshot.ops.hmm_log_likelihood`, like all inputs.
        log_trans: [K, K], [1|B, 1|T-1, K, K], or 3-D with `trans_axis`.
        log_emit: [B, T, K].
        lengths: int64 or int32 [B]. Default: T.
        log_final: [K] or [B, K]. Default: 0.
        seed: Key of the generator, 0 <= seed < 2^63: an int, a NumPy integer or a 0-dim integer
            tensor.
        num_samples: Paths of each sequence.
        sequence_ids: int64 or int32 [B], numbers that belong to the sequences wherever they stand
            in a batch. Sequences with one id share their random numbers. Default: 0, 1, ... B - 1.
        trans_axis: ``"sequence"`` or ``"step"`` for a 3-D `log_trans`.

    Returns:
        int64 [num_samples, B, T]; -1 behind the end of a sequence, and everywhere where no path is
        possible or the sequence uses a NaN or +inf.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`oneshot.ops.hmm_log_likelihood`; ValueError
            for a seed or a number of samples out of range.

    Source:
        Forward filtering, backward sampling: Chib 1996, "Calculating posterior distributions and
        modal estimates in Markov mixture models". Philox4x32-10: Salmon et al. 2011, "Parallel
        random numbers: as easy as 1, 2, 3".
    """
    x = potentials(log_init, log_trans, log_emit, lengths, log_final, trans_axis)
    seed = _whole_number("seed", seed, 0, 2**63)
    num_samples = _whole_number("num_samples", num_samples, 1, 2**32)
    if sequence_ids is not None:
        sequence_ids = integers("sequence_ids", sequence_ids, len(log_emit), "log_emit", log_emit)
    return _sample(*x.as_data(), sequence_ids, num_samples, seed)


def _whole_number(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """An int in [low, high) from an int, a NumPy integer or a 0-dim integer tensor."""
    number = value if isinstance(value, int) else _index(value)
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not low <= number < high:
        raise ValueError(f"{name} must lie in [{low}, {high}), got {number}")
    return number


def _index(value: object) -> int | None:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
