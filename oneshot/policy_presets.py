"""Conventions of other libraries and published algorithms as instances of `PolicyLossOptions`.

One function per library takes that library's own option names with that library's defaults:
``policy_loss(logprobs, old, advantages, mask, options=policy_presets.verl(clip_ratio_c=2))``.
`PRESETS` holds the algorithms, and the libraries with their defaults, by name. The table of where
they differ is in docs/ops/policy_loss.md. This module imports no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from oneshot.policy_options import PolicyLossOptions

if TYPE_CHECKING:
    from torch import Tensor


def _one_of(name: str, value: str, known: tuple[str, ...], library: str) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)} ({library}), got {value!r}")
    return value


def paper(
    *,
    pg_loss_coeff: float = 1.0,
    entropy_coeff: float = 0.001,
    kl_loss_coef: float = 0.001,
    clip_ratio: float = 0.2,
) -> PolicyLossOptions:
    """GRPO as the code of one-shot RLVR runs it (Wang et al. 2025, arXiv 2504.20571).

    Token means, symmetric clip, k3 clamped at 10, entropy bonus; log-probabilities, entropy and
    reference must come from logits divided by the rollout temperature.

    Args:
        pg_loss_coeff: Weight of the policy term; 0 in the loss ablation.
        entropy_coeff: Weight of the entropy bonus.
        kl_loss_coef: Weight of the KL term.
        clip_ratio: Clip range on both sides.

    Returns:
        Options of :func:`oneshot.ops.policy_loss`.
    """
    return PolicyLossOptions(
        objective="ppo",
        clip_low=clip_ratio,
        clip_high=clip_ratio,
        policy_coef=pg_loss_coeff,
        entropy_coef=entropy_coeff,
        kl="k3",
        kl_coef=kl_loss_coef,
        kl_clamp=10.0,
        aggregate="token-mean",
    )


def _trl_family(
    library: str,
    loss_type: str,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None,
    beta: float,
    level: str,
    bias_correction: bool,
    max_completion_length: int | None,
    num_items_in_batch: float | Tensor | None,
) -> dict[str, Any]:
    """What TRL and Liger share: loss types by name, means that include empty sequences."""
    known = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo")
    soft = ("sapo", "vespo") if library == "TRL" else ()
    _one_of("loss_type", loss_type, (*known, *soft), library)
    _one_of("importance_sampling_level", level, ("token", "sequence"), library)
    arguments: dict[str, Any] = {
        "objective": "ppo",
        "ratio": level,
        "clip_low": epsilon_low,
        "clip_high": epsilon_high,
        "delta": delta,
        "kl": "k3",
        "kl_coef": beta,
        "kl_importance_weighted": bias_correction,
    }
    if loss_type == "cispo":
        # epsilon_high is the bound of the ratio itself, and there is no lower one
        arguments |= {"objective": "cispo", "clip_low": math.inf, "clip_high": epsilon_high - 1}
        arguments["delta"] = None
    if loss_type == "sapo":
        arguments |= {"objective": "sapo", "clip_low": None, "clip_high": None, "delta": None}
    if loss_type == "vespo":
        if level != "token":
            raise ValueError(
                "loss_type='vespo' needs importance_sampling_level='token': its ratio is the "
                f"product over the sequence, got {level!r}"
            )
        arguments |= {"objective": "vespo", "clip_low": None, "clip_high": None, "delta": None}
        arguments |= {"ratio": None, "log_ratio_clamp": (math.log(1e-8), 20.0)}
    if loss_type in ("grpo", "luspo", "dr_grpo", "sapo"):
        arguments |= {
            "aggregate": {
                "grpo": "seq-mean-token-mean",
                "sapo": "seq-mean-token-mean",
                "luspo": "seq-mean-token-sum",
                "dr_grpo": "seq-mean-token-sum-norm",
            }[loss_type],
            "count_empty": True,
        }
    else:
        arguments["aggregate"] = "token-mean"
    if loss_type == "dr_grpo":
        if max_completion_length is None:
            raise ValueError("loss_type='dr_grpo' needs max_completion_length")
        arguments["max_length"] = max_completion_length
    if loss_type in ("dapo", "cispo", "vespo") and num_items_in_batch is not None:
        arguments["token_count"] = num_items_in_batch
    return arguments


def trl(
    *,
    loss_type: str = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    importance_sampling_level: str = "token",
    use_bias_correction_kl: bool = True,
    entropy_coef: float = 0.0,
    max_completion_length: int | None = None,
    num_items_in_batch: float | Tensor | None = None,
) -> PolicyLossOptions:
    """TRL 1.16 ``GRPOConfig`` -> one micro-batch of ``GRPOTrainer._compute_loss``.

    TRL then divides by the accumulation steps (grpo, bnpo, dr_grpo, luspo, sapo). Its off-policy
    and entropy-quantile masks are not part of `policy_loss`; a mask can be. For vespo TRL folds the
    sampler's weights into the ratio: subtract their logarithm from `old_logprobs`. TRL also holds
    the log-ratio of each token within 20, `policy_loss` the sum alone; and TRL weights the KL by
    the ratio of the token, so that vespo with a KL needs use_bias_correction_kl=False.
    `policy_loss` has TRL's names for the shapes of both (sapo_temperature_neg, vespo_k_pos, ...).

    Args:
        loss_type: "dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo" or "vespo".
        epsilon: Lower clip range, and upper if `epsilon_high` is None.
        epsilon_high: Upper clip range; for cispo the bound of the ratio itself.
        delta: Two-sided clipping.
        beta: KL weight.
        importance_sampling_level: "token" or "sequence".
        use_bias_correction_kl: Multiply the KL estimate by the ratio.
        entropy_coef: Weight of the entropy bonus (a token mean, whatever the loss type).
        max_completion_length: Divisor of dr_grpo.
        num_items_in_batch: Token count that dapo and cispo divide by, after TRL's division by the
            number of processes and its accumulation factor. None: the tokens of this batch.

    Returns:
        Options of :func:`oneshot.ops.policy_loss`.
    """
    if loss_type == "vespo" and beta != 0 and use_bias_correction_kl:
        raise ValueError(
            "loss_type='vespo' with a KL term needs use_bias_correction_kl=False: TRL would weight "
            "it by the ratio of the token, policy_loss by that of the sequence"
        )
    high = epsilon if epsilon_high is None else epsilon_high
    arguments = _trl_family(
        "TRL", loss_type, epsilon, high, delta, beta, importance_sampling_level,
        use_bias_correction_kl, max_completion_length, num_items_in_batch,
    )  # fmt: skip
    return PolicyLossOptions(**arguments, entropy_coef=entropy_coef, entropy_aggregate="token-mean")


def liger(
    *,
    loss_type: str = "dapo",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    beta: float = 0.04,
    importance_sampling_level: str = "token",
    use_bias_correction_kl: bool = False,
    max_completion_length: int | None = None,
    num_items_in_batch: float | Tensor | None = None,
) -> PolicyLossOptions:
    """Liger-Kernel 0.8.5 ``LigerFusedLinearGRPOLoss`` on one process.

    Like TRL, but the KL estimate is not weighted by default, and there is no entropy. Temperature
    belongs to the log-probabilities; Liger's sapo and vespo are not part of this preset.

    Args:
        loss_type: "dapo", "grpo", "bnpo", "dr_grpo", "luspo" (sequence level) or "cispo".
        epsilon_low: Lower clip range.
        epsilon_high: Upper clip range; for cispo the bound of the ratio itself.
        delta: Two-sided clipping.
        beta: KL weight.
        importance_sampling_level: "token" or "sequence".
        use_bias_correction_kl: Multiply the KL estimate by the ratio.
        max_completion_length: Divisor of dr_grpo.
        num_items_in_batch: Token count that dapo and cispo divide by.

    Returns:
        Options of :func:`oneshot.ops.policy_loss`.

    Raises:
        ValueError: luspo with a KL term or ratios per token, where Liger divides by the width.
    """
    if loss_type == "luspo" and (importance_sampling_level != "sequence" or beta != 0):
        raise ValueError(
            "loss_type='luspo' needs importance_sampling_level='sequence' and beta=0: with a "
            "factor per token Liger divides by the padded width, which policy_loss does not; got "
            f"importance_sampling_level={importance_sampling_level!r}, beta={beta}"
        )
    arguments = _trl_family(
        "Liger", loss_type, epsilon_low, epsilon_high, delta, beta, importance_sampling_level,
        use_bias_correction_kl, max_completion_length, num_items_in_batch,
    )  # fmt: skip
    return PolicyLossOptions(**arguments)


# k2 with the gradient of k2 is k2 itself.
_VERL_KL = {"kl": "k1", "mse": "k2", "k2+": "k2", "mse+": "k2", "low_var_kl": "k3"}
_VERL_KL |= {"kl+": "k1+", "low_var_kl+": "k3+"}


def verl(
    *,
    loss_mode: str = "vanilla",
    clip_ratio: float = 0.2,
    clip_ratio_low: float | None = 0.2,
    clip_ratio_high: float | None = 0.2,
    clip_ratio_c: float = 3.0,
    loss_agg_mode: str = "token-mean",
    use_kl_loss: bool = False,
    kl_loss_coef: float = 0.001,
    kl_loss_type: str = "low_var_kl",
    entropy_coeff: float = 0.0,
    loss_scale_factor: int | None = None,
    dp_size: int = 1,
    batch_num_tokens: float | None = None,
    global_batch_size: float | None = None,
) -> PolicyLossOptions:
    """Verl 0.9.1 ``ActorConfig`` and global batch info -> ``workers.utils.losses.ppo_loss``.

    Args:
        loss_mode: "vanilla", "gspo", "cispo" or "gpg".
        clip_ratio: Clip range where the next two are None; verl's defaults leave it without effect.
        clip_ratio_low: Lower clip range.
        clip_ratio_high: Upper clip range.
        clip_ratio_c: Dual clip (vanilla only).
        loss_agg_mode: One of `policy_loss`'s aggregations, which have verl's names.
        use_kl_loss: Whether there is a KL term (pass no `ref_logprobs` otherwise).
        kl_loss_coef: Its weight.
        kl_loss_type: "kl", "k1", "abs", "mse", "k2", "low_var_kl" or "k3", each also with "+".
        entropy_coeff: Weight of the entropy bonus.
        loss_scale_factor: Divisor of seq-mean-token-sum-norm (None: the padded width).
        dp_size: Data-parallel ranks, whose gradients are averaged afterwards.
        batch_num_tokens: Tokens of the global batch.
        global_batch_size: Sequences of the global batch.

    Returns:
        Options of :func:`oneshot.ops.policy_loss`.
    """
    objectives = {"vanilla": "ppo", "gspo": "ppo", "cispo": "cispo", "gpg": "reinforce"}
    _one_of("loss_mode", loss_mode, tuple(objectives), "verl")
    arguments: dict[str, Any] = {
        "objective": objectives[loss_mode],
        "aggregate": loss_agg_mode,
        "entropy_coef": entropy_coeff,
    }
    if loss_mode != "gpg":
        arguments["clip_low"] = clip_ratio if clip_ratio_low is None else clip_ratio_low
        arguments["clip_high"] = clip_ratio if clip_ratio_high is None else clip_ratio_high
        arguments["log_ratio_clamp"] = (-math.inf, 10.0) if loss_mode == "gspo" else 20.0
    if loss_mode == "vanilla":
        arguments["dual_clip"] = clip_ratio_c
    if loss_mode == "gspo":
        arguments["ratio"] = "sequence-token"
    if use_kl_loss:
        kind = _VERL_KL.get(kl_loss_type, kl_loss_type)
        arguments |= {"kl": kind, "kl_coef": kl_loss_coef}
        if kind.startswith("k3"):
            arguments |= {"kl_log_ratio_clamp": 20.0, "kl_clamp": 10.0}
    else:
        arguments["kl"] = "none"
    if loss_agg_mode == "seq-mean-token-sum-norm":
        arguments["max_length"] = loss_scale_factor
    if loss_agg_mode == "token-mean":
        if batch_num_tokens is not None:
            arguments["token_count"] = batch_num_tokens / dp_size
    elif loss_agg_mode == "token-sum":
        # a sum times dp_size is a token mean over 1 / dp_size tokens
        arguments |= {"aggregate": "token-mean", "token_count": 1.0 / dp_size}
    elif global_batch_size is not None:
        arguments["sequence_count"] = global_batch_size / dp_size
    if dp_size > 1 and loss_agg_mode != "token-sum":
        needed = "batch_num_tokens" if loss_agg_mode == "token-mean" else "global_batch_size"
        if (batch_num_tokens if loss_agg_mode == "token-mean" else global_batch_size) is None:
            raise ValueError(f"dp_size = {dp_size} needs {needed}")
    return PolicyLossOptions(**arguments)


def openrlhf(
    *,
    policy_loss_type: str = "ppo",
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
    dual_clip: float | None = None,
    token_level_loss: bool = True,
    use_kl_loss: bool = False,
    kl_coef: float = 0.01,
    kl_estimator: str = "k1",
    entropy_loss_coef: float = 0.0,
) -> PolicyLossOptions:
    """OpenRLHF (August 2026) ``PolicyLoss`` with the KL and entropy terms of its PPO actor.

    Written from its source; its package needs deepspeed to import, so parity is tested against a
    transcription of the published formulas.

    Args:
        policy_loss_type: "ppo" or "gspo".
        clip_eps_low: Lower clip range.
        clip_eps_high: Upper clip range.
        dual_clip: Bound c > 1 for negative advantages.
        token_level_loss: Token mean; False: mean of sequence means (always so for gspo).
        use_kl_loss: Whether there is a KL term (pass no `ref_logprobs` otherwise).
        kl_coef: Its weight.
        kl_estimator: "k1", "k2" or "k3".
        entropy_loss_coef: Weight of the entropy bonus (a token mean, like the KL).

    Returns:
        Options of :func:`oneshot.ops.policy_loss`.
    """
    gspo = _one_of("policy_loss_type", policy_loss_type, ("ppo", "gspo"), "OpenRLHF") == "gspo"
    arguments: dict[str, Any] = {
        "objective": "ppo",
        "ratio": "sequence" if gspo else "token",
        "clip_low": clip_eps_low,
        "clip_high": clip_eps_high,
        "dual_clip": dual_clip,
        "log_ratio_clamp": None if gspo else 20.0,
        "aggregate": "token-mean" if token_level_loss and not gspo else "seq-mean-token-mean",
        "entropy_coef": entropy_loss_coef,
        "entropy_aggregate": "token-mean",
    }
    if not use_kl_loss:
        return PolicyLossOptions(**arguments, kl="none")
    estimator: Any = _one_of("kl_estimator", kl_estimator, ("k1", "k2", "k3"), "OpenRLHF")
    return PolicyLossOptions(
        **arguments, kl=estimator, kl_coef=kl_coef, kl_clamp=10.0, kl_aggregate="token-mean"
    )


# Every KL estimate is held within 10, as in the released code of `paper`.
PRESETS: dict[str, PolicyLossOptions] = {
    # The released code of Wang et al. 2025 (arXiv:2504.20571).
    "paper": paper(),
    # PPO, otherwise as the released code of Wang et al. 2025: the paper prints no more about it.
    "ppo": paper(),
    # DeepSeekMath (arXiv:2402.03300), equation 3 and section 4.1.2.
    "grpo": PolicyLossOptions(objective="grpo", kl_coef=0.04, kl_clamp=10.0),
    # Liu et al. 2025 (arXiv:2503.20783), section 3.2.
    "dr_grpo": PolicyLossOptions(objective="dr_grpo", kl_clamp=10.0),
    # Yu et al. 2025 (arXiv:2503.14476), sections 3.1 to 3.4.
    "dapo": PolicyLossOptions(objective="dapo", kl_clamp=10.0),
    # Zheng et al. 2025 (arXiv:2507.18071), equations 5 and 7, section 5.1.
    "gspo": PolicyLossOptions(objective="gspo", kl_clamp=10.0),
    # MiniMax 2025 (arXiv:2506.13585), equations 4 and 5.
    "cispo": PolicyLossOptions(objective="cispo", kl_clamp=10.0),
    # Ahmadian et al. 2024 (arXiv:2402.14740): log p of the whole response.
    "rloo": PolicyLossOptions(
        objective="reinforce", aggregate="seq-mean-token-sum", kl="k1", kl_clamp=10.0
    ),
    # Gao et al. 2025 (arXiv:2511.20347).
    "sapo": PolicyLossOptions(objective="sapo", kl_clamp=10.0),
    # VESPO 2026 (arXiv:2602.10693); the bounds of the log-ratio are those of its released code.
    "vespo": PolicyLossOptions(
        objective="vespo", log_ratio_clamp=(math.log(1e-8), 20.0), kl_clamp=10.0
    ),
    # Zhao et al. 2025 (arXiv:2507.20673).
    "gmpo": PolicyLossOptions(objective="gmpo", kl_clamp=10.0),
    "trl": trl(),
    "liger": liger(),
    "verl": verl(),
    "openrlhf": openrlhf(),
}
