"""Plain PyTorch definition of `hmm_sample`, and of the counter-based generator it draws from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oneshot.reference.hmm import NEVER, chain, filtered

_LOW = 0xFFFFFFFF


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, without leaving the range of int64."""
    low = constant * (x & 0xFFFF)
    middle = constant * (x >> 16) + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | (low & 0xFFFF)


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): four random words; words are int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return [c0, c1, c2, c3]


def uniform(seed: int, ids: Tensor, num_samples: int, steps: int, dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1), float64 [num_samples, B, steps]; ids is int64 [B].

    Key: low and high word of the seed; counter: low and high word of the id, sample, step. The
    first 24 bits of the output for float32, the first 53 for float64.
    """
    sample = torch.arange(num_samples, device=ids.device)[:, None, None]
    step = torch.arange(steps, device=ids.device)
    counter = torch.broadcast_tensors(
        ids[:, None] & _LOW, (ids[:, None] >> 32) & _LOW, sample, step
    )
    first, second, _, _ = philox(counter, (seed & _LOW, seed >> 32))
    if dtype == torch.float32:
        return (first >> 8).double() * 2.0**-24
    return ((first << 21) | (second >> 11)).double() * 2.0**-53


def _draw(log_weights: Tensor, u: Tensor) -> Tensor:
    """The lowest state whose cumulative weight exceeds u times the total."""
    high = log_weights.amax(-1, keepdim=True)
    cumulative = (log_weights - torch.where(high == NEVER, 0, high)).exp().cumsum(-1)
    below = cumulative <= u[..., None] * cumulative[..., -1:]
    return below.sum(-1).clamp(max=log_weights.shape[-1] - 1)  # an impossible one is dropped later


def hmm_sample(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None,
    log_final: Tensor | None,
    sequence_ids: Tensor | None,
    num_samples: int,
    seed: int,
) -> Tensor:
    """Paths from the posterior, int64 [num_samples, B, T]: forward filtering, backward sampling.

    The last state is drawn in proportion to alpha(i) final(i), every earlier one to
    alpha_t(i) trans_t(i, z_{t+1}). -1 behind the end, and everywhere when log Z is -inf or NaN.
    """
    batch, steps, states = log_emit.shape
    c = chain(log_init, log_trans, log_emit, lengths, log_final)
    alphas, log_likelihood = filtered(c)
    rows = torch.arange(batch, device=log_emit.device)
    ids = rows if sequence_ids is None else sequence_ids
    draws = uniform(seed, ids, num_samples, steps, log_emit.dtype).unbind(2)
    possible = log_likelihood > NEVER

    state = rows.new_zeros((num_samples, batch))
    paths = rows.new_empty((num_samples, batch, steps))
    for t in reversed(range(steps)):
        weights = alphas[t] + c.final
        if t < steps - 1:
            onward = c.trans[t].expand(batch, states, states)[rows, :, state]
            weights = torch.where(c.active[t + 1], alphas[t] + onward, weights)
        state = _draw(weights, draws[t])
        paths[:, :, t] = torch.where(c.active[t].squeeze(1) & possible, state, -1)
    return paths
