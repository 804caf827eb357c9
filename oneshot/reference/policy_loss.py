"""Policy loss, value loss and importance weights in plain PyTorch: the definition of the family.

Both layouts are brought to one form first: flat tokens, and the sequence number of each token.
What a masked token holds is replaced before it is used, so garbage (NaN, inf) never spreads.
Per-token arithmetic runs in float32 (float64 for float64 inputs), sums over tokens in float64.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(IntEnum):
    """What a token contributes to the policy term (r = ratio, A = advantage)."""

    CLIP = 0  # -min(r A, clip(r) A)
    CISPO = 1  # -stop_gradient(clip(r)) A log p
    REINFORCE = 2  # -A log p


class Ratio(IntEnum):
    """Which probability ratio of new to old policy a token uses."""

    TOKEN = 0  # its own
    SEQUENCE = 1  # geometric mean over its sequence, gradient to every token of the sequence
    SEQUENCE_TOKEN = 2  # the same value, gradient to the token itself only


class Kl(IntEnum):
    """Estimator of KL(policy || reference); ..._PLUS has its value and the gradient of k2."""

    NONE = 0
    K1 = 1
    K2 = 2
    K3 = 3
    ABS = 4
    K1_PLUS = 5
    K3_PLUS = 6
    ABS_PLUS = 7


class Aggregate(IntEnum):
    """How per-token terms become one number."""

    TOKEN_MEAN = 0
    TOKEN_SUM = 1
    SEQ_MEAN_TOKEN_MEAN = 2
    SEQ_MEAN_TOKEN_SUM = 3
    SEQ_MEAN_TOKEN_SUM_NORM = 4


class PolicyMetric(IntEnum):
    """Index of each figure in ``PolicyLoss.metrics``. Means run over the tokens that count."""

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


class ValueMetric(IntEnum):
    """Index of each figure in ``ValueLoss.metrics``."""

    CLIP_FRACTION = 0  # share of tokens where the clipped error is the larger one
    VALUE_MEAN = 1
    RETURN_MEAN = 2
    EXPLAINED_VARIANCE = 3  # 1 - Var(return - value) / Var(return); 0 when the returns do not vary
    TOKENS = 4


class WeightMetric(IntEnum):
    """Index of each figure in ``ImportanceWeights.metrics``; means run over counted tokens."""

    MEAN = 0  # of the weights as applied (before normalize)
    MIN = 1
    MAX = 2
    EFFECTIVE_SAMPLE_SIZE = 3  # (mean w)^2 / mean w^2, in (0, 1]
    FRACTION_LOW = 4  # share of tokens whose raw weight is below `low`
    FRACTION_HIGH = 5  # share of tokens whose raw weight is above `high`
    KL = 6  # mean of sampler_logprobs - logprobs: k1 estimate of KL(sampler || trainer)
    NORMALIZER = 7  # what the weights were divided by (1 without normalize)


class PolicyOptions(NamedTuple):
    """Every switch of the policy loss, resolved to numbers. No bound = infinity."""

    surrogate: int
    ratio: int
    clip_min: float
    clip_max: float
    dual_clip: float
    delta: float
    log_ratio_min: float
    log_ratio_max: float
    kl: int
    kl_importance_weighted: bool
    kl_log_ratio_clamp: float
    kl_clamp: float
    policy_coef: float
    kl_coef: float
    entropy_coef: float
    aggregate: int
    kl_aggregate: int  # -1: like aggregate, with its overrides
    entropy_aggregate: int  # -1: like aggregate, with its overrides
    count_empty: bool
    max_length: int


class _Tokens(NamedTuple):
    """One flat view of a padded or packed batch."""

    valid: Tensor  # [N] bool
    sequence: Tensor  # [N] int64
    lengths: Tensor  # [B] float64: tokens that count
    dtype: torch.dtype

    def flat(self, x: Tensor) -> Tensor:
        """[B, T] or [N] values in the arithmetic's dtype, zero where masked."""
        return torch.where(self.valid, x.reshape(-1).to(self.dtype), 0)

    def spread(self, x: Tensor) -> Tensor:
        """Like `flat`, for values that may also be one a sequence ([B])."""
        return self.flat(x if x.numel() == self.valid.numel() else x[self.sequence])

    def per_sequence(self, x: Tensor) -> Tensor:
        """Sum over each sequence, [B] float64."""
        return x.new_zeros(self.lengths.shape, dtype=torch.float64).index_add(
            0, self.sequence, x.to(torch.float64)
        )

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the tokens that count; 0 when there is none."""
        return x.to(torch.float64).sum() / self.lengths.sum().clamp(min=1)


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _tokens(like: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> _Tokens:
    if cu_seqlens is None:
        batch, width = like.shape
        sequence = torch.arange(batch, device=like.device).repeat_interleave(width)
    else:
        batch = cu_seqlens.numel() - 1
        rises = (
            cu_seqlens[0] == 0 and cu_seqlens[-1] == like.numel() and cu_seqlens.diff().ge(0).all()
        )
        if not rises:
            raise ValueError(f"cu_seqlens must rise from 0 to {like.numel()}, got {cu_seqlens}")
        sequence = torch.arange(batch, device=like.device).repeat_interleave(
            cu_seqlens.diff(), output_size=like.numel()
        )
    valid = like.new_ones(like.numel(), dtype=torch.bool) if mask is None else mask.reshape(-1)
    lengths = like.new_zeros(batch, dtype=torch.float64).index_add(
        0, sequence, valid.to(torch.float64)
    )
    return _Tokens(valid, sequence, lengths, arithmetic_dtype(like))


def token_weights(
    lengths: Tensor, aggregate: int, count: Tensor | None, count_empty: bool, max_length: int
) -> Tensor:
    """Weight of one token of each sequence in the aggregated number; 0 for an empty batch.

    Args:
        lengths: [B] float64, tokens that count.
        aggregate: One of `Aggregate`.
        count: 0-dim, replaces the number of tokens (token-mean) or of sequences (seq-mean-*).
        count_empty: Whether sequences without any token count in the mean over sequences.
        max_length: The divisor of seq-mean-token-sum-norm.

    Returns:
        [B] float64.
    """
    if aggregate == Aggregate.TOKEN_SUM:
        return torch.ones_like(lengths)
    if count is not None:
        total = count.to(torch.float64)
    elif aggregate == Aggregate.TOKEN_MEAN:
        total = lengths.sum()
    elif count_empty:
        total = lengths.new_tensor(lengths.numel())
    else:
        total = (lengths > 0).sum().to(torch.float64)
    if aggregate == Aggregate.SEQ_MEAN_TOKEN_SUM_NORM:
        total = total * max_length
    if aggregate == Aggregate.SEQ_MEAN_TOKEN_MEAN:
        total = total * lengths
    else:
        total = total.expand_as(lengths)
    return torch.where(total == 0, 0.0, 1.0 / total)


def _all_weights(lengths: Tensor, count: Tensor | None, options: PolicyOptions) -> Tensor:
    """[3, B] float64: token weights of policy, KL and entropy term, signed coefficient included."""

    def weights(own: int) -> Tensor:
        like_policy = own < 0
        return token_weights(
            lengths,
            options.aggregate if like_policy else own,
            count if like_policy else None,
            options.count_empty,
            options.max_length,
        )

    return torch.stack(
        [
            options.policy_coef * weights(-1),
            options.kl_coef * weights(options.kl_aggregate),
            -options.entropy_coef * weights(options.entropy_aggregate),
        ]
    )


def exp_minus_one_minus_x(x: Tensor) -> Tensor:
    """exp(x) - 1 - x without the cancellation that leaves k3 with no digits near x = 0."""
    series = torch.full_like(x, 1.0 / 6227020800.0)  # 1/13!
    factorial = 6227020800.0
    for order in range(13, 2, -1):
        factorial /= order
        series = series * x + 1.0 / factorial
    return torch.where(x.abs() < 0.7, x * x * series, torch.expm1(x) - x)


def _kl_terms(
    logprobs: Tensor, ref_logprobs: Tensor, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """KL estimate of each token (Schulman 2020) and its derivative by the log-probability."""
    log_ratio = ref_logprobs - logprobs
    bound = options.kl_log_ratio_clamp
    x = log_ratio.clamp(-bound, bound)
    kind = Kl(options.kl)
    if kind in (Kl.K1, Kl.K1_PLUS):
        value, slope = -x, torch.ones_like(x)
    elif kind == Kl.K2:
        value, slope = 0.5 * x * x, -x
    elif kind in (Kl.ABS, Kl.ABS_PLUS):
        value, slope = x.abs(), torch.where(x.isnan(), x, -x.sign())
    else:
        value = exp_minus_one_minus_x(x)
        slope = -torch.expm1(x)
    held = (log_ratio.abs() > bound) | (value.abs() > options.kl_clamp)
    slope = torch.where(held, 0, slope)
    value = value.clamp(-options.kl_clamp, options.kl_clamp)
    if kind in (Kl.K1_PLUS, Kl.K3_PLUS, Kl.ABS_PLUS):
        slope = -log_ratio
        value = value + (log_ratio - log_ratio)  # NaN where the gradient is infinite
    return value, slope


class _PolicyTerms(NamedTuple):
    """Policy term of each token, its two derivatives, and what was clipped."""

    value: Tensor
    by_logprob: Tensor
    by_log_ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    clipped_dual: Tensor


def _scaled(factor: Tensor, x: Tensor) -> Tensor:
    """Product of both, and 0 where the factor is 0 even if x is infinite; a NaN stays."""
    return torch.where((factor == 0) & ~x.isnan(), 0, factor * x)


def _policy_terms(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, factor: Tensor, options: PolicyOptions
) -> _PolicyTerms:
    """`factor` is the advantage times the importance weight: all that multiplies the ratio."""
    zero = torch.zeros_like(ratio)
    never = torch.zeros_like(ratio, dtype=torch.bool)
    if options.surrogate == Surrogate.REINFORCE:
        return _PolicyTerms(_scaled(-factor, logprobs), -factor, zero, never, never, never)
    below, above = ratio < options.clip_min, ratio > options.clip_max
    if options.surrogate == Surrogate.CISPO:
        weight = _scaled(-factor, ratio.clamp(options.clip_min, options.clip_max))
        return _PolicyTerms(_scaled(weight, logprobs), weight, zero, below, above, never)
    # -min(r A, clip(r) A) with its two further bounds is -A times r held within a range, which
    # depends on the sign of A. Where A is 0 or NaN there is nothing to hold.
    positive, negative = advantages > 0, advantages < 0
    cap = max(options.delta, options.clip_max)
    anything = torch.full_like(ratio, torch.inf)
    lowest = (-anything).masked_fill(negative, options.clip_min)
    highest = anything.masked_fill(positive, min(options.delta, options.clip_max))
    highest = highest.masked_fill(negative, min(cap, options.dual_clip))
    value = _scaled(-factor, ratio.clamp(lowest, highest))
    dual = min(options.delta, options.dual_clip if cap > options.dual_clip else torch.inf)
    return _PolicyTerms(
        value,
        zero,
        torch.where((ratio < lowest) | (ratio > highest), 0, value),
        below & negative,
        above & positive,
        negative & (ratio > dual),
    )


class _Batch(NamedTuple):
    """Everything per token that loss, metrics and gradient need."""

    tokens: _Tokens
    policy: _PolicyTerms  # importance weights applied to value and derivatives
    kl: Tensor
    kl_by_logprob: Tensor
    kl_by_log_ratio: Tensor
    entropy: Tensor
    log_ratio: Tensor  # logprobs - old_logprobs of the token itself
    ratio: Tensor  # what enters the loss


def _evaluate(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logprobs: Tensor | None,
    entropy: Tensor | None,
    importance_weights: Tensor | None,
    cu_seqlens: Tensor | None,
    options: PolicyOptions,
) -> _Batch:
    tokens = _tokens(logprobs, mask, cu_seqlens)
    new = tokens.flat(logprobs)
    zero = torch.zeros_like(new)
    # Without old log-probabilities 0, and NaN where the policy's own are not finite.
    log_ratio = new - (new if old_logprobs is None else tokens.flat(old_logprobs))
    exponent = log_ratio
    if options.ratio != Ratio.TOKEN:
        mean = tokens.per_sequence(log_ratio) / tokens.lengths.clamp(min=1)
        exponent = mean.to(new.dtype)[tokens.sequence]
    held = (exponent < options.log_ratio_min) | (exponent > options.log_ratio_max)
    ratio = exponent.clamp(options.log_ratio_min, options.log_ratio_max).exp()

    advantage = factor = tokens.spread(advantages)
    if importance_weights is not None:
        weight = tokens.spread(importance_weights)
        factor = torch.where(advantage == 0, _scaled(advantage, weight), _scaled(weight, advantage))
    policy = _policy_terms(ratio, new, advantage, factor, options)
    policy = policy._replace(by_log_ratio=torch.where(held, 0, policy.by_log_ratio))

    kl = kl_by_logprob = kl_by_log_ratio = zero
    if ref_logprobs is not None and options.kl != Kl.NONE:
        kl, kl_by_logprob = _kl_terms(new, tokens.flat(ref_logprobs), options)
        if options.kl_importance_weighted:
            kl = kl * ratio
            kl_by_logprob = kl_by_logprob * ratio
            kl_by_log_ratio = torch.where(held, 0, kl)
    entropies = zero if entropy is None else tokens.flat(entropy)
    return _Batch(tokens, policy, kl, kl_by_logprob, kl_by_log_ratio, entropies, log_ratio, ratio)


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

    figures = {
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
    return torch.stack([figures[metric] for metric in PolicyMetric])


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
    *options: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, metrics and what the gradient needs of each sequence.

    That is [4, B] float64: a token's weight in the policy, KL and entropy term, and the mean
    log-ratio of the sequence.

    Arguments as in `oneshot.ops.policy_loss`, with ``options`` the fields of `PolicyOptions`;
    ``advantages`` and ``importance_weights`` have the shape of ``logprobs`` or are [B].
    """
    choice = PolicyOptions(*options)  # type: ignore[arg-type]
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
    log_ratio = tokens.per_sequence(batch.log_ratio) / tokens.lengths.clamp(min=1)
    weights = torch.cat([weights, log_ratio[None]])
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
    *options: float,
) -> tuple[Tensor, Tensor]:
    """Gradients by log-probabilities and entropy, in their shape (empty if not asked for)."""
    choice = PolicyOptions(*options)  # type: ignore[arg-type]
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
        if choice.ratio == Ratio.SEQUENCE:
            shared = tokens.per_sequence(by_ratio) / tokens.lengths.clamp(min=1)
            by_ratio = shared.to(tokens.dtype)[tokens.sequence]
        by_logprobs = torch.where(tokens.valid, direct + by_ratio, 0)
        by_logprobs = by_logprobs.to(logprobs.dtype).reshape(logprobs.shape)
    if grad_entropy:
        by_entropy = torch.where(tokens.valid, entropy_scale, 0).reshape(logprobs.shape)
        by_entropy = by_entropy.to(logprobs.dtype)
    return by_logprobs, by_entropy


def value_loss(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    count: Tensor | None,
    clip: float,
    aggregate: int,
    count_empty: bool,
    max_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, metrics and the [B] float64 token weights. ``clip`` = inf: no clipping."""
    tokens = _tokens(values, mask, cu_seqlens)
    value, target = tokens.flat(values), tokens.flat(returns)
    squared, _, clipped = _value_terms(tokens, values, old_values, returns, clip)
    weights = token_weights(tokens.lengths, aggregate, count, count_empty, max_length)
    loss = (weights * tokens.per_sequence(squared)).sum()

    total = tokens.lengths.sum().clamp(min=1)

    def variance(x: Tensor) -> Tensor:
        x = x.to(torch.float64)
        centred = torch.where(tokens.valid, x - x.sum() / total, 0)
        return (centred * centred).sum() / total

    spread = variance(target)
    explained = torch.where(spread == 0, 0.0, 1 - variance(target - value) / spread)
    figures = {
        ValueMetric.CLIP_FRACTION: tokens.mean(clipped),
        ValueMetric.VALUE_MEAN: tokens.mean(value),
        ValueMetric.RETURN_MEAN: tokens.mean(target),
        ValueMetric.EXPLAINED_VARIANCE: explained,
        ValueMetric.TOKENS: tokens.lengths.sum(),
    }
    metrics = torch.stack([figures[metric] for metric in ValueMetric])
    return loss.to(tokens.dtype), metrics.to(tokens.dtype), weights


def _value_terms(
    tokens: _Tokens, values: Tensor, old_values: Tensor | None, returns: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Half the (clipped) squared error of each token, its derivative, and whether clipped."""
    value, target = tokens.flat(values), tokens.flat(returns)
    error = value - target
    clipped = torch.zeros_like(tokens.valid)
    if old_values is not None:
        old = tokens.flat(old_values)
        bounded_error = value.clamp(old - clip, old + clip) - target
        clipped = bounded_error * bounded_error > error * error
        error = torch.where(clipped | old.isnan(), bounded_error, error)  # a NaN is not hidden
    return 0.5 * error * error, torch.where(clipped, 0, error), clipped


def value_loss_backward(
    grad_loss: Tensor,
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    weights: Tensor,
    clip: float,
) -> Tensor:
    """Gradient by the values, in their shape and dtype."""
    tokens = _tokens(values, mask, cu_seqlens)
    _, slope, _ = _value_terms(tokens, values, old_values, returns, clip)
    scale = (grad_loss.to(torch.float64) * weights).to(tokens.dtype)[tokens.sequence]
    grad = torch.where(tokens.valid, scale * slope, 0)
    return grad.to(values.dtype).reshape(values.shape)


def importance_weights(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    per_sequence: bool,
    truncate: bool,
    low: float,
    high: float,
    log_ratio_clamp: float,
    normalize: bool,
    ignore_nan: bool,
) -> tuple[Tensor, Tensor]:
    """Weights ([B] per sequence, else in the shape of ``logprobs``) and metrics."""
    tokens = _tokens(logprobs, mask, cu_seqlens)
    log_ratio = tokens.flat(logprobs) - tokens.flat(sampler_logprobs)
    if ignore_nan:
        log_ratio = torch.where(log_ratio.isnan(), 0, log_ratio)
    exponent = log_ratio
    share = tokens.valid.to(torch.float64)  # how many tokens one weight stands for
    if per_sequence:
        exponent = tokens.per_sequence(log_ratio).to(tokens.dtype)
        share = tokens.lengths
    raw = exponent.clamp(-log_ratio_clamp, log_ratio_clamp).exp()
    below, above = raw < low, raw > high
    weights = raw.clamp(low, high) if truncate else torch.where(below | above, 0, raw)
    if not per_sequence:
        weights = torch.where(tokens.valid, weights, 0)

    total = share.sum().clamp(min=1)
    wide = weights.to(torch.float64)
    mean = (share * wide).sum() / total
    square = (share * wide * wide).sum() / total
    counted = wide[share > 0]
    smallest = largest = mean.new_zeros(())
    if counted.numel() > 0:
        smallest, largest = counted.amin(), counted.amax()
    normalizer = mean.new_ones(())
    if normalize:
        if per_sequence:
            filled = (share > 0).to(torch.float64)
            normalizer = (filled * wide).sum() / filled.sum().clamp(min=1)
        else:
            normalizer = mean
        normalizer = torch.where(normalizer <= 1e-8, 1.0, normalizer)  # a NaN stays one
        # Masked tokens weigh 0, and stay at it whatever the normalizer is.
        weights = torch.where(wide == 0, 0, wide / normalizer).to(tokens.dtype)
    figures = {
        WeightMetric.MEAN: mean,
        WeightMetric.MIN: smallest,
        WeightMetric.MAX: largest,
        WeightMetric.EFFECTIVE_SAMPLE_SIZE: torch.where(square == 0, 0.0, mean * mean / square),
        WeightMetric.FRACTION_LOW: (share * below).sum() / total,
        WeightMetric.FRACTION_HIGH: (share * above).sum() / total,
        WeightMetric.KL: tokens.mean(-log_ratio),
        WeightMetric.NORMALIZER: normalizer,
    }
    metrics = torch.stack([figures[metric] for metric in WeightMetric])
    if not per_sequence:
        weights = weights.reshape(logprobs.shape)
    return weights, metrics.to(tokens.dtype)
