"""Policy loss in plain PyTorch: the definition of the op."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from oneshot.policy_options import Aggregate, KernelOptions, KlEstimator, RatioLevel, Surrogate
from oneshot.reference.policy_terms import (
    PolicyTerms,
    entering_log_ratio,
    kl_terms,
    policy_terms,
    scaled,
)
from oneshot.reference.policy_tokens import Tokens, token_weights, tokens_of


class PolicyMetric(IntEnum):
    """Index of each metric in ``PolicyLoss.metrics``. Means run over the tokens that count."""

    POLICY_LOSS = 0  # aggregated policy term, before policy_coef
    KL_LOSS = 1  # aggregated KL term, before kl_coef
    ENTROPY_LOSS = 2  # aggregated entropy, before entropy_coef
    KL = 3  # mean of the KL estimate as it enters the loss
    ENTROPY = 4  # mean entropy, nats
    OLD_POLICY_KL = 5  # mean of old_logprobs - logprobs: k1 estimate of KL(old || new)
    RATIO_MEAN = 6
    RATIO_MIN = 7
    RATIO_MAX = 8
    CLIP_FRACTION_LOW = 9  # share of tokens cut (cispo: raised) at the lower bound
    CLIP_FRACTION_HIGH = 10  # the same at the upper bound
    DUAL_CLIP_FRACTION = 11  # share of tokens cut by dual_clip or delta
    TOKENS = 12
    SEQUENCES = 13  # sequences with at least one token that counts


def _all_weights(lengths: Tensor, count: Tensor | None, options: KernelOptions) -> Tensor:
    """[3, B] float64: token weights of policy, KL and entropy term, signed coefficient included."""

    def weights(own: Aggregate) -> Tensor:
        like_policy = own == Aggregate.AS_POLICY
        return token_weights(
            lengths,
            options.aggregate if like_policy else own,
            count if like_policy else None,
            options.count_empty,
            options.max_length,
        )

    return torch.stack(
        [
            options.policy_coef * weights(Aggregate.AS_POLICY),
            options.kl_coef * weights(options.kl_aggregate),
            -options.entropy_coef * weights(options.entropy_aggregate),
        ]
    )


class _Batch(NamedTuple):
    """Everything per token that loss, metrics and gradient need."""

    tokens: Tokens
    policy: PolicyTerms  # importance weights applied to value and derivatives
    kl: Tensor
    kl_by_logprob: Tensor
    kl_by_log_ratio: Tensor
    entropy: Tensor
    log_ratio: Tensor  # logprobs - old_logprobs of the token itself
    ratio: Tensor  # what enters the loss
    exponents: Tensor  # [B] float64: logarithm of the ratio of the sequence, or their mean


def _evaluate(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logprobs: Tensor | None,
    entropy: Tensor | None,
    importance_weights: Tensor | None,
    cu_seqlens: Tensor | None,
    options: KernelOptions,
) -> _Batch:
    tokens = tokens_of(logprobs, mask, cu_seqlens)
    new = tokens.flat(logprobs)
    zero = torch.zeros_like(new)
    # Without old log-probabilities 0, and NaN where the policy's own are not finite.
    log_ratio = new - (new if old_logprobs is None else tokens.flat(old_logprobs))
    advantage = factor = tokens.spread(advantages)
    exponent = log_ratio
    entering = log_ratio
    if options.ratio != RatioLevel.TOKEN:
        entering = entering_log_ratio(log_ratio, advantage, options)
    exponents = tokens.per_sequence(entering)
    if options.ratio != RatioLevel.SEQUENCE_PRODUCT:
        exponents = exponents / tokens.lengths.clamp(min=1)
    if options.ratio != RatioLevel.TOKEN:
        exponent = exponents.to(new.dtype)[tokens.sequence]
    held = (exponent < options.log_ratio_min) | (exponent > options.log_ratio_max)
    exponent = exponent.clamp(options.log_ratio_min, options.log_ratio_max)
    ratio = exponent.exp()
    if importance_weights is not None:
        weight = tokens.spread(importance_weights)
        factor = torch.where(advantage == 0, scaled(advantage, weight), scaled(weight, advantage))
    policy = policy_terms(exponent, log_ratio, new, advantage, factor, options)
    policy = policy._replace(by_log_ratio=torch.where(held, 0, policy.by_log_ratio))

    kl = kl_by_logprob = kl_by_log_ratio = zero
    if ref_logprobs is not None and options.kl != KlEstimator.NONE:
        kl, kl_by_logprob = kl_terms(new, tokens.flat(ref_logprobs), options)
        if options.kl_importance_weighted:
            kl = kl * ratio
            kl_by_logprob = kl_by_logprob * ratio
            kl_by_log_ratio = torch.where(held, 0, kl)
    entropies = zero if entropy is None else tokens.flat(entropy)
    return _Batch(
        tokens, policy, kl, kl_by_logprob, kl_by_log_ratio, entropies, log_ratio, ratio, exponents
    )


def _metrics(batch: _Batch, terms: Tensor) -> Tensor:
    """One float64 tensor in the order of `PolicyMetric`."""
    tokens, policy = batch.tokens, batch.policy
    count = tokens.lengths.sum()
    ratio = batch.ratio[tokens.valid].to(torch.float64)
    low = high = count.new_zeros(())
    if ratio.numel() > 0:
        low, high = ratio.amin(), ratio.amax()

    def share(flags: Tensor) -> Tensor:
        return tokens.mean(flags & tokens.valid)

    metrics = {
        PolicyMetric.POLICY_LOSS: terms[0],
        PolicyMetric.KL_LOSS: terms[1],
        PolicyMetric.ENTROPY_LOSS: terms[2],
        PolicyMetric.KL: tokens.mean(batch.kl),
        PolicyMetric.ENTROPY: tokens.mean(batch.entropy),
        PolicyMetric.OLD_POLICY_KL: tokens.mean(-batch.log_ratio),
        PolicyMetric.RATIO_MEAN: ratio.sum() / count.clamp(min=1),
        PolicyMetric.RATIO_MIN: low,
        PolicyMetric.RATIO_MAX: high,
        PolicyMetric.CLIP_FRACTION_LOW: share(policy.clipped_low),
        PolicyMetric.CLIP_FRACTION_HIGH: share(policy.clipped_high),
        PolicyMetric.DUAL_CLIP_FRACTION: share(policy.clipped_dual),
        PolicyMetric.TOKENS: count,
        PolicyMetric.SEQUENCES: (tokens.lengths > 0).sum().to(torch.float64),
    }
    return torch.stack([metrics[metric] for metric in PolicyMetric])


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logprobs: Tensor | None,
    entropy: Tensor | None,
    importance_weights: Tensor | None,
    cu_seqlens: Tensor | None,
    count: Tensor | None,
    options: Sequence[float],
    max_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, metrics and what the gradient needs of each sequence.

    That is [4, B] float64: a token's weight in the policy, KL and entropy term, and the logarithm
    of the sequence's ratio (mean log-ratio where every token has its own).

    Arguments as in `oneshot.ops.policy_loss`, with ``options`` and ``max_length``
    those of `KernelOptions.packed`; ``advantages`` and ``importance_weights`` have the shape of
    ``logprobs`` or are [B].
    """
    choice = KernelOptions.unpacked(options, max_length)
    batch = _evaluate(
        logprobs, old_logprobs, advantages, mask, ref_logprobs, entropy, importance_weights,
        cu_seqlens, choice,
    )  # fmt: skip
    tokens = batch.tokens
    weights = _all_weights(tokens.lengths, count, choice)
    plain = _all_weights(
        tokens.lengths, count, choice._replace(policy_coef=1.0, kl_coef=1.0, entropy_coef=-1.0)
    )
    sums = torch.stack(
        [tokens.per_sequence(x) for x in (batch.policy.value, batch.kl, batch.entropy)]
    )
    # a term of coefficient 0 is only reported: were it infinite, 0 * inf would spoil the loss
    reported = torch.tensor([choice.policy_coef, choice.kl_coef, choice.entropy_coef]) == 0
    loss = torch.where(reported.to(sums.device)[:, None], 0, weights * sums).sum()
    metrics = _metrics(batch, (plain * sums).sum(dim=1))
    weights = torch.cat([weights, batch.exponents[None]])
    return loss.to(tokens.dtype), metrics.to(tokens.dtype), weights


def policy_loss_backward(
    grad_loss: Tensor,
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logprobs: Tensor | None,
    importance_weights: Tensor | None,
    cu_seqlens: Tensor | None,
    weights: Tensor,
    grad_logprobs: bool,
    grad_entropy: bool,
    options: Sequence[float],
    max_length: int,
) -> tuple[Tensor, Tensor]:
    """Gradients by log-probabilities and entropy, in their shape (empty if not asked for)."""
    choice = KernelOptions.unpacked(options, max_length)
    if choice.kl_coef == 0:
        ref_logprobs = None
    batch = _evaluate(
        logprobs, old_logprobs, advantages, mask, ref_logprobs, None, importance_weights,
        cu_seqlens, choice,
    )  # fmt: skip
    tokens = batch.tokens
    scale = (grad_loss.to(torch.float64) * weights).to(tokens.dtype)
    policy_scale, kl_scale, entropy_scale = (row[tokens.sequence] for row in scale[:3])
    by_logprobs = by_entropy = logprobs.new_empty(0)
    if grad_logprobs:
        direct = kl_scale * batch.kl_by_logprob
        by_ratio = kl_scale * batch.kl_by_log_ratio
        if choice.policy_coef != 0:
            direct = direct + policy_scale * batch.policy.by_logprob
            by_ratio = by_ratio + policy_scale * batch.policy.by_log_ratio
        if choice.ratio in (RatioLevel.SEQUENCE, RatioLevel.SEQUENCE_PRODUCT):
            shared = tokens.per_sequence(by_ratio)
            if choice.ratio == RatioLevel.SEQUENCE:
                shared = shared / tokens.lengths.clamp(min=1)
            by_ratio = shared.to(tokens.dtype)[tokens.sequence]
            if choice.surrogate == Surrogate.GMPO:  # a log-ratio that is held does not move it
                clipped = batch.policy.clipped_low | batch.policy.clipped_high
                by_ratio = torch.where(clipped, 0, by_ratio)
        by_logprobs = torch.where(tokens.valid, direct + by_ratio, 0)
        by_logprobs = by_logprobs.to(logprobs.dtype).reshape(logprobs.shape)
    if grad_entropy:
        by_entropy = torch.where(tokens.valid, entropy_scale, 0).reshape(logprobs.shape)
        by_entropy = by_entropy.to(logprobs.dtype)
    return by_logprobs, by_entropy
