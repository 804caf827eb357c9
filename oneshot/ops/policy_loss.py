"""Loss of one policy update, in any of the published forms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oneshot.ops import _library
from oneshot.ops._checks import check_float
from oneshot.ops._numbers import number, numbers
from oneshot.ops.policy_inputs import (
    Normalizer,
    batch_size,
    bound,
    layout,
    named,
    normalizer,
    per_sequence_or_token,
    per_token,
)
from oneshot.policy_options import (
    AGGREGATES,
    DEFAULTS,
    KL_ESTIMATORS,
    OBJECTIVES,
    RATIOS,
    SHARED_NUMBERS,
    Aggregate,
    KernelOptions,
    KlEstimator,
    PolicyLossOptions,
    bounds,
    check_options,
    choice,
    merged,
    objective_parts,
)
from oneshot.reference import policy_loss as reference
from oneshot.reference.policy_loss import PolicyMetric
from oneshot.reference.policy_terms import kl_terms
from oneshot.reference.policy_tokens import arithmetic_dtype


class PolicyLoss(NamedTuple):
    """Scalar loss with gradient, and one tensor of metrics indexed by `PolicyMetric`."""

    loss: Tensor
    metrics: Tensor

    def metrics_dict(self) -> dict[str, float]:
        """The metrics by name. Reads the tensor, so on an accelerator it waits for the device."""
        return named(self.metrics, PolicyMetric)


def _fake_policy_loss(logprobs: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    cu_seqlens = rest[6]
    dtype = arithmetic_dtype(logprobs)
    return (
        logprobs.new_empty((), dtype=dtype),
        logprobs.new_empty((len(PolicyMetric),), dtype=dtype),
        logprobs.new_empty((4, batch_size(logprobs, cu_seqlens)), dtype=torch.float64),
    )


def _fake_policy_loss_backward(
    grad_loss: Tensor, logprobs: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    grad_logprobs, grad_entropy = rest[7], rest[8]
    return (
        logprobs.new_empty(logprobs.shape if grad_logprobs else (0,)),
        logprobs.new_empty(logprobs.shape if grad_entropy else (0,)),
    )


_policy_loss = _library.define(
    "policy_loss(Tensor logprobs, Tensor? old_logprobs, Tensor advantages, Tensor? mask, "
    "Tensor? ref_logprobs, Tensor? entropy, Tensor? importance_weights, Tensor? cu_seqlens, "
    "Tensor? count, float[] options, SymInt max_length) -> (Tensor, Tensor, Tensor)",
    reference.policy_loss,
    _fake_policy_loss,
)
_policy_loss_backward = _library.define(
    "policy_loss_backward(Tensor grad_loss, Tensor logprobs, Tensor? old_logprobs, "
    "Tensor advantages, Tensor? mask, Tensor? ref_logprobs, Tensor? importance_weights, "
    "Tensor? cu_seqlens, Tensor weights, bool grad_logprobs, bool grad_entropy, "
    "float[] options, SymInt max_length) -> (Tensor, Tensor)",
    reference.policy_loss_backward,
    _fake_policy_loss_backward,
)
_INPUTS = 9  # tensors before the options


def _policy_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logprobs, old, advantages, mask, ref, _, importance, cu_seqlens, _ = inputs[:_INPUTS]
    ctx.options = inputs[_INPUTS:]
    packed = ctx.options[0]
    if not isinstance(packed, Tensor) and KernelOptions.option(packed, "kl_coef") == 0:
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
    options: PolicyLossOptions | None = None,
    **changes: Any,
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
        options: Objective, clip range, KL estimator, coefficients and aggregation, e.g. one of
            `oneshot.policy_presets`. Default: PPO's clipped surrogate alone, as a token mean.
        **changes: Single options by name, which replace those of `options`:
            ``policy_loss(..., objective="dapo", kl_coef=0.001)``. The fields of
            :class:`oneshot.policy_options.PolicyLossOptions` are all names, with their defaults.

    Returns:
        PolicyLoss(loss, metrics): 0-dim loss and [14] metrics (index: `PolicyMetric`), float32, or
        float64 for float64 `logprobs`.

    Raises:
        TypeError: A dtype other than those named here; an option that does not exist.
        ValueError: A shape, device, name or number that does not fit; a coefficient whose input is
            missing; an override that the aggregation would ignore.

    Source:
        `OBJECTIVES` names each objective's paper and equation. Dual clip: Ye et al. 2020
        (arXiv 1912.09729) eq. 5. Delta: INTELLECT-2 (arXiv 2505.07291). KL estimators:
        Schulman 2020, http://joschu.net/blog/kl-approx.html; importance-weighted: DeepSeek-V3.2
        (arXiv 2512.02556). docs/ops/policy_loss.md has all formulas, and where libraries differ.
    """
    mask, cu_seqlens = layout("logprobs", logprobs, mask, cu_seqlens)
    old_logprobs = per_token("old_logprobs", old_logprobs, "logprobs", logprobs)
    ref_logprobs = per_token("ref_logprobs", ref_logprobs, "logprobs", logprobs)
    advantages = per_sequence_or_token("advantages", advantages, "logprobs", logprobs, cu_seqlens)
    if importance_weights is not None:
        importance_weights = per_sequence_or_token(
            "importance_weights", importance_weights, "logprobs", logprobs, cu_seqlens
        )
    if entropy is not None:
        per_token("entropy", entropy, "logprobs", logprobs)
        if entropy.dtype != logprobs.dtype:
            raise TypeError(
                f"entropy must have the dtype of logprobs ({logprobs.dtype}), got {entropy.dtype}"
            )
    chosen = merged(options, changes)
    _check_inputs(chosen, ref_logprobs is not None, entropy is not None)
    if changes:
        check_options(chosen)
    resolved = {**chosen, **objective_parts(chosen)}
    how = normalizer(
        resolved["aggregate"],
        resolved["token_count"],
        resolved["sequence_count"],
        resolved["max_length"],
        logprobs.shape[1] if cu_seqlens is None else None,
    )
    kernel = _kernel_options(resolved, how)
    loss, metrics, _ = _policy_loss(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        ref_logprobs,
        entropy,
        importance_weights,
        cu_seqlens,
        how.count_tensor(logprobs),
        # the compiler does not turn a member of an enum into a float
        numbers(x.value if isinstance(x, IntEnum) else x for x in kernel[:-1]),
        kernel.max_length,
    )
    return PolicyLoss(loss, metrics)


def _with_options(function: Any) -> None:
    """Gives the signature of a function the options by name, in the place of **changes."""
    own = list(inspect.signature(function).parameters.values())[:-1]
    kind = inspect.Parameter.KEYWORD_ONLY
    named = [inspect.Parameter(n, kind, default=x) for n, x in DEFAULTS.items()]
    function.__signature__ = inspect.Signature([*own, *named], return_annotation=PolicyLoss)


_with_options(policy_loss)


def _check_inputs(options: Mapping[str, Any], with_ref: bool, with_entropy: bool) -> None:
    """Refuse a coefficient whose tensor is missing, and a reference that no estimator reads."""
    kl, kl_coef, entropy_coef = (options[name] for name in ("kl", "kl_coef", "entropy_coef"))
    if entropy_coef != 0 and not with_entropy:
        raise ValueError(f"entropy_coef = {entropy_coef} needs entropy, got None")
    if kl_coef != 0 and (not with_ref or kl == "none"):
        raise ValueError(f"kl_coef = {kl_coef} needs ref_logprobs and an estimator, got kl={kl!r}")
    if with_ref and kl == "none":
        raise ValueError("kl='none' takes no ref_logprobs")


def _kernel_options(options: Mapping[str, Any], how: Normalizer) -> KernelOptions:
    """Checked options, without any None of the objective's parts, as the numbers of the kernels."""

    def upper(name: str) -> Any:
        return math.inf if options[name] is None else number(name, options[name])

    clamp = options["log_ratio_clamp"]
    low, high = bounds("log_ratio_clamp", clamp)
    high = number("log_ratio_clamp", high)
    low = number("log_ratio_clamp", low) if isinstance(clamp, tuple | list) else -high
    return KernelOptions(
        surrogate=OBJECTIVES[options["objective"]].surrogate,
        ratio=RATIOS[options["ratio"]],
        clip_min=1 - number("clip_low", options["clip_low"]),
        clip_max=1 + number("clip_high", options["clip_high"]),
        dual_clip=upper("dual_clip"),
        delta=upper("delta"),
        log_ratio_min=low,
        log_ratio_max=high,
        kl=KL_ESTIMATORS[options["kl"]],
        kl_importance_weighted=options["kl_importance_weighted"],
        kl_log_ratio_clamp=bound("kl_log_ratio_clamp", options["kl_log_ratio_clamp"]),
        kl_clamp=bound("kl_clamp", options["kl_clamp"]),
        aggregate=how.aggregate,
        kl_aggregate=_own_aggregate(options["kl_aggregate"]),
        entropy_aggregate=_own_aggregate(options["entropy_aggregate"]),
        count_empty=options["count_empty"],
        max_length=how.max_length,
        **{name: number(name, options[name]) for name in SHARED_NUMBERS},
    )


def _own_aggregate(name: str | None) -> Aggregate:
    return Aggregate.AS_POLICY if name is None else AGGREGATES[name]


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor, kl: str = "k3") -> Tensor:
    """The KL estimate of each token as in `policy_loss`, without bounds and without gradient.

    Args:
        logprobs: Log-likelihoods of the sampled tokens under the policy, nats; any shape.
        ref_logprobs: The same under the reference; shape of `logprobs`.
        kl: An estimator of `policy_loss`, other than "none".

    Returns:
        Shape of `logprobs`; float32, or float64 for float64 inputs.

    Raises:
        ValueError: An unknown estimator, or tensors of different shapes.
    """
    check_float("logprobs", logprobs)
    estimator = choice("kl", kl, {k: x for k, x in KL_ESTIMATORS.items() if k != "none"})
    reference_logprobs = per_token("ref_logprobs", ref_logprobs, "logprobs", logprobs)
    assert reference_logprobs is not None
    dtype = arithmetic_dtype(logprobs)
    new, ref = logprobs.detach().to(dtype), reference_logprobs.detach().to(dtype)
    return kl_terms(new, ref, KernelOptions(kl=KlEstimator(estimator)))[0]
