"""Options of the policy loss: every name, order, default, choice and explanation stands here.

`PolicyLossOptions` is what users and configs set. `KernelOptions` is the same as the numbers that
kernels take; `csrc/policy_loss/options.h` is generated from it. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple, TypeVar, get_type_hints


class Surrogate(IntEnum):
    """What a token contributes to the policy term (r = ratio, A = advantage)."""

    CLIP = 0  # -min(r A, clip(r) A)
    CISPO = 1  # -stop_gradient(clip(r)) A log p
    REINFORCE = 2  # -A log p
    SAPO = 3  # -A times a sigmoid of r instead of clip(r)
    VESPO = 4  # -stop_gradient(phi(r)) A log p, with a gamma density phi
    GMPO = 5  # -A r, where r is the geometric mean of the clipped ratios of the sequence


class RatioLevel(IntEnum):
    """Which probability ratio of new to old policy a token uses."""

    TOKEN = 0  # its own
    SEQUENCE = 1  # geometric mean over its sequence, gradient to every token of the sequence
    SEQUENCE_TOKEN = 2  # the same value, gradient to the token itself only
    SEQUENCE_PRODUCT = 3  # product over its sequence, gradient to every token of the sequence


class KlEstimator(IntEnum):
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

    AS_POLICY = -1  # of the KL and entropy terms: like the policy term, with its counts
    TOKEN_MEAN = 0
    TOKEN_SUM = 1
    SEQ_MEAN_TOKEN_MEAN = 2
    SEQ_MEAN_TOKEN_SUM = 3
    SEQ_MEAN_TOKEN_SUM_NORM = 4


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
    # Gao et al. 2025, arXiv 2511.20347
    "sapo": Objective(Surrogate.SAPO, "token", math.inf, math.inf, "seq-mean-token-mean"),
    # VESPO 2026, arXiv 2602.10693
    "vespo": Objective(Surrogate.VESPO, "sequence-product", math.inf, math.inf, "token-mean"),
    # Zhao et al. 2025, arXiv 2507.20673: ratios of tokens within [exp(-0.4), exp(0.4)]
    "gmpo": Objective(
        Surrogate.GMPO, "sequence", -math.expm1(-0.4), math.expm1(0.4), "seq-mean-token-mean"
    ),
}

ObjectiveName = Literal[
    "ppo", "grpo", "dapo", "dr_grpo", "gspo", "cispo", "reinforce", "sapo", "vespo", "gmpo"
]
RatioName = Literal["token", "sequence", "sequence-token", "sequence-product"]
KlName = Literal["none", "k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"]
AggregateName = Literal[
    "token-mean",
    "token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
]

Choice = TypeVar("Choice", bound=IntEnum)


def _names(choices: type[Choice]) -> dict[str, Choice]:
    """K1_PLUS under the name "k1+", TOKEN_MEAN under "token-mean"."""
    return {
        member.name.lower().replace("_plus", "+").replace("_", "-"): member
        for member in choices
        if member >= 0
    }


RATIOS = _names(RatioLevel)
KL_ESTIMATORS = _names(KlEstimator)
AGGREGATES = _names(Aggregate)


@dataclass(frozen=True)
class PolicyLossOptions:
    """Loss = policy_coef * policy - entropy_coef * entropy + kl_coef * KL."""

    objective: ObjectiveName = "ppo"
    """Named choice of surrogate, ratio, clip range and aggregation (`OBJECTIVES`). Each of the next
    three options, and `aggregate`, overrides its part."""
    ratio: RatioName | None = None
    """"token"; "sequence": geometric mean over the sequence (GSPO); "sequence-token": the same
    value, with gradient to the token itself only (GSPO-token); "sequence-product": product over the
    sequence. Default: the objective's."""
    clip_low: float | None = None
    """The ratio is clipped at 1 - clip_low; .inf: no lower bound. Default: the objective's."""
    clip_high: float | None = None
    """The ratio is clipped at 1 + clip_high; .inf: no upper bound. Default: the objective's."""
    dual_clip: float | None = None
    """Bound c > 1 of the loss, -c A, where the advantage is negative; none by default."""
    delta: float | None = None
    """Upper bound of the unclipped ratio (two-sided clipping), for negative advantages."""
    sapo_temperature_pos: float = 1.0
    """Steepness of SAPO's sigmoid where the advantage is positive."""
    sapo_temperature_neg: float = 1.05
    """Steepness of SAPO's sigmoid where the advantage is negative."""
    vespo_k_pos: float = 2.0
    """VESPO's weight is r^k exp(lambda (1 - r)); this k where the advantage is positive."""
    vespo_lambda_pos: float = 3.0
    """VESPO's lambda where the advantage is positive."""
    vespo_k_neg: float = 3.0
    """VESPO's k where the advantage is negative."""
    vespo_lambda_neg: float = 2.0
    """VESPO's lambda where the advantage is negative."""
    log_ratio_clamp: float | tuple[float, float] | None = None
    """Bounds of the log-ratio before exp, symmetric or (low, high); no gradient beyond them."""
    kl: KlName = "k3"
    """Estimator of KL(policy, reference) of each token, with d = log-ratio policy to reference:
    "k1" d, "k2" d^2/2, "k3" exp(-d) - 1 + d, "abs" abs(d); "k1+", "k3+", "abs+" have that value and
    the gradient of k2; "none" takes no reference."""
    kl_coef: float = 0.0
    """Weight of the KL term. With 0 the KL is only reported."""
    kl_importance_weighted: bool = False
    """Multiply the KL estimate by the (unclipped) ratio, gradient included."""
    kl_log_ratio_clamp: float | None = None
    """Symmetric bound of d inside the KL estimator; none by default."""
    kl_clamp: float | None = None
    """Symmetric bound of the KL estimate; none by default."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus (positive: more entropy)."""
    policy_coef: float = 1.0
    """Weight of the policy term; 0 leaves only the regularizers."""
    aggregate: AggregateName | None = None
    """How tokens become one number, for all three terms; "...-norm" divides by `max_length`.
    Default: the objective's."""
    kl_aggregate: AggregateName | None = None
    """Another aggregation for the KL term; the counts below do not apply to it."""
    entropy_aggregate: AggregateName | None = None
    """Another aggregation for the entropy; the counts below do not apply to it."""
    token_count: float | None = None
    """Replaces the number of tokens of this batch in "token-mean", e.g. by that of the global batch
    divided by the number of ranks. A number, or in Python a 0-dim tensor."""
    sequence_count: float | None = None
    """Replaces the number of sequences in the "seq-mean" modes. A number or a 0-dim tensor."""
    max_length: int | None = None
    """Divisor of "seq-mean-token-sum-norm"; default: the padded width (needed when packed)."""
    count_empty: bool = False
    """Whether sequences without a token that counts are part of the mean over sequences (TRL,
    Liger) or not (verl, OpenRLHF)."""

    def __post_init__(self) -> None:
        check_options(vars(self))

    def resolved(self) -> PolicyLossOptions:
        """The same with the objective's own parts where an option is None."""
        return dataclasses.replace(self, **objective_parts(vars(self)))

    def divides_by_length(self) -> bool:
        """Whether the aggregation divides by `max_length`."""
        aggregate = self.resolved().aggregate
        return aggregate is not None and AGGREGATES[aggregate] == Aggregate.SEQ_MEAN_TOKEN_SUM_NORM


DEFAULTS: dict[str, Any] = {x.name: x.default for x in dataclasses.fields(PolicyLossOptions)}


def merged(options: PolicyLossOptions | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """All options by name: those of `options` (or the defaults), with `changes`.

    Raises:
        TypeError: An unknown name.
    """
    for name in changes:
        if name not in DEFAULTS:
            raise TypeError(f"policy_loss has no option {name!r}; it has {', '.join(DEFAULTS)}")
    if options is None:
        return {**DEFAULTS, **changes}
    return {**{name: getattr(options, name) for name in DEFAULTS}, **changes}


def choice(name: str, value: Any, table: Mapping[str, Any]) -> Any:
    """The entry of a table, or ValueError with the names that it has."""
    if value not in table:
        raise ValueError(f"{name} must be one of {', '.join(table)}, got {value!r}")
    return table[value]


def objective_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Ratio, clip range and aggregation: the option, or the objective's part where it is None."""
    chosen: Objective = choice("objective", options["objective"], OBJECTIVES)
    return {
        name: getattr(chosen, name) if options[name] is None else options[name]
        for name in ("ratio", "clip_low", "clip_high", "aggregate")
    }


def bounds(name: str, clamp: float | tuple[float, float] | None) -> tuple[float, float]:
    """A symmetric bound, a (low, high) pair or None, as a (low, high) pair."""
    if clamp is None:
        return -math.inf, math.inf
    low, high = clamp if isinstance(clamp, tuple | list) else (-clamp, clamp)
    if not low < high:
        raise ValueError(f"{name} must be positive or a (low, high) pair, got {clamp}")
    return low, high


def _at_least(name: str, value: Any, bound: float) -> None:
    if value is not None and not value >= bound:
        raise ValueError(f"{name} must be at least {bound:g}, got {value}")


def check_options(options: Mapping[str, Any]) -> None:
    """Every check that needs no tensor.

    Raises:
        ValueError: An unknown name or a number out of range, alone or beside another option.
    """
    parts = objective_parts(options)
    choice("kl", options["kl"], KL_ESTIMATORS)
    choice("ratio", parts["ratio"], RATIOS)
    low, high = parts["clip_low"], parts["clip_high"]
    _at_least("clip_low", low, 0)
    _at_least("clip_high", high, -1)
    if high < -low:
        raise ValueError(
            f"the clip range is empty: 1 + clip_high must not lie below 1 - clip_low, "
            f"got clip_low={low}, clip_high={high}"
        )
    surrogate = OBJECTIVES[options["objective"]].surrogate
    for name in ("dual_clip", "delta"):
        _at_least(name, options[name], 1)
        if options[name] is not None and surrogate != Surrogate.CLIP:
            raise ValueError(
                f"{name} belongs to the clipped surrogate, not to "
                f"objective={options['objective']!r}: leave it None"
            )
    if surrogate == Surrogate.GMPO and parts["ratio"] != "sequence":
        raise ValueError(f"objective='gmpo' needs ratio='sequence', got {parts['ratio']!r}")
    for name in (
        "sapo_temperature_pos", "sapo_temperature_neg", "vespo_lambda_pos", "vespo_lambda_neg"
    ):  # fmt: skip
        if not options[name] > 0:
            raise ValueError(f"{name} must be positive, got {options[name]}")
    _at_least("vespo_k_pos", options["vespo_k_pos"], 0)
    _at_least("vespo_k_neg", options["vespo_k_neg"], 0)
    for name in ("log_ratio_clamp", "kl_log_ratio_clamp", "kl_clamp"):
        bounds(name, options[name])
    mode = parts["aggregate"]
    check_aggregate(mode, options["token_count"], options["sequence_count"], options["max_length"])
    for name in ("kl_aggregate", "entropy_aggregate"):
        own = options[name]
        if own is None:
            continue
        if choice(name, own, AGGREGATES) == Aggregate.SEQ_MEAN_TOKEN_SUM_NORM and own != mode:
            raise ValueError(f"{name}={own!r} needs aggregate={own!r}, got {mode!r}")


def check_aggregate(
    aggregate: str, token_count: Any, sequence_count: Any, max_length: int | None
) -> Aggregate:
    """The mode by name; refuse an override of its counts that it would ignore."""
    mode: Aggregate = choice("aggregate", aggregate, AGGREGATES)
    if token_count is not None and mode != Aggregate.TOKEN_MEAN:
        raise ValueError(f"token_count belongs to aggregate='token-mean', not to {aggregate!r}")
    if sequence_count is not None and mode in (Aggregate.TOKEN_MEAN, Aggregate.TOKEN_SUM):
        raise ValueError(f"sequence_count belongs to the seq-mean-* modes, not to {aggregate!r}")
    if max_length is not None:
        if mode != Aggregate.SEQ_MEAN_TOKEN_SUM_NORM:
            raise ValueError(
                f"max_length belongs to aggregate='seq-mean-token-sum-norm', not to {aggregate!r}"
            )
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
    return mode


class KernelOptions(NamedTuple):
    """The options as numbers, in the order in which kernels take them. No bound = infinity.

    The last field travels as an integer of its own; the others are one list of floats.
    """

    surrogate: Surrogate = Surrogate.CLIP
    ratio: RatioLevel = RatioLevel.TOKEN
    clip_min: float = 0.8
    clip_max: float = 1.2
    dual_clip: float = math.inf
    delta: float = math.inf
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    log_ratio_min: float = -math.inf
    log_ratio_max: float = math.inf
    kl: KlEstimator = KlEstimator.K3
    kl_importance_weighted: bool = False
    kl_log_ratio_clamp: float = math.inf
    kl_clamp: float = math.inf
    policy_coef: float = 1.0
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    aggregate: Aggregate = Aggregate.TOKEN_MEAN
    kl_aggregate: Aggregate = Aggregate.AS_POLICY
    entropy_aggregate: Aggregate = Aggregate.AS_POLICY
    count_empty: bool = False
    max_length: int = 1

    def packed(self) -> list[float]:
        """The list of floats."""
        return [float(x) for x in self[:-1]]

    @classmethod
    def option(cls, numbers: Sequence[float], name: str) -> float:
        """One option of `packed`, by name."""
        return numbers[cls._fields.index(name)]

    @classmethod
    def unpacked(cls, numbers: Sequence[float], max_length: int = 1) -> KernelOptions:
        """The options back from `packed`.

        Raises:
            ValueError: A list of another length, or a number that is no member of its enum.
        """
        if len(numbers) != len(KINDS) - 1:
            raise ValueError(f"options must be {len(KINDS) - 1} numbers, got {len(numbers)}")
        fields = zip(KINDS.items(), numbers, strict=False)  # max_length is not among the numbers
        return cls(**{name: kind(x) for (name, kind), x in fields}, max_length=max_length)


KINDS: dict[str, Any] = get_type_hints(KernelOptions)

# The options that kernels take as they are.
SHARED_NUMBERS = tuple(name for name in KINDS if type(DEFAULTS.get(name)) is float)
