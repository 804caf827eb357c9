"""Options of the policy loss: published objectives as switches, and names checked into numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oneshot.ops._checks import check_same_device
from oneshot.ops._numbers import as_tensor, number, refuse_gradient
from oneshot.reference.policy_loss import Aggregate, Kl, PolicyOptions, Ratio, Surrogate


class Objective(NamedTuple):
    """A published objective as a choice of primitive switches, each of which can be overridden."""

    surrogate: Surrogate
    ratio: str
    clip_low: float
    clip_high: float
    aggregate: str


OBJECTIVES = {
    # Schulman et al. 2017, arXiv 1707.06347, eq. 7
    "ppo": Objective(Surrogate.CLIP, "token", 0.2, 0.2, "token-mean"),
    # Shao et al. 2024 (DeepSeekMath), arXiv 2402.03300, eq. 3
    "grpo": Objective(Surrogate.CLIP, "token", 0.2, 0.2, "seq-mean-token-mean"),
    # Yu et al. 2025, arXiv 2503.14476, eq. 8 and section 3.1 (clip-higher)
    "dapo": Objective(Surrogate.CLIP, "token", 0.2, 0.28, "token-mean"),
    # Liu et al. 2025 (Understanding R1-Zero), arXiv 2503.20783, section 3.2
    "dr_grpo": Objective(Surrogate.CLIP, "token", 0.2, 0.2, "seq-mean-token-sum-norm"),
    # Zheng et al. 2025, arXiv 2507.18071, eq. 5 and 7; clip range of section 5.1
    "gspo": Objective(Surrogate.CLIP, "sequence", 3e-4, 4e-4, "seq-mean-token-mean"),
    # MiniMax 2025 (M1), arXiv 2506.13585, eq. 4 and 5: no lower bound; the paper does not print its
    # upper bound, 5.0 as a ratio is the value TRL recommends
    "cispo": Objective(Surrogate.CISPO, "token", math.inf, 4.0, "token-mean"),
    # Williams 1992; the ratio plays no part
    "reinforce": Objective(Surrogate.REINFORCE, "token", math.inf, math.inf, "token-mean"),
}

RATIOS = {
    "token": Ratio.TOKEN,
    "sequence": Ratio.SEQUENCE,
    "sequence-token": Ratio.SEQUENCE_TOKEN,
}
KL_ESTIMATORS = {
    "none": Kl.NONE,
    "k1": Kl.K1,
    "k2": Kl.K2,
    "k3": Kl.K3,
    "abs": Kl.ABS,
    "k1+": Kl.K1_PLUS,
    "k3+": Kl.K3_PLUS,
    "abs+": Kl.ABS_PLUS,
}
AGGREGATES = {
    "token-mean": Aggregate.TOKEN_MEAN,
    "token-sum": Aggregate.TOKEN_SUM,
    "seq-mean-token-mean": Aggregate.SEQ_MEAN_TOKEN_MEAN,
    "seq-mean-token-sum": Aggregate.SEQ_MEAN_TOKEN_SUM,
    "seq-mean-token-sum-norm": Aggregate.SEQ_MEAN_TOKEN_SUM_NORM,
}


def _choice(name: str, value: str, table: dict[str, Any]) -> Any:
    if value not in table:
        raise ValueError(f"{name} must be one of {', '.join(table)}, got {value!r}")
    return table[value]


def _at_least(name: str, value: float, bound: float) -> float:
    if not value >= bound:
        raise ValueError(f"{name} must be at least {bound:g}, got {value}")
    return number(name, value)


def _clip_range(low: float, high: float) -> tuple[float, float]:
    checked = _at_least("clip_low", low, 0), _at_least("clip_high", high, -1)
    if high < -low:
        raise ValueError(
            f"the clip range is empty: 1 + clip_high must not lie below 1 - clip_low, "
            f"got clip_low={low}, clip_high={high}"
        )
    return checked


def bounds(name: str, clamp: float | tuple[float, float] | None) -> tuple[float, float]:
    """A symmetric bound, a (low, high) pair or None, as a (low, high) pair."""
    if clamp is None:
        return -math.inf, math.inf
    low, high = clamp if isinstance(clamp, tuple) else (-clamp, clamp)
    if not low < high:
        raise ValueError(f"{name} must be positive or a (low, high) pair, got {clamp}")
    high = number(name, high)
    return number(name, low) if isinstance(clamp, tuple) else -high, high


class Normalizer(NamedTuple):
    """A checked aggregation: the mode, its count override and its divisor."""

    aggregate: int
    override: float | Tensor | None  # of the count
    max_length: int

    def count_tensor(self, like: Tensor) -> Tensor | None:
        """The override as the 0-dim tensor that ops take."""
        if self.override is None:
            return None
        if isinstance(self.override, Tensor):
            check_same_device("the count", self.override, "the input", like)
            return self.override.detach()
        if torch.compiler.is_compiling():
            return as_tensor(self.override).to(like.device)
        return torch.tensor(float(self.override), dtype=torch.float64, device=like.device)


def resolve_normalizer(
    aggregate: str,
    token_count: float | Tensor | None,
    sequence_count: float | Tensor | None,
    max_length: int | None,
    width: int | None,
) -> Normalizer:
    """Check an aggregation and its overrides; refuse an override that the mode would ignore.

    ``width`` is T of the padded layout, None for packed.
    """
    mode = _choice("aggregate", aggregate, AGGREGATES)
    if token_count is not None and mode != Aggregate.TOKEN_MEAN:
        raise ValueError(f"token_count belongs to aggregate='token-mean', not to {aggregate!r}")
    if sequence_count is not None and mode in (Aggregate.TOKEN_MEAN, Aggregate.TOKEN_SUM):
        raise ValueError(f"sequence_count belongs to the seq-mean-* modes, not to {aggregate!r}")
    length = 1
    if mode == Aggregate.SEQ_MEAN_TOKEN_SUM_NORM:
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        if max_length is None and width is None:
            raise ValueError("seq-mean-token-sum-norm needs max_length when the layout is packed")
        length = width if max_length is None else max_length  # type: ignore[assignment]
    elif max_length is not None:
        raise ValueError(
            f"max_length belongs to aggregate='seq-mean-token-sum-norm', not to {aggregate!r}"
        )
    count = sequence_count if token_count is None else token_count
    name = "sequence_count" if token_count is None else "token_count"
    if isinstance(count, Tensor):
        refuse_gradient(name, count)
        if count.dim() != 0:
            raise ValueError(f"{name} must be a number or a 0-dim tensor, got {list(count.shape)}")
    elif count is not None and not count > 0:
        raise ValueError(f"{name} must be positive, got {count}")
    return Normalizer(mode.value, count, length)


def resolve_options(
    width: int | None,
    with_ref: bool,
    with_entropy: bool,
    *,
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
) -> tuple[PolicyOptions, Normalizer]:
    """Names to numbers, with every check that needs no tensor. Arguments: :func:`policy_loss`."""
    if entropy_coef != 0 and not with_entropy:
        raise ValueError(f"entropy_coef = {entropy_coef} needs entropy, got None")
    estimator = _choice("kl", kl, KL_ESTIMATORS)
    if kl_coef != 0 and (not with_ref or estimator == Kl.NONE):
        raise ValueError(f"kl_coef = {kl_coef} needs ref_logprobs and an estimator, got kl={kl!r}")
    if with_ref and estimator == Kl.NONE:
        raise ValueError("kl='none' takes no ref_logprobs")
    chosen: Objective = _choice("objective", objective, OBJECTIVES)
    low, high = bounds("log_ratio_clamp", log_ratio_clamp)
    mode = chosen.aggregate if aggregate is None else aggregate
    normalizer = resolve_normalizer(mode, token_count, sequence_count, max_length, width)
    clip_low, clip_high = _clip_range(
        chosen.clip_low if clip_low is None else clip_low,
        chosen.clip_high if clip_high is None else clip_high,
    )
    options = PolicyOptions(
        surrogate=chosen.surrogate.value,
        ratio=_choice("ratio", chosen.ratio if ratio is None else ratio, RATIOS).value,
        clip_min=1 - clip_low,
        clip_max=1 + clip_high,
        dual_clip=math.inf if dual_clip is None else _at_least("dual_clip", dual_clip, 1),
        delta=math.inf if delta is None else _at_least("delta", delta, 1),
        log_ratio_min=low,
        log_ratio_max=high,
        kl=estimator.value,
        kl_importance_weighted=kl_importance_weighted,
        kl_log_ratio_clamp=bounds("kl_log_ratio_clamp", kl_log_ratio_clamp)[1],
        kl_clamp=bounds("kl_clamp", kl_clamp)[1],
        policy_coef=number("policy_coef", policy_coef),
        kl_coef=number("kl_coef", kl_coef),
        entropy_coef=number("entropy_coef", entropy_coef),
        aggregate=normalizer.aggregate,
        kl_aggregate=_own_aggregate("kl_aggregate", kl_aggregate, mode),
        entropy_aggregate=_own_aggregate("entropy_aggregate", entropy_aggregate, mode),
        count_empty=count_empty,
        max_length=normalizer.max_length,
    )
    return options, normalizer


def _own_aggregate(name: str, value: str | None, mode: str) -> int:
    """-1 for "like the policy term"; else the mode, which must not need a length of its own."""
    if value is None:
        return -1
    chosen = _choice(name, value, AGGREGATES)
    if chosen == Aggregate.SEQ_MEAN_TOKEN_SUM_NORM and value != mode:
        raise ValueError(f"{name}={value!r} needs aggregate={value!r}, got {mode!r}")
    return chosen.value
