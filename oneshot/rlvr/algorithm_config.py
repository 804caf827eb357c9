"""Configuration of the algorithm: credit, policy loss, correction of the sampler, critic, AdamW.

The defaults are GRPO as the code released with Wang et al. 2025 (arXiv:2504.20571) runs it;
`presets.py` holds other published choices. This module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from oneshot.training.config import check_types, require


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a constant learning rate."""

    lr: float = 1e-6
    """Learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from lr / warmup_steps."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.lr >= 0, "optimizer.lr", ">= 0", self.lr)
        require(self.weight_decay >= 0, "optimizer.weight_decay", ">= 0", self.weight_decay)
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", "> 0", self.max_grad_norm)
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", ">= 0", self.warmup_steps)


@dataclass(frozen=True)
class CorrectionConfig:
    """Importance weights p_trainer / p_sampler, for an engine whose log-probs differ."""

    level: Literal["none", "token", "sequence"] = "none"
    """One weight per token, or one per response (the product); "none": no correction."""
    mode: Literal["truncate", "mask"] = "truncate"
    """Weights outside [low, high] are held at the bound, or replaced by 0."""
    low: float = 0.0
    """Lower threshold."""
    high: float = 2.0
    """Upper threshold."""
    normalize: bool = False
    """Divide the weights by their mean."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.low >= 0, "algorithm.correction.low", ">= 0", self.low)
        require(self.high >= self.low, "algorithm.correction.high", "at least low", self.high)


@dataclass(frozen=True)
class AlgorithmConfig:
    """Loss = policy_coef * policy - entropy_coef * entropy + kl_coef * KL."""

    advantage: Literal["group", "gae"] = "group"
    """"group": against the other responses to the prompt (GRPO); "gae": from a critic (PPO)."""
    baseline: Literal["mean", "loo", "none", "opo"] = "mean"
    """Of the group: its mean, the mean of the others (RLOO), 0, or the length-weighted mean."""
    scale_by_std: bool = True
    """Divide the advantage by the standard deviation of the group (ddof 1)."""
    advantage_eps: float = 1e-6
    """Added to that standard deviation."""
    policy_coef: float = 1.0
    """Weight of the policy-gradient term; 0 leaves only the regularizers."""
    surrogate: Literal["clip", "cispo", "reinforce"] = "clip"
    """PPO's clipped ratio, CISPO's clipped weight of log p, or plain log p."""
    ratio: Literal["token", "sequence", "sequence-token"] = "token"
    """Ratio of the token, or the geometric mean of the response's (GSPO; GSPO-token)."""
    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low. Never active when updates_per_rollout is 1."""
    clip_high: float = 0.2
    """The ratio is clipped at 1 + clip_high (DAPO's clip-higher: 0.28)."""
    dual_clip: float | None = None
    """Bound c > 1 of the loss, -c A, where the advantage is negative; none by default."""
    aggregate: Literal[
        "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
    ] = "token-mean"
    """How tokens become one number, for all three terms; "...-norm" divides by max_new_tokens."""
    entropy_coef: float = 0.001
    """Weight of the entropy bonus (positive: more entropy)."""
    kl_coef: float = 0.001
    """Weight of the KL to the reference; 0 loads no reference model."""
    kl: Literal["k1", "k2", "k3", "abs"] = "k3"
    """Estimator of the KL; as a loss it is clamped to [-10, 10] per token (released code)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """A term of the loss, or a penalty per token in the reward (where k1 is usual)."""
    dynamic_sampling_rounds: int = 0
    """Rounds in which groups whose scores are all equal are sampled again, with other prompts
    (DAPO's dynamic sampling); 0: none."""
    mask_truncated: bool = False
    """Leave responses cut at the length limit out of the loss (DAPO's overlong filtering)."""
    overlong_buffer: float = 0.0
    """Share of rollout.max_new_tokens, at its end, in which the score falls linearly by
    overlong_penalty (DAPO's soft overlong punishment: 0.2); 0: none."""
    overlong_penalty: float = 1.0
    """What a response at the length limit loses."""
    updates_per_rollout: int = 1
    """Optimizer steps per rollout, each on its own share of the sequences. The released code does
    1 where the paper's text says 8."""
    microbatch_tokens: int = 24_000
    """Padded tokens (prompt and response) per forward and backward pass."""
    microbatch_weighting: Literal["exact", "sequences"] = "exact"
    """"exact": the aggregate of the whole update, whatever the micro-batches; "sequences":
    aggregate inside a micro-batch and weight by its sequences, as in the released code."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    """Correction of an engine whose log-probs differ from the trainer's."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("policy_coef", "kl_coef", "clip_low", "advantage_eps", "overlong_penalty"):
            require(getattr(self, name) >= 0, f"algorithm.{name}", ">= 0", getattr(self, name))
        rounds = self.dynamic_sampling_rounds
        require(rounds >= 0, "algorithm.dynamic_sampling_rounds", ">= 0", rounds)
        require(
            rounds == 0 or self.advantage == "group",
            "algorithm.dynamic_sampling_rounds",
            '0 unless algorithm.advantage is "group" (a critic learns from every group)',
            rounds,
        )
        share = self.overlong_buffer
        require(0 <= share <= 1, "algorithm.overlong_buffer", "in [0, 1]", share)
        require(self.clip_high > 0, "algorithm.clip_high", "> 0", self.clip_high)
        dual = self.dual_clip
        require(dual is None or dual > 1, "algorithm.dual_clip", "above 1", dual)
        require(
            self.surrogate == "clip" or dual is None,
            "algorithm.dual_clip",
            'unset unless algorithm.surrogate is "clip"',
            dual,
        )
        updates = self.updates_per_rollout
        require(updates > 0, "algorithm.updates_per_rollout", "a positive number", updates)
        tokens = self.microbatch_tokens
        require(tokens > 0, "algorithm.microbatch_tokens", "a positive number", tokens)


@dataclass(frozen=True)
class CriticConfig:
    """The value model of PPO: a trunk of its own with a linear head; used when advantage is "gae".

    It shares nothing with the policy. The head starts at zero, so the first values are 0.
    """

    source: str | None = None
    """Source of its trunk; by default the untrained policy."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 1.0
    """Decay of the estimator: 1 is return minus value, 0 the one-step error."""
    whiten: bool = True
    """Advantages to mean 0 and variance 1 over all response tokens of the rollout."""
    value_clip: float | None = 0.5
    """Range around the old value in which the new one is judged; null: no clipping."""
    warmup_steps: int = 0
    """Rollout steps at the start in which only the critic learns."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    """AdamW of the critic."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("gamma", "lam"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"critic.{name}", "in [0, 1]", value)
        clip = self.value_clip
        require(clip is None or clip > 0, "critic.value_clip", "> 0", clip)
        require(self.warmup_steps >= 0, "critic.warmup_steps", ">= 0", self.warmup_steps)
