"""What one writes without a library: loops over the steps in plain torch.

A transition input is [B, T-1, K, K], or [K, K] for all steps and sequences. Potentials are
log-probabilities here, so `exp` needs no shift except that of the emissions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oneshot.bench.registry import Inputs

Posteriors = tuple[Tensor, Tensor, Tensor]


def log_partition(log_init: Tensor, trans: Sequence[Tensor], emit: Sequence[Tensor]) -> Tensor:
    """Forward recursion over unbound steps, [B]; autograd follows."""
    alpha = log_init + emit[0]
    for step, here in zip(trans, emit[1:], strict=True):
        alpha = (alpha.unsqueeze(-1) + step).logsumexp(-2) + here
    return alpha.logsumexp(-1)


def log_likelihood(inputs: Inputs) -> tuple[Tensor]:
    """Log Z in log space; its gradient by autograd."""
    emit = inputs["log_emit"].unbind(1)  # slicing inside the loop costs O(T^2) backward
    trans = inputs["log_trans"]
    steps = trans.unbind(1) if trans.dim() == 4 else [trans] * (len(emit) - 1)
    return (log_partition(inputs["log_init"], steps, emit),)


def differentiated(inputs: Inputs) -> Posteriors:
    """Log Z, gamma and xi (or its sum over the steps) as gradients of log Z."""
    with torch.enable_grad():
        emit, trans = inputs["log_emit"].detach().requires_grad_(), inputs["log_trans"]
        if trans.dim() == 2:  # one for each sequence, to have the sum over steps of each
            trans = trans.repeat(len(emit), 1, 1)
        trans = trans.detach().requires_grad_()
        steps = trans.unbind(1) if trans.dim() == 4 else [trans] * (emit.shape[1] - 1)
        total = log_partition(inputs["log_init"], steps, emit.unbind(1))
        return (total.detach(), *torch.autograd.grad(total.sum(), (emit, trans)))


def scaled(inputs: Inputs) -> Posteriors:
    """Log Z, gamma and xi (or its sum over the steps) by scaled products, without autograd."""
    log_emit, matrices = inputs["log_emit"], inputs["log_trans"].exp()
    steps = log_emit.shape[1]
    shift = log_emit.amax(-1, keepdim=True)
    likelihood = (log_emit - shift).exp()
    emit = likelihood.unbind(1)
    shared = matrices.dim() == 2
    forward = [matrices] * (steps - 1) if shared else list(matrices.unbind(1))

    def along(vector: Tensor, matrix: Tensor) -> Tensor:
        return vector @ matrix if shared else (vector.unsqueeze(1) @ matrix).squeeze(1)

    alpha = inputs["log_init"].exp() * emit[0]
    alphas, totals = [], []
    for t in range(steps):
        if t:
            alpha = along(alphas[-1], forward[t - 1]) * emit[t]
        totals.append(alpha.sum(-1, keepdim=True))
        alphas.append(alpha / totals[-1])
    beta, betas = torch.ones_like(alpha), []
    for t in reversed(range(1, steps)):
        betas.append(beta)
        beta = along(emit[t] * beta / totals[t], forward[t - 1].mT)
    betas.append(beta)
    before, after = torch.stack(alphas, 1), torch.stack(betas[::-1], 1)
    total = torch.stack(totals, 1)
    log_z = (total.log() + shift).sum((1, 2))
    ahead = (likelihood * after / total)[:, 1:]
    if shared:
        pairs = matrices * (before[:, :-1].mT @ ahead)
    else:
        pairs = before[:, :-1].unsqueeze(-1) * matrices * ahead.unsqueeze(-2)
    return log_z, before * after, pairs


def viterbi(inputs: Inputs) -> tuple[Tensor]:
    """The best path by max and gather."""
    trans, emit = inputs["log_trans"], inputs["log_emit"].unbind(1)
    steps = trans.unbind(1) if trans.dim() == 4 else [trans] * (len(emit) - 1)
    score, pointers = inputs["log_init"] + emit[0], []
    for step, here in zip(steps, emit[1:], strict=True):
        best, pointer = (score.unsqueeze(-1) + step).max(-2)
        pointers.append(pointer)
        score = best + here
    path = [score.argmax(-1, keepdim=True)]
    for pointer in reversed(pointers):
        path.append(pointer.gather(-1, path[-1]))
    return (torch.cat(path[::-1], -1),)


def sample(inputs: Inputs) -> tuple[Tensor]:
    """Forward filtering and backward sampling, [num_samples, B, T]."""
    matrices, emit = inputs["log_trans"].exp(), inputs["log_emit"].softmax(-1).unbind(1)
    filtered = [inputs["log_init"].exp() * emit[0]]
    forward = matrices.unbind(1)
    for matrix, here in zip(forward, emit[1:], strict=True):
        alpha = (filtered[-1].unsqueeze(1) @ matrix).squeeze(1) * here
        filtered.append(alpha / alpha.sum(-1, keepdim=True))
    draws = inputs["num_samples"]
    state = torch.multinomial(filtered[-1], draws, replacement=True)  # [B, num_samples]
    path = [state]
    row = torch.arange(len(state)).unsqueeze(1)
    for alpha, matrix in zip(reversed(filtered[:-1]), reversed(forward), strict=True):
        weights = alpha.unsqueeze(1) * matrix.mT[row, state]
        state = torch.multinomial(weights.flatten(0, 1), 1).view_as(state)
        path.append(state)
    return (torch.stack(path[::-1], -1).transpose(0, 1),)


# The conditional HMM: logits of per-token matrices, observations of S sources


def chmm_potentials(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """log_trans [B, T-1, K, K] and log_emit [B, T, K]."""
    emission = inputs["emission_logits"].log_softmax(-1)
    seen = inputs["observations"].log().unsqueeze(-2)
    return inputs["trans_logits"].log_softmax(-1), (emission + seen).logsumexp(-1).sum(2)


def chmm_log_likelihood(inputs: Inputs) -> tuple[Tensor]:
    """Log Z by the forward recursion over unbound steps."""
    trans, emit = chmm_potentials(inputs)
    return (log_partition(inputs["log_init"], trans.unbind(1), emit.unbind(1)),)


def chmm_log_likelihood_in_place(inputs: Inputs) -> tuple[Tensor]:
    """Log Z by a forward recursion that writes each step into one tensor."""
    trans, emit = chmm_potentials(inputs)
    return (_forward_in_place(inputs["log_init"], trans, emit)[:, -1].logsumexp(-1),)


def chmm_expected(inputs: Inputs) -> tuple[Tensor]:
    """Expected complete-data log-likelihood, [B], over unbound steps."""
    log_trans, log_emit = chmm_potentials(inputs)
    trans, emit = log_trans.unbind(1), log_emit.unbind(1)
    alphas, betas = [inputs["log_init"] + emit[0]], [torch.zeros_like(emit[0])]
    for step, here in zip(trans, emit[1:], strict=True):
        alphas.append((alphas[-1].unsqueeze(-1) + step).logsumexp(-2) + here)
    for step, here in zip(reversed(trans), reversed(emit[1:]), strict=True):
        betas.append((step + (here + betas[-1]).unsqueeze(-2)).logsumexp(-1))
    alpha, beta = torch.stack(alphas, 1), torch.stack(betas[::-1], 1)
    ahead = (log_emit + beta)[:, 1:].unsqueeze(-2)
    xi = (alpha[:, :-1].unsqueeze(-1) + log_trans + ahead).flatten(2).softmax(-1)
    return (_complete(inputs, log_trans, log_emit, (alpha + beta).softmax(-1), xi),)


def chmm_expected_in_place(inputs: Inputs) -> tuple[Tensor]:
    """The same as the public CHMM code computes it: three loops that write slices in place.

    alpha, beta and xi in log space, each step written into a tensor made beforehand; gradients flow
    through all of them. (With the backward recursion put right: the public one takes the matrices
    and emissions of the wrong step.)
    """
    log_trans, log_emit = chmm_potentials(inputs)
    steps = log_emit.shape[1]
    alpha = _forward_in_place(inputs["log_init"], log_trans, log_emit)
    beta = torch.zeros_like(log_emit)
    for t in reversed(range(steps - 1)):
        ahead = (log_emit[:, t + 1] + beta[:, t + 1]).unsqueeze(-2)
        beta[:, t] = (log_trans[:, t] + ahead).logsumexp(-1)
    log_xi = torch.zeros_like(log_trans)
    for t in range(steps - 1):
        ahead = (log_emit[:, t + 1] + beta[:, t + 1]).unsqueeze(-2)
        log_xi[:, t] = alpha[:, t].unsqueeze(-1) + log_trans[:, t] + ahead
    xi = log_xi.flatten(2).softmax(-1)
    return (_complete(inputs, log_trans, log_emit, (alpha + beta).softmax(-1), xi),)


def _forward_in_place(log_init: Tensor, log_trans: Tensor, log_emit: Tensor) -> Tensor:
    alpha = torch.zeros_like(log_emit)
    alpha[:, 0] = log_init + log_emit[:, 0]
    for t in range(1, log_emit.shape[1]):
        before = alpha[:, t - 1].unsqueeze(-1) + log_trans[:, t - 1]
        alpha[:, t] = before.logsumexp(-2) + log_emit[:, t]
    return alpha


def _complete(
    inputs: Inputs, log_trans: Tensor, log_emit: Tensor, gamma: Tensor, xi: Tensor
) -> Tensor:
    """Expected score of a path, [B]."""
    return (
        (gamma[:, 0] * inputs["log_init"]).sum(-1)
        + (gamma * log_emit).sum((1, 2))
        + (xi.view_as(log_trans) * log_trans).sum((1, 2, 3))
    )
