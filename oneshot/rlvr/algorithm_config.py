"""Configuration of the algorithm: credit, policy loss, correction of the sampler, critic, AdamW.

The defaults are GRPO as the code released with Wang et al. 2025 (arXiv:2504.20571) runs it;
`presets.py` holds other published choices. This module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from oneshot.policy_options import PolicyLossOptions
from oneshot.policy_presets import PRESETS
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
    """Credit, policy loss, and how a rollout becomes optimizer steps."""

    advantage: Literal["group", "gae"] = "group"
    """"group": against the other responses to the prompt (GRPO); "gae": from a critic (PPO)."""
    baseline: Literal["mean", "loo", "none", "opo"] = "mean"
    """Of the group: its mean, the mean of the others (RLOO), 0, or the length-weighted mean."""
    scale: Literal["std", "none"] = "std"
    """"std": divide the advantage by the standard deviation of the group (ddof 1)."""
    advantage_eps: float = 1e-6
    """Added to that standard deviation."""
    loss: PolicyLossOptions = field(default_factory=lambda: PRESETS["paper"])
    """Options of `oneshot.ops.policy_loss`; by default those of the released code. The trainer
    counts tokens and sequences itself, and `max_length` is rollout.max_new_tokens."""
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
    """Padded tokens (prompts and responses) per forward and backward pass."""
    share_prompts: Literal["auto", "off"] = "auto"
    """"auto": passes read a prompt once for all of its responses in a micro-batch, if a comparison
    before the run shows that the model can; such a prompt counts once in microbatch_tokens. "off":
    every response is read with its whole prompt."""
    fuse_head: Literal["auto", "off"] = "auto"
    """"auto": log-probs and entropy come from hidden states and the weight of the head, without
    logits in memory, if the model has a plain head. "off": from logits."""
    microbatch_weighting: Literal["exact", "sequences"] = "exact"
    """"exact": the aggregate of the whole update, whatever the micro-batches; "sequences":
    aggregate inside a micro-batch and weight by its sequences, as in the released code."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    """Correction of an engine whose log-probs differ from the trainer's."""

    def __post_init__(self) -> None:
        check_types(self)
        self._check_loss()
        for name in ("advantage_eps", "overlong_penalty"):
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
        updates = self.updates_per_rollout
        require(updates > 0, "algorithm.updates_per_rollout", "a positive number", updates)
        tokens = self.microbatch_tokens
        require(tokens > 0, "algorithm.microbatch_tokens", "a positive number", tokens)

    def _check_loss(self) -> None:
        """What the trainer asks of the loss beyond what the op does."""
        loss = self.loss
        check_types(loss)
        for name in ("policy_coef", "kl_coef"):
            value = getattr(loss, name)
            require(value >= 0, f"algorithm.loss.{name}", ">= 0", value)
        kl = f'"none" only where algorithm.loss.kl_coef is 0, which is {loss.kl_coef}'
        require(loss.kl != "none" or loss.kl_coef == 0, "algorithm.loss.kl", kl, loss.kl)
        for name in ("token_count", "sequence_count", "max_length"):
            value = getattr(loss, name)
            require(value is None, f"algorithm.loss.{name}", "null: the trainer counts", value)
        whole = loss.resolved().aggregate
        for name in ("kl_aggregate", "entropy_aggregate"):
            value = getattr(loss, name)
            same = f"null or {whole!r} like the policy term, by which micro-batches are weighted"
            require(value in (None, whole), f"algorithm.loss.{name}", same, value)


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
