"""Plain PyTorch definition of `combine_emissions` and of its gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEVER = float("-inf")


class _Sources(NamedTuple):
    """What each source says about each state, in float64."""

    x: Tensor  # [B, T, S, 1, L], weight of each label; ids as one-hot rows
    voices: Tensor  # [B, T, S, 1], bool: the source does not abstain
    log_emissions: Tensor  # [B, T, S, K, L] (or [S, K, L]), normalised if that was asked for
    terms: Tensor  # [B, T, S, K, L], log (emission * x), -inf where x is 0 whatever the emission
    log_likelihood: Tensor  # [B, T, S, K], log of their sum over labels


def _one_hot(observations: Tensor, labels: int) -> Tensor:
    bad = (observations < -1) | (observations >= labels)
    if bad.any():
        b, t, s = bad.nonzero()[0].tolist()
        raise RuntimeError(  # what the native kernel raises
            f"oneshot: observations must lie in [-1, {labels}), got "
            f"{int(observations[b, t, s])} for sequence {b}, step {t}, source {s}"
        )
    return (observations[..., None] == torch.arange(labels, device=observations.device)).double()


def _sources(log_emissions: Tensor, observations: Tensor, normalize: bool) -> _Sources:
    labels = log_emissions.shape[-1]
    soft = observations.is_floating_point()
    x = observations.double() if soft else _one_hot(observations, labels)
    voices = (x != 0).any(-1, keepdim=True)
    x = x[..., None, :]
    log_e = log_emissions.double()
    if normalize:
        log_e = log_e.log_softmax(-1)
    terms = torch.where(x == 0, NEVER, log_e + x.log())
    return _Sources(x, voices, log_e, terms, terms.logsumexp(-1))


def combine_emissions(
    log_emissions: Tensor, observations: Tensor, weights: Tensor | None, normalize: bool
) -> Tensor:
    """log_emit[b, t, i] = sum_s w_s log sum_j exp(log_emissions[b, t, s, i, j]) x[b, t, s, j].

    A source that abstains (a row of zeros, the id -1) or has weight 0 adds exactly 0.
    """
    sources = _sources(log_emissions, observations, normalize)
    each = torch.where(sources.voices, sources.log_likelihood, 0)
    if weights is not None:
        w = weights.double()[:, None]
        each = torch.where(w == 0, 0, w * each)
    return each.sum(2).to(log_emissions.dtype)


def combine_emissions_backward(
    grad: Tensor,
    log_emissions: Tensor,
    observations: Tensor,
    weights: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by log_emissions, observations ([0] for ids) and weights ([0] for none).

    With the share r_j of label j in the sum over labels, d log sum / d log_emissions_j = r_j, and
    r_j - softmax_j when the rows are logits. Where an upstream gradient is 0, where a source
    abstains, and where the sum is 0 (its log, -inf, is a constant), nothing passes.
    """
    sources = _sources(log_emissions, observations, normalize)
    upstream = grad.double()[:, :, None, :]  # [B, T, 1, K]
    passes = (upstream != 0) & sources.voices & (sources.log_likelihood != NEVER)
    log_sum = torch.where(passes, sources.log_likelihood, 0)
    scale = torch.where(passes, upstream, 0)

    dtype = grad.dtype
    grad_weights = grad.new_empty(0)
    if weights is not None:
        grad_weights = (scale * log_sum).sum((0, 1, 3)).to(dtype)
        scale = scale * weights.double()[:, None]
    scale, log_sum, passes = scale[..., None], log_sum[..., None], passes[..., None]
    passes = passes & (scale != 0)
    share = (sources.terms - log_sum).exp()
    if normalize:
        share = share - sources.log_emissions.exp()
    grad_log_emissions = torch.where(passes, scale * share, 0)
    if log_emissions.dim() == 3:
        grad_log_emissions = grad_log_emissions.sum((0, 1))
    grad_observations = grad.new_empty(0)
    if observations.is_floating_point():
        slope = (sources.log_emissions - log_sum).exp()
        grad_observations = torch.where(passes, scale * slope, 0).sum(3).to(dtype)
    return grad_log_emissions.to(dtype), grad_observations, grad_weights
