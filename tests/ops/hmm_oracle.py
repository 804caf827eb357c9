"""Inputs of the `hmm` tests and two oracles in float64: every path, and a sequential log space."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch

INF = math.inf
TRANS = ("shared", "sequence", "step", "token", "one_step", "one_sequence")


def trans_shape(kind, batch, steps, states):
    """Shape of log_trans and its trans_axis."""
    leading, axis = {
        "shared": ((), None),
        "sequence": ((batch,), "sequence"),
        "step": ((steps - 1,), "step"),
        "token": ((batch, steps - 1), None),
        "one_step": ((batch, 1), None),
        "one_sequence": ((1, steps - 1), None),
    }[kind]
    return (*leading, states, states), axis


def make(
    batch,
    steps,
    states,
    kind="token",
    *,
    final=True,
    ragged=True,
    dtype=torch.float32,
    forbidden=0.0,
):
    """Keyword arguments of an op; init and final are [B, K] where the matrices have a batch.

    `forbidden` is the share of -inf among transitions and emissions.
    """

    def potential(*shape):
        x = torch.randn(shape, dtype=torch.float64) * 1.5
        return torch.where(torch.rand(shape) < forbidden, -INF, x).to(dtype)

    shape, axis = trans_shape(kind, batch, steps, states)
    own = (batch, states) if kind in ("sequence", "token", "one_step") else (states,)
    lengths = None
    if ragged:
        lengths = torch.randint(0, steps + 1, (batch,))
        lengths[: min(batch, 4)] = torch.tensor([steps, 0, 1, max(steps - 1, 0)])[:batch]
    return {
        "log_init": torch.randn(own, dtype=torch.float64).to(dtype),
        "log_trans": potential(*shape),
        "log_emit": potential(batch, steps, states),
        "lengths": lengths,
        "log_final": torch.randn(own, dtype=torch.float64).to(dtype) if final else None,
        "trans_axis": axis,
    }


FLOATS = ("log_init", "log_trans", "log_emit", "log_final")


def cast(inputs, dtype):
    """The float tensors in another dtype."""
    return {k: v.to(dtype) if k in FLOATS and v is not None else v for k, v in inputs.items()}


def leaves(inputs):
    """Fresh copies that require a gradient, and the list of them."""
    copy = {
        k: v.detach().clone().requires_grad_() if k in FLOATS and v is not None else v
        for k, v in inputs.items()
    }
    return copy, [copy[k] for k in FLOATS if copy[k] is not None]


def rows(inputs, index):
    """The inputs of some sequences of a batch."""
    trans = inputs["log_trans"]
    per_sequence = {
        "log_init": inputs["log_init"].dim() == 2,
        "log_trans": inputs["trans_axis"] == "sequence" or (trans.dim() == 4 and len(trans) > 1),
        "log_final": inputs["log_final"] is not None and inputs["log_final"].dim() == 2,
        "log_emit": True,
        "lengths": inputs["lengths"] is not None,
    }
    return {k: v[index] if per_sequence.get(k) else v for k, v in inputs.items()}


def matrices(inputs):
    """log_trans as [B, T - 1, K, K]."""
    batch, steps, states = inputs["log_emit"].shape
    x, axis = inputs["log_trans"], inputs.get("trans_axis")
    x = x[:, None] if axis == "sequence" else x
    return x.expand(batch, steps - 1, states, states)


def sequences(inputs):
    """Each sequence cut to its length: (init [K], trans [n - 1, K, K], emit [n, K], final [K])."""
    batch, steps, states = inputs["log_emit"].shape
    lengths, final = inputs.get("lengths"), inputs.get("log_final")
    lengths = [steps] * batch if lengths is None else lengths.tolist()
    final = torch.zeros(states, dtype=inputs["log_emit"].dtype) if final is None else final
    trans = matrices(inputs)
    for b, n in enumerate(lengths):
        yield (
            inputs["log_init"].expand(batch, states)[b].double(),
            trans[b, : max(n - 1, 0)].double(),
            inputs["log_emit"][b, :n].double(),
            final.expand(batch, states)[b].double(),
        )


class Posterior(NamedTuple):
    """One sequence of n steps, without padding."""

    log_likelihood: torch.Tensor
    gamma: torch.Tensor  # [n, K]
    xi: torch.Tensor  # [n - 1, K, K]


class Paths(NamedTuple):
    """Every path of one sequence, lexicographically from the last state back, and its score."""

    states: torch.Tensor  # [P, n]
    score: torch.Tensor  # [P]


def all_paths(init, trans, emit, final):
    n, states = emit.shape
    grids = torch.meshgrid(*[torch.arange(states)] * n, indexing="ij")
    z = torch.stack([g.flatten() for g in grids], 1).flip(1)
    score = init[z[:, 0]] + final[z[:, -1]]
    score = score + sum(emit[t, z[:, t]] for t in range(n))
    score = score + sum(trans[t, z[:, t], z[:, t + 1]] for t in range(n - 1))
    return Paths(z, score)


def by_enumeration(init, trans, emit, final):
    """Posterior of one sequence from all its paths; differentiable as often as you like."""
    n, states = emit.shape
    if n == 0:
        return Posterior(emit.sum(), emit, emit.new_zeros(0, states, states))
    z, score = all_paths(init, trans, emit, final)
    if score.max() == -INF:
        zero = torch.zeros(n, states, states, dtype=torch.float64)
        return Posterior(score.max().detach(), zero[:, 0], zero[: n - 1])
    p = score.softmax(0)
    gamma = [torch.zeros_like(emit[0]).index_add(0, z[:, t], p) for t in range(n)]
    xi = [
        emit.new_zeros(states * states).index_add(0, z[:, t] * states + z[:, t + 1], p)
        for t in range(n - 1)
    ]
    pairs = torch.stack(xi).view(n - 1, states, states) if xi else trans
    return Posterior(score.logsumexp(0), torch.stack(gamma), pairs)


def in_log_space(init, trans, emit, final):
    """Posterior of one sequence by the textbook recursions, messages not normalised."""
    n, states = emit.shape
    if n == 0:
        return by_enumeration(init, trans, emit, final)
    alpha = [init + emit[0]]
    for t in range(n - 1):
        alpha.append((alpha[-1][:, None] + trans[t]).logsumexp(0) + emit[t + 1])
    total = (alpha[-1] + final).logsumexp(0)
    if total == -INF:
        zero = torch.zeros(n, states, states, dtype=torch.float64)
        return Posterior(total, zero[:, 0], zero[: n - 1])
    beta = [final]
    for t in reversed(range(n - 1)):
        beta.append((trans[t] + emit[t + 1] + beta[-1]).logsumexp(1))
    beta = torch.stack(beta[::-1])
    alpha = torch.stack(alpha)
    gamma = (alpha + beta - total).exp()
    xi = (alpha[:-1, :, None] + trans + (emit + beta)[1:, None, :] - total).exp()
    return Posterior(total, gamma, xi)


class Batch(NamedTuple):
    """The outputs of `hmm_posteriors` with everything asked for."""

    log_likelihood: torch.Tensor
    gamma: torch.Tensor
    xi: torch.Tensor
    xi_sum: torch.Tensor


def posteriors(inputs, oracle=in_log_space):
    """The oracle on every sequence, padded with zeros."""
    _, steps, states = inputs["log_emit"].shape
    each = [oracle(*sequence) for sequence in sequences(inputs)]
    if not each:
        empty = torch.zeros(0, dtype=torch.float64)
        return Batch(
            empty, empty.view(0, steps, states), empty.view(0, steps - 1, states, states),
            empty.view(0, states, states),
        )  # fmt: skip

    def padded(x, size):
        return torch.cat((x, x.new_zeros(size - x.shape[0], *x.shape[1:])))

    return Batch(
        torch.stack([row.log_likelihood for row in each]),
        torch.stack([padded(row.gamma, steps) for row in each]),
        torch.stack([padded(row.xi, steps - 1) for row in each]),
        torch.stack([row.xi.sum(0) for row in each]),
    )


def path_score(init, trans, emit, final, path):
    """Score of one path (a list of n states) in float64."""
    score = init[path[0]] + final[path[-1]] + sum(emit[t, i] for t, i in enumerate(path))
    return score + sum(trans[t, i, j] for t, (i, j) in enumerate(pairwise(path)))


def check_log_likelihood(ours, expected, steps):
    """For float32 1e-6 max(1, sqrt T) + 1e-9 |log Z|, and the rounding of the output."""
    possible = expected > -INF
    assert torch.equal(ours[~possible].double(), expected[~possible])
    error = (ours.double() - expected)[possible].abs()
    size = expected[possible].abs()
    if ours.dtype == torch.float32:
        allowed = 1e-6 * max(1.0, math.sqrt(steps)) + (1e-9 + 2.0**-24) * size
    else:
        allowed = 1e-12 + 1e-13 * size
    assert (error <= allowed).all(), f"log Z off by {error.max()}, allowed {allowed.min()}"


def check_posteriors(ours, expected, atol=2e-6):
    """All outputs that are there, to the promised tolerance."""
    steps = expected.gamma.shape[1]
    double = ours.log_likelihood.dtype == torch.float64
    atol = 1e-11 if double else atol
    check_log_likelihood(ours.log_likelihood, expected.log_likelihood.detach(), steps)
    for name in ("gamma", "xi"):
        value = getattr(ours, name)
        if value is not None:
            assert value.dtype == ours.log_likelihood.dtype
            torch.testing.assert_close(value.double(), getattr(expected, name), rtol=0, atol=atol)
    if ours.xi_sum is not None:
        rtol = 1e-11 if double else 2e-6
        torch.testing.assert_close(ours.xi_sum.double(), expected.xi_sum, rtol=rtol, atol=atol)


def same(a, b):
    """Bitwise, NaN equal to NaN."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.nan_to_num(), b.nan_to_num())
