"""Plain PyTorch definitions of the `hmm` family: posteriors, their gradient, the best path.

Sequential recursions over log weights, float64 whatever the input, every message normalised: so the
size of log Z (which grows with T) never meets the digits of a posterior. Values behind the end of a
sequence are computed with and then dropped by `torch.where`; nothing here is differentiated, so no
gradient can pick them up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEVER = float("-inf")


class Chain(NamedTuple):
    """The inputs in float64, step by step."""

    init: Tensor  # [1|B, K]
    trans: list[Tensor]  # T - 1 of [1|B, K, K]
    emit: list[Tensor]  # T of [B, K]
    final: Tensor  # [1|B, K], zeros where none was given
    active: list[Tensor]  # T of [B, 1], bool: the step lies inside the sequence
    last: Tensor  # int64 [B], number of the last step; 0 for an empty sequence


def _weights(x: Tensor) -> Tensor:
    """In float64, +inf made NaN: it has no posterior either, and NaN takes the sequence along."""
    x = x.double()
    return torch.where(x == float("inf"), float("nan"), x)


def chain(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None,
    log_final: Tensor | None,
) -> Chain:
    """Unpack the inputs of an op; lengths outside [0, T] raise."""
    batch, steps, states = log_emit.shape
    device = log_emit.device
    if lengths is None:
        lengths = torch.full((batch,), steps, device=device)
    bad = (lengths < 0) | (lengths > steps)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise RuntimeError(  # what the native kernel raises
            f"oneshot: lengths must lie in [0, {steps}], got {int(lengths[row])} for sequence {row}"
        )
    final = log_emit.new_zeros(1, states) if log_final is None else log_final
    matrices = log_trans.expand(-1, steps - 1, -1, -1) if log_trans.shape[1] == 1 else log_trans
    return Chain(
        _weights(log_init),
        list(_weights(matrices).unbind(1)),
        list(_weights(log_emit).unbind(1)),
        _weights(final),
        list((torch.arange(steps, device=device)[:, None, None] < lengths[:, None]).unbind(0)),
        (lengths - 1).clamp(min=0),
    )


def normalise(log_weights: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Log weights that sum to one over `dim`, and the log of their sum; all -inf stay all -inf."""
    log_sum = log_weights.logsumexp(dim, keepdim=True)
    return log_weights - torch.where(log_sum == NEVER, 0, log_sum), log_sum


def filtered(c: Chain) -> tuple[list[Tensor], Tensor]:
    """The messages log p(z_t | potentials up to t) of every step, and log Z [B]."""
    alpha, log_sum = normalise(c.init + c.emit[0], -1)
    alphas = [alpha]
    total = torch.where(c.active[0], log_sum, 0)
    for trans, emit, active in zip(c.trans, c.emit[1:], c.active[1:], strict=True):
        step, log_sum = normalise((alphas[-1][:, :, None] + trans).logsumexp(1) + emit, -1)
        alphas.append(torch.where(active, step, alphas[-1]))
        total = total + torch.where(active, log_sum, 0)
    _, log_sum = normalise(alphas[-1] + c.final, -1)
    total = total + torch.where(c.active[0], log_sum, 0)
    return alphas, total.squeeze(1)


def hmm_posteriors(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None,
    log_final: Tensor | None,
    gamma: bool,
    xi: bool,
    xi_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihood (log Z) and the posteriors asked for; the others have the shape [0].

    gamma_t(i) is proportional to alpha_t(i) beta_t(i), and xi_t(i, j) to
    alpha_t(i) trans_t(i, j) emit_{t+1}(j) beta_{t+1}(j).
    """
    batch, steps, states = log_emit.shape
    c = chain(log_init, log_trans, log_emit, lengths, log_final)
    alphas, log_likelihood = filtered(c)
    gammas = log_emit.new_zeros((batch, steps, states) if gamma else 0)
    xis = log_emit.new_zeros((batch, steps - 1, states, states) if xi else 0)
    total = log_emit.new_zeros((batch, states, states) if xi_sum else 0, dtype=torch.float64)

    beta = c.final.expand(batch, states)
    for t in reversed(range(steps) if gamma or xi or xi_sum else ()):
        if t < steps - 1:
            active = c.active[t + 1]
            onward = c.trans[t] + (c.emit[t + 1] + beta)[:, None, :]
            if xi or xi_sum:
                pair, _ = normalise(alphas[t][:, :, None] + onward, (1, 2))
                pair = torch.where(active[:, :, None], pair.exp(), 0)
                if xi:
                    xis[:, t] = pair
                if xi_sum:
                    total += pair
            beta = torch.where(active, normalise(onward.logsumexp(2), -1)[0], beta)
        if gamma:
            state, _ = normalise(alphas[t] + beta, -1)
            gammas[:, t] = torch.where(c.active[t], state.exp(), 0)
    # A copy and no view: callers edit it in place.
    log_likelihood = log_likelihood.to(log_emit.dtype, copy=True)
    return log_likelihood, gammas, xis, total.to(log_emit.dtype)


def hmm_posteriors_backward(
    grad_log_likelihood: Tensor | None,
    grad_gamma: Tensor | None,
    grad_xi: Tensor | None,
    grad_xi_sum: Tensor | None,
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None,
    log_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by init, trans, emit and final (shape [0] without one), in the inputs' shapes.

    Posteriors are the gradient of log Z, whose Hessian is symmetric: their vector-Jacobian product
    is their derivative in the direction of the upstream gradients. Call V(z) what these add up to
    along a path, grad_gamma[t, z_t] and (grad_xi + grad_xi_sum)[t, z_t, z_{t+1}]. Then

        d gamma_t(i) = gamma_t(i) (E[V | z_t = i] - E[V]),
        d xi_t(i, j) = xi_t(i, j) (E[V | z_t = i, z_{t+1} = j] - E[V]),

    and E[V | z_t = i] = before_t(i) + after_t(i): what a path that passes i has collected up to and
    including step t, and what it collects behind it, each by a recursion over conditional means.
    """
    batch, steps, states = log_emit.shape
    c = chain(log_init, log_trans, log_emit, lengths, log_final)
    alphas, log_likelihood = filtered(c)

    zero = torch.zeros((), dtype=torch.float64, device=log_emit.device)
    scale = zero.expand(batch) if grad_log_likelihood is None else grad_log_likelihood.double()
    scale = torch.where(log_likelihood == NEVER, 0, scale)[:, None]
    by_state = zero.expand(batch, steps, states) if grad_gamma is None else grad_gamma.double()
    by_pair = zero.expand(batch, steps - 1, states, states)
    if grad_xi is not None:
        by_pair = grad_xi.double()
    if grad_xi_sum is not None:
        by_pair = by_pair + grad_xi_sum.double()[:, None]
    states_v, pairs_v = by_state.unbind(1), by_pair.unbind(1)

    before = [states_v[0]]
    for t in range(steps - 1):
        # p(z_t = i | z_{t+1} = j, potentials up to t), 0 for a j that nothing leads to
        backward = normalise(alphas[t][:, :, None] + c.trans[t], 1)[0].exp()
        mean = (backward * (before[t][:, :, None] + pairs_v[t])).sum(1)
        before.append(mean + states_v[t + 1])

    grad_emit = torch.zeros_like(log_emit, dtype=torch.float64)
    grad_trans = torch.zeros_like(log_trans, dtype=torch.float64)
    beta = c.final.expand(batch, states)
    after = torch.zeros_like(before[0])
    for t in reversed(range(steps)):
        if t < steps - 1:
            active = c.active[t + 1]
            onward = c.trans[t] + (c.emit[t + 1] + beta)[:, None, :]
            pair = normalise(alphas[t][:, :, None] + onward, (1, 2))[0].exp()
            ahead = pairs_v[t] + (states_v[t + 1] + after)[:, None, :]
            value = before[t][:, :, None] + ahead
            mean = (pair * value).sum((1, 2), keepdim=True)
            grad = torch.where(active[:, :, None], pair * (value - mean + scale[:, :, None]), 0)
            if log_trans.shape[0] == 1:
                grad = grad.sum(0, keepdim=True)
            grad_trans[:, 0 if log_trans.shape[1] == 1 else t] += grad
            # p(z_{t+1} = j | z_t = i, potentials behind t)
            forward, log_sum = normalise(onward, 2)
            mean = (forward.exp() * ahead).sum(2)
            after = torch.where(active, mean, after)
            beta = torch.where(active, normalise(log_sum.squeeze(2), -1)[0], beta)
        state = normalise(alphas[t] + beta, -1)[0].exp()
        value = before[t] + after
        mean = (state * value).sum(1, keepdim=True)
        grad_emit[:, t] = torch.where(c.active[t], state * (value - mean + scale), 0)

    grad_init = grad_emit[:, 0]
    grad_final = grad_emit.gather(1, c.last[:, None, None].expand(-1, 1, states)).squeeze(1)
    if log_init.shape[0] == 1:
        grad_init = grad_init.sum(0, keepdim=True)
    if log_final is None:
        grad_final = grad_final.new_empty(0)
    elif log_final.shape[0] == 1:
        grad_final = grad_final.sum(0, keepdim=True)
    dtype = log_emit.dtype
    return (
        grad_init.to(dtype).contiguous(),
        grad_trans.to(dtype),
        grad_emit.to(dtype),
        grad_final.to(dtype),
    )


def hmm_viterbi(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None,
    log_final: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The path of the largest score (int64, -1 behind the end) and that score.

    Ties go to the lowest state: at the last step, then at every step back. A score of -inf or NaN
    has no path: -1 everywhere.
    """
    c = chain(log_init, log_trans, log_emit, lengths, log_final)
    best = c.init + c.emit[0]
    stay = torch.arange(best.shape[1], device=best.device)
    pointers = []
    for trans, emit, active in zip(c.trans, c.emit[1:], c.active[1:], strict=True):
        step, pointer = (best[:, :, None] + trans).max(1)  # the first of several maxima
        pointers.append(torch.where(active, pointer, stay))
        best = torch.where(active, step + emit, best)
    score, state = (best + c.final).max(1)
    path = [state]
    for pointer in reversed(pointers):
        path.append(pointer.gather(1, path[-1][:, None]).squeeze(1))
    states = torch.stack(path[::-1], 1)
    kept = torch.cat(c.active, 1) & (score > NEVER)[:, None]
    score = torch.where(c.active[0].squeeze(1), score, 0)
    return torch.where(kept, states, -1), score.to(log_emit.dtype)
