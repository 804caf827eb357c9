"""Losses of RL post-training: policy, value, and weights that correct an off-policy sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oneshot.ops import _library
from oneshot.ops._checks import as_int64, as_mask, check_float, check_same_device
from oneshot.ops._numbers import number, numbers
from oneshot.ops.policy_options import bounds, resolve_normalizer, resolve_options
from oneshot.reference import policy_loss as reference
from oneshot.reference.policy_loss import (
    PolicyMetric,
    PolicyOptions,
    ValueMetric,
    WeightMetric,
    arithmetic_dtype,
)


def _named(metrics: Tensor, names: type[IntEnum]) -> dict[str, float]:
    return dict(zip((name.name.lower() for name in names), metrics.tolist(), strict=True))


class PolicyLoss(NamedTuple):
    """Scalar loss with gradient, and one tensor of figures indexed by `PolicyMetric`."""

    loss: Tensor
    metrics: Tensor

    def metrics_dict(self) -> dict[str, float]:
        """The figures by name. Reads the tensor, so on an accelerator it waits for the device."""
        return _named(self.metrics, PolicyMetric)


class ValueLoss(NamedTuple):
    """Scalar loss with gradient, and one tensor of figures indexed by `ValueMetric`."""

    loss: Tensor
    metrics: Tensor

    def metrics_dict(self) -> dict[str, float]:
        """The figures by name. Reads the tensor, so on an accelerator it waits for the device."""
        return _named(self.metrics, ValueMetric)


class ImportanceWeights(NamedTuple):
    """Weights for `policy_loss`, and one tensor of figures indexed by `WeightMetric`."""

    weights: Tensor
    metrics: Tensor

    def metrics_dict(self) -> dict[str, float]:
        """The figures by name. Reads the tensor, so on an accelerator it waits for the device."""
        return _named(self.metrics, WeightMetric)


# ------------------------------------------------------------------------------------------------
# Checks shared by the three ops


def _layout(
    name: str, tokens: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Check layout, mask and cu_seqlens; returns the mask as bool and cu_seqlens as int64."""
    check_float(name, tokens)
    if cu_seqlens is None:
        if tokens.dim() != 2:
            raise ValueError(
                f"{name} must be [B, T], or [N] with cu_seqlens, got shape {list(tokens.shape)}"
            )
    else:
        if tokens.dim() != 1:
            raise ValueError(f"packed {name} must be [N], got shape {list(tokens.shape)}")
        cu_seqlens = as_int64("cu_seqlens", cu_seqlens)
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
            raise ValueError(f"cu_seqlens must be [B + 1], got shape {list(cu_seqlens.shape)}")
        check_same_device("cu_seqlens", cu_seqlens, name, tokens)
    if mask is not None:
        mask = as_mask("mask", mask, tokens.shape, name, tokens)
    return mask, cu_seqlens


def _per_token(name: str, x: Tensor | None, like_name: str, like: Tensor) -> Tensor | None:
    """A tensor of data with the shape of `like`."""
    if x is None:
        return None
    check_float(name, x)
    check_same_device(name, x, like_name, like)
    if x.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {like_name} {list(like.shape)}, got {list(x.shape)}"
        )
    return _library.as_data(x)


def _per_sequence_or_token(
    name: str, x: Tensor, like_name: str, like: Tensor, cu_seqlens: Tensor | None
) -> Tensor:
    """A tensor of data with the shape of `like`, or one value a sequence."""
    check_float(name, x)
    check_same_device(name, x, like_name, like)
    batch = like.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if x.shape == like.shape:
        return _library.as_data(x)
    if x.dim() == 2 and x.shape[1] == 1:
        x = x.squeeze(1)
    if x.shape != (batch,):
        raise ValueError(
            f"{name} must be [{batch}] (one a sequence) or have the shape of {like_name} "
            f"{list(like.shape)}, got {list(x.shape)}"
        )
    return _library.as_data(x)


def _batch_size(tokens: Tensor, cu_seqlens: Tensor | None) -> int:
    return tokens.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


# ------------------------------------------------------------------------------------------------
# Policy loss


def _fake_policy_loss(logprobs: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    cu_seqlens = rest[6]
    dtype = arithmetic_dtype(logprobs)
    return (
        logprobs.new_empty((), dtype=dtype),
        logprobs.new_empty((len(PolicyMetric),), dtype=dtype),
        logprobs.new_empty((4, _batch_size(logprobs, cu_seqlens)), dtype=torch.float64),
    )


def _fake_policy_loss_backward(
    grad_loss: Tensor, logprobs: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    grad_logprobs, grad_entropy = rest[7], rest[8]
    return (
        logprobs.new_empty(logprobs.shape if grad_logprobs else (0,)),
        logprobs.new_empty(logprobs.shape if grad_entropy else (0,)),
    )


def _spread_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The fields of `PolicyOptions` travel as one list and max_length."""
    return lambda *arguments: function(*arguments[:-2], *arguments[-2], arguments[-1])


_policy_loss = _library.define(
    "policy_loss(Tensor logprobs, Tensor? old_logprobs, Tensor advantages, Tensor? mask, "
    "Tensor? ref_logprobs, Tensor? entropy, Tensor? importance_weights, Tensor? cu_seqlens, "
    "Tensor? count, float[] options, SymInt max_length) -> (Tensor, Tensor, Tensor)",
    _spread_options(reference.policy_loss),
    _fake_policy_loss,
)
_policy_loss_backward = _library.define(
    "policy_loss_backward(Tensor grad_loss, Tensor logprobs, Tensor? old_logprobs, "
    "Tensor advantages, Tensor? mask, Tensor? ref_logprobs, Tensor? importance_weights, "
    "Tensor? cu_seqlens, Tensor weights, bool grad_logprobs, bool grad_entropy, "
    "float[] options, SymInt max_length) -> (Tensor, Tensor)",
    _spread_options(reference.policy_loss_backward),
    _fake_policy_loss_backward,
)
_INPUTS = 9  # tensors before the options


def _policy_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logprobs, old, advantages, mask, ref, _, importance, cu_seqlens, _ = inputs[:_INPUTS]
    ctx.options = inputs[_INPUTS:]
    constants = ctx.options[0]
    kl_coef = PolicyOptions._fields.index("kl_coef")
    if not isinstance(constants, Tensor) and constants[kl_coef] == 0:
        ref = None  # only reported
    saved = logprobs, old, advantages, mask, ref, importance, cu_seqlens, output[2]
    _library.save_for_backward(ctx, *saved)
    ctx.mark_non_differentiable(output[1], output[2])


def _policy_grad(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Any, ...]:
    needs_logprobs, needs_entropy = ctx.needs_input_grad[0], ctx.needs_input_grad[5]
    by_logprobs, by_entropy = _policy_loss_backward(
        grad_loss, *ctx.saved_tensors, needs_logprobs, needs_entropy, *ctx.options
    )
    grads: list[Any] = [None] * (_INPUTS + len(ctx.options))
    if needs_logprobs:
        grads[0] = by_logprobs
    if needs_entropy:
        grads[5] = by_entropy
    return tuple(grads)


_library.differentiable("policy_loss", _policy_grad, _policy_setup)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    ref_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    importance_weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    objective: str = "ppo",
    ratio: str | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    delta: float | None = None,
    log_ratio_clamp: float | tuple[float, float] | None = None,
    kl: str = "k3",
    kl_coef: float = 0.0,
    kl_importance_weighted: bool = False,
    kl_log_ratio_clamp: float | None = None,
    kl_clamp: float | None = None,
    entropy_coef: float = 0.0,
    policy_coef: float = 1.0,
    aggregate: str | None = None,
    kl_aggregate: str | None = None,
    entropy_aggregate: str | None = None,
    token_count: float | Tensor | None = None,
    sequence_count: float | Tensor | None = None,
    max_length: int | None = None,
    count_empty: bool = False,
) -> PolicyLoss:
    """Loss of one policy update: surrogate + kl_coef * KL - entropy_coef * entropy, with metrics.

    loss = policy_coef * agg(w_t * surrogate_t) + kl_coef * agg(KL_t) - entropy_coef * agg(H_t)

    Gradients go to `logprobs` and `entropy` only; every other tensor is data. A batch without a
    token that counts has loss 0 and zero gradient. What `mask` leaves out may hold anything.

    Args:
        logprobs: Log-likelihood of each sampled token under the policy being trained, nats;
            [B, T] padded, or [N] packed with `cu_seqlens`. Half formats are computed in float32.
        old_logprobs: The same under the policy the ratio refers to. None: the policy itself before
            the update, so that every ratio is 1.
        advantages: One per token (shape of `logprobs`) or one per sequence ([B] or [B, 1]).
        mask: Shape of `logprobs`, bool, or numbers that are all 0 or 1; True where a token counts.
            Default: all count.
        ref_logprobs: The same under the frozen reference policy of the KL term.
        entropy: Entropy of the policy at each token, nats; dtype of `logprobs`. With
            entropy_coef = 0 it is only reported.
        importance_weights: Factors of the policy term alone, per token or per sequence
            (see :func:`importance_weights`).
        cu_seqlens: [B + 1] int32 or int64, packed layout: sequence b holds the tokens from
            cu_seqlens[b] up to cu_seqlens[b + 1].
        objective: Named choice of surrogate, ratio, clip range and aggregation (`OBJECTIVES`):
            "ppo", "grpo", "dapo", "dr_grpo", "gspo", "cispo" or "reinforce". Each of the next
            arguments overrides its part.
        ratio: "token"; "sequence" = geometric mean over the sequence (GSPO); "sequence-token" = the
            same value, with gradient to the token itself only (GSPO-token).
        clip_low: The ratio is clipped at 1 - clip_low; math.inf: no lower bound.
        clip_high: The ratio is clipped at 1 + clip_high; math.inf: no upper bound.
        dual_clip: Bound c > 1 of the loss, -c A, where the advantage is negative.
        delta: Upper bound of the unclipped ratio (two-sided clipping), for negative advantages.
        log_ratio_clamp: Bounds of the log-ratio before exp, symmetric or (low, high); no gradient
            beyond them.
        kl: Estimator of KL(policy, reference) at each token, with d = log-ratio policy to
            reference: "k1" d, "k2" d^2/2, "k3" exp(-d) - 1 + d, "abs" `|d|`; "k1+", "k3+", "abs+"
            have that value and the gradient of k2; "none" takes no `ref_logprobs`.
        kl_coef: Weight of the KL term. With 0 the KL is only reported.
        kl_importance_weighted: Multiply the estimate by the (unclipped) ratio, gradient included.
        kl_log_ratio_clamp: Symmetric bound of d inside the estimator.
        kl_clamp: Symmetric bound of the estimate.
        entropy_coef: Weight of the entropy bonus.
        policy_coef: Weight of the policy term.
        aggregate: "token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum" or
            "seq-mean-token-sum-norm" (the latter divides by `max_length`).
        kl_aggregate: Another mode for the KL term; the overrides below do not apply to it.
        entropy_aggregate: Another mode for the entropy; the overrides below do not apply to it.
        token_count: Replaces the number of tokens of this batch in "token-mean", e.g. by that of
            the global batch divided by the number of ranks. A number or a 0-dim tensor.
        sequence_count: Replaces the number of sequences in the "seq-mean" modes.
        max_length: Divisor of "seq-mean-token-sum-norm"; default T (needed when packed).
        count_empty: Whether sequences without a token that counts are part of the mean over
            sequences (TRL, Liger) or not (verl, OpenRLHF).

    Returns:
        PolicyLoss(loss, metrics): 0-dim loss and [14] metrics (index: `PolicyMetric`), float32, or
        float64 for float64 `logprobs`.

    Raises:
        TypeError: A dtype other than those named here.
        ValueError: A shape, device, name or number that does not fit; a coefficient whose input is
            missing; an override that the aggregation would ignore.

    Source:
        `OBJECTIVES` names each objective's paper and equation. Dual clip: Ye et al. 2020
        (arXiv 1912.09729) eq. 5. Delta: INTELLECT-2 (arXiv 2505.07291). KL estimators:
        Schulman 2020, http://joschu.net/blog/kl-approx.html; importance-weighted: DeepSeek-V3.2
        (arXiv 2512.02556). docs/ops/policy_loss.md has all formulas, and where libraries differ.
    """
    mask, cu_seqlens = _layout("logprobs", logprobs, mask, cu_seqlens)
    old_logprobs = _per_token("old_logprobs", old_logprobs, "logprobs", logprobs)
    ref_logprobs = _per_token("ref_logprobs", ref_logprobs, "logprobs", logprobs)
    advantages = _per_sequence_or_token("advantages", advantages, "logprobs", logprobs, cu_seqlens)
    if importance_weights is not None:
        importance_weights = _per_sequence_or_token(
            "importance_weights", importance_weights, "logprobs", logprobs, cu_seqlens
        )
    if entropy is not None:
        _per_token("entropy", entropy, "logprobs", logprobs)
        if entropy.dtype != logprobs.dtype:
            raise TypeError(
                f"entropy must have the dtype of logprobs ({logprobs.dtype}), got {entropy.dtype}"
            )
    options, normalizer = resolve_options(
        logprobs.shape[1] if cu_seqlens is None else None,
        ref_logprobs is not None,
        entropy is not None,
        objective=objective,
        ratio=ratio,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        delta=delta,
        log_ratio_clamp=log_ratio_clamp,
        kl=kl,
        kl_coef=kl_coef,
        kl_importance_weighted=kl_importance_weighted,
        kl_log_ratio_clamp=kl_log_ratio_clamp,
        kl_clamp=kl_clamp,
        entropy_coef=entropy_coef,
        policy_coef=policy_coef,
        aggregate=aggregate,
        kl_aggregate=kl_aggregate,
        entropy_aggregate=entropy_aggregate,
        token_count=token_count,
        sequence_count=sequence_count,
        max_length=max_length,
        count_empty=count_empty,
    )
    loss, metrics, _ = _policy_loss(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        ref_logprobs,
        entropy,
        importance_weights,
        cu_seqlens,
        normalizer.count_tensor(logprobs),
        numbers(options[:-1]),
        options.max_length,
    )
    return PolicyLoss(loss, metrics)


# ------------------------------------------------------------------------------------------------
# Value loss


def _fake_value_loss(values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = arithmetic_dtype(values)
    return (
        values.new_empty((), dtype=dtype),
        values.new_empty((len(ValueMetric),), dtype=dtype),
        values.new_empty((_batch_size(values, rest[3]),), dtype=torch.float64),
    )


_value_loss = _library.define(
    "value_loss(Tensor values, Tensor? old_values, Tensor returns, Tensor? mask, "
    "Tensor? cu_seqlens, Tensor? count, float clip, int aggregate, bool count_empty, "
    "SymInt max_length) -> (Tensor, Tensor, Tensor)",
    reference.value_loss,
    _fake_value_loss,
)
_value_loss_backward = _library.define(
    "value_loss_backward(Tensor grad_loss, Tensor values, Tensor? old_values, Tensor returns, "
    "Tensor? mask, Tensor? cu_seqlens, Tensor weights, float clip) -> Tensor",
    reference.value_loss_backward,
    lambda grad_loss, values, *rest: values.new_empty(values.shape),
)


def _value_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, old_values, returns, mask, cu_seqlens, _, ctx.clip = inputs[:7]
    _library.save_for_backward(ctx, values, old_values, returns, mask, cu_seqlens, output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _value_grad(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Any, ...]:
    by_values = _value_loss_backward(grad_loss, *ctx.saved_tensors, ctx.clip)
    return (by_values, *[None] * 9)


_library.differentiable("value_loss", _value_grad, _value_setup)


def value_loss(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float | None = 0.5,
    cu_seqlens: Tensor | None = None,
    aggregate: str = "token-mean",
    token_count: float | Tensor | None = None,
    sequence_count: float | Tensor | None = None,
    max_length: int | None = None,
    count_empty: bool = False,
) -> ValueLoss:
    """Clipped squared error of a value head: agg(max((v - R)^2, (clip(v) - R)^2)) / 2.

    Gradient goes to `values` only.

    Args:
        values: [B, T] padded, or [N] packed with `cu_seqlens`: predictions being trained.
        old_values: Shape of `values`: predictions at rollout time. May be None when `clip` is.
        returns: Shape of `values`: targets.
        mask: Bool, shape of `values`; True where a token counts. Default: all count.
        clip: v is held within `clip` of the old value in the second error; None: plain error.
        cu_seqlens: [B + 1] int32 or int64 for the packed layout.
        aggregate: As in :func:`policy_loss`, like the four arguments that follow.
        token_count: See :func:`policy_loss`.
        sequence_count: See :func:`policy_loss`.
        max_length: See :func:`policy_loss`.
        count_empty: See :func:`policy_loss`.

    Returns:
        ValueLoss(loss, metrics): 0-dim loss and [5] metrics (index: `ValueMetric`), float32, or
        float64 for float64 `values`.

    Raises:
        TypeError: A dtype other than those named here.
        ValueError: A shape, device, name or number that does not fit.

    Source:
        Value clipping of the reference implementation of Schulman et al. 2017, as in verl
        ``compute_value_loss``.
    """
    mask, cu_seqlens = _layout("values", values, mask, cu_seqlens)
    returns = _per_token("returns", returns, "values", values)  # type: ignore[assignment]
    old_values = _per_token("old_values", old_values, "values", values)
    if clip is None:
        old_values = None
    elif old_values is None:
        raise ValueError(f"clip = {clip} needs old_values, got None")
    elif not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    width = values.shape[1] if cu_seqlens is None else None
    normalizer = resolve_normalizer(aggregate, token_count, sequence_count, max_length, width)
    loss, metrics, _ = _value_loss(
        values,
        old_values,
        returns,
        mask,
        cu_seqlens,
        normalizer.count_tensor(values),
        math.inf if clip is None else number("clip", clip),
        normalizer.aggregate,
        count_empty,
        normalizer.max_length,
    )
    return ValueLoss(loss, metrics)


# ------------------------------------------------------------------------------------------------
# Importance weights


def _fake_importance_weights(
    logprobs: Tensor, sampler: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    per_sequence = rest[0]
    dtype = arithmetic_dtype(logprobs)
    shape = (_batch_size(logprobs, cu_seqlens),) if per_sequence else logprobs.shape
    return (
        logprobs.new_empty(shape, dtype=dtype),
        logprobs.new_empty((len(WeightMetric),), dtype=dtype),
    )


_importance_weights = _library.define(
    "importance_weights(Tensor logprobs, Tensor sampler_logprobs, Tensor? mask, "
    "Tensor? cu_seqlens, bool per_sequence, bool truncate, float low, float high, "
    "float log_ratio_clamp, bool normalize, bool ignore_nan) -> (Tensor, Tensor)",
    reference.importance_weights,
    _fake_importance_weights,
)


def importance_weights(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor | None = None,
    *,
    level: str = "token",
    mode: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
    log_ratio_clamp: float | None = 20.0,
    normalize: bool = False,
    ignore_nan: bool = False,
    cu_seqlens: Tensor | None = None,
) -> ImportanceWeights:
    """Weights p_trainer / p_sampler that correct for a sampler that is not quite the policy.

    Carries no gradient: the weights change the measure, not the objective.

    Args:
        logprobs: [B, T] padded, or [N] packed: log-likelihood of each sampled token under the
            training engine's policy at rollout time, nats.
        sampler_logprobs: The same as the sampling engine reported it.
        mask: Shape of `logprobs`, bool, or numbers that are all 0 or 1; True where a token counts.
            Default: all count.
        level: "token": one weight a token; "sequence": the product over the sequence.
        mode: "truncate" holds the weight within [low, high] (TIS); "mask" replaces a weight outside
            by 0 (IcePop, MIS).
        low: Lower threshold.
        high: Upper threshold; math.inf: none.
        log_ratio_clamp: Symmetric bound of the (summed) log-ratio before exp; None: none.
        normalize: Divide by the mean weight of the batch (over tokens, or over sequences that are
            not empty).
        ignore_nan: A token whose log-ratio is NaN (the sampler reported none) counts as ratio 1
            instead of making its weight NaN.
        cu_seqlens: [B + 1] int32 or int64 for the packed layout.

    Returns:
        ImportanceWeights(weights, metrics): weights in the shape of `logprobs`, 0 where masked
        (level="token"), or [B] (level="sequence"); [8] metrics (index: `WeightMetric`); float32, or
        float64 for float64 `logprobs`. Both shapes are accepted by :func:`policy_loss`.

    Raises:
        TypeError: A dtype other than those named here.
        ValueError: A shape, device, name or number that does not fit.

    Source:
        Truncation: Ionides 2008; Yao et al. 2025 (TIS). Masking: IcePop 2025. Conventions of verl
        ``compute_rollout_correction_weights``; TRL's four ``vllm_importance_sampling_mode``.
    """
    mask, cu_seqlens = _layout("logprobs", logprobs, mask, cu_seqlens)
    sampler = _per_token("sampler_logprobs", sampler_logprobs, "logprobs", logprobs)
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be token or sequence, got {level!r}")
    if mode not in ("truncate", "mask"):
        raise ValueError(f"mode must be truncate or mask, got {mode!r}")
    if not 0 <= low <= high:
        raise ValueError(f"thresholds must satisfy 0 <= low <= high, got low={low}, high={high}")
    weights, metrics = _importance_weights(
        _library.as_data(logprobs),
        sampler,
        mask,
        cu_seqlens,
        level == "sequence",
        mode == "truncate",
        number("low", low),
        number("high", high),
        bounds("log_ratio_clamp", log_ratio_clamp)[1],
        normalize,
        ignore_nan,
    )
    return ImportanceWeights(weights, metrics)
