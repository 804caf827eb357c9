"""From the scores of a rollout to advantages: a dataclass in, a dataclass out, one function each.

`group_credit` compares a response with the others to its prompt (GRPO, RLOO, Dr.GRPO);
`gae_credit` compares each token's return with what a critic expected (PPO).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from oneshot import ops
from oneshot.ops.policy_loss import kl_estimates
from oneshot.rlvr.algorithm_config import AlgorithmConfig, CriticConfig
from oneshot.training.distributed import Processes


@dataclass(frozen=True)
class CreditInputs:
    """What is known of N responses of up to R tokens.

    Attributes:
        scores: [N] float32, what the reward function said, after length penalties.
        mask: [N, R] bool, response tokens.
        group_size: Responses per prompt.
        old_logprobs: [N, R] of the policy that sampled; needed for a KL in the reward.
        ref_logprobs: [N, R] of the reference; None: no KL in the reward.
        values: [N, R] of the critic; None without one.
    """

    scores: Tensor
    mask: Tensor
    group_size: int
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class Credit:
    """Advantages [N] or [N, R], the critic's targets [N, R] if there is one, and metrics."""

    advantages: Tensor
    returns: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def credit(
    inputs: CreditInputs,
    algorithm: AlgorithmConfig,
    critic: CriticConfig,
    processes: Processes | None = None,
) -> Credit:
    """The credit that the config asks for; metrics are of this process's responses."""
    if algorithm.advantage == "gae":
        return gae_credit(inputs, algorithm, critic, processes or Processes())
    return group_credit(inputs, algorithm)


def group_credit(inputs: CreditInputs, algorithm: AlgorithmConfig) -> Credit:
    """One advantage a response, against its group. A KL in the reward is summed over tokens."""
    penalty = kl_penalty(inputs, algorithm)
    scores, metrics = inputs.scores, {}
    if penalty is not None:
        scores = scores - penalty.sum(1)
        metrics["reward/kl_penalty"] = float(penalty.sum(1).mean())
    advantages = ops.group_advantages(
        scores,
        inputs.group_size,
        baseline=algorithm.baseline,
        lengths=inputs.mask.sum(1) if algorithm.baseline == "opo" else None,
        scale=algorithm.scale,
        eps=algorithm.advantage_eps,
    )
    return Credit(advantages, None, metrics)


def gae_credit(
    inputs: CreditInputs,
    algorithm: AlgorithmConfig,
    critic: CriticConfig,
    processes: Processes,
) -> Credit:
    """One advantage a token: the score is the reward of the last token, the critic knows the rest.

    Whitening is over the tokens of all processes.

    Raises:
        ValueError: A response without a token, which has no place for its score.

    Source:
        Schulman et al. 2016 (arXiv:1506.02438), equation 16; whitening as in verl's `gae`.
    """
    assert inputs.values is not None, "gae needs the values of a critic"
    mask, values = inputs.mask, inputs.values
    rewards = torch.zeros_like(values)
    last = mask.sum(1) - 1
    if (last < 0).any():
        raise ValueError("gae needs responses of at least one token, got an empty one")
    rewards[torch.arange(len(last), device=last.device), last] = inputs.scores.to(values.dtype)
    penalty = kl_penalty(inputs, algorithm)
    metrics = {}
    if penalty is not None:
        rewards = rewards - penalty.to(values.dtype)
        metrics["reward/kl_penalty"] = float(penalty.sum(1).mean())
    advantages, returns = ops.gae(rewards, values, mask, critic.gamma, critic.lam)
    if critic.whiten:
        tokens, own = processes.concatenated(advantages[mask])
        advantages = torch.zeros_like(advantages).masked_scatter(mask, ops.whiten(tokens)[own])
    return Credit(advantages, returns, metrics)


def kl_penalty(inputs: CreditInputs, algorithm: AlgorithmConfig) -> Tensor | None:
    """kl_coef times the KL estimate [N, R], 0 where masked; None when the KL is not in the reward.

    Estimates are those of `policy_loss`, unclamped.
    """
    if algorithm.kl_in == "loss" or inputs.ref_logprobs is None:
        return None
    assert inputs.old_logprobs is not None
    loss = algorithm.loss
    estimates = kl_estimates(inputs.old_logprobs, inputs.ref_logprobs, loss.kl)
    return loss.kl_coef * torch.where(inputs.mask, estimates, 0)


def overlong_penalty(lengths: Tensor, max_length: int, algorithm: AlgorithmConfig) -> Tensor:
    """What each response loses for its length [N]: linear over the last share of the limit.

    Source:
        Yu et al. 2025 (DAPO, arXiv:2503.14476), equation 13, with the buffer as a share.
    """
    buffer = algorithm.overlong_buffer * max_length
    if buffer == 0:
        return torch.zeros(lengths.shape, device=lengths.device)
    over = (lengths.float() - (max_length - buffer)) / buffer
    return algorithm.overlong_penalty * over.clamp(0, 1)
