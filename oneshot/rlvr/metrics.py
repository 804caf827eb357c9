"""Metrics of responses and their rewards; what the terminal and curves.png show of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.rewards.reward import RewardResult, has_boxed_answer
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.training.curves import Panel
from oneshot.training.distributed import Processes, interleave

# Name in metrics.jsonl -> label and format in the terminal.
SHOWN = {
    "reward/mean": ("reward", ".3f"),
    "policy/entropy": ("H", ".3f"),
    "policy/kl": ("KL", ".4f"),
    "response/length_mean": ("len", ".0f"),
    "group/mixed": ("mixed", ".2f"),
    "perf/tokens_per_second": ("tok/s", ".0f"),
    "validation/accuracy": ("val", ".3f"),
    "reward/timeouts": ("timeouts", ".0f"),
    "reward/crashes": ("crashes", ".0f"),
}
# Shown only while they are not 0.
TROUBLES = ("reward/timeouts", "reward/crashes")
PANELS = (
    Panel("Reward (training)", ("reward/mean",)),
    Panel("Accuracy (validation)", ("validation/accuracy",)),
    Panel("Entropy, nats per token", ("policy/entropy",)),
    Panel(
        "Response length, tokens",
        ("response/length_mean", "validation/mean_tokens"),
        labels=("training", "validation"),
    ),
    Panel("Share of groups", ("group/mixed", "group/all_right", "group/all_wrong"), shares=True),
    Panel("KL to the reference", ("policy/kl",)),
    Panel("Gradient norm", ("optimizer/grad_norm",)),
    Panel("Boxed and truncated share", ("response/boxed_ratio", "response/truncated_ratio")),
    Panel("Critic, squared error", ("critic/squared_error",)),
)
# Words that Wang et al. 2025 count as self-reflection (section 4.2).
REFLECTION_WORDS = ("rethink", "recheck", "recalculate")


def reflection_shares(texts: Sequence[str]) -> dict[str, float]:
    """Share of texts that contain each of `REFLECTION_WORDS`, and any of them."""
    contained = [{word for word in REFLECTION_WORDS if word in text.lower()} for text in texts]
    shares = {
        word: sum(word in words for words in contained) / len(texts) for word in REFLECTION_WORDS
    }
    return {**shares, "any": sum(map(bool, contained)) / len(texts)}


@dataclass(frozen=True)
class Outcome:
    """The responses of one step, of all processes, in the order of the batch.

    Attributes:
        texts: The N responses.
        lengths: Their tokens.
        finished: Whether each ended by itself.
        scores: Their scores.
        timeouts: Responses whose grader ran out of time.
        crashes: Responses whose grader died.
    """

    texts: list[str]
    lengths: list[int]
    finished: list[bool]
    scores: list[float]
    timeouts: int
    crashes: int


def gather_outcome(
    rollout: Rollout, result: RewardResult, group_size: int, processes: Processes
) -> Outcome:
    """The outcome of a step from the responses of all processes, which all must call this."""
    own = Outcome(
        rollout.texts,
        rollout.response_mask.sum(1).tolist(),
        rollout.finished.tolist(),
        list(result.scores),
        result.timeouts,
        result.crashes,
    )
    parts = processes.gather(own)
    return Outcome(
        interleave([part.texts for part in parts], group_size),
        interleave([part.lengths for part in parts], group_size),
        interleave([part.finished for part in parts], group_size),
        interleave([part.scores for part in parts], group_size),
        sum(part.timeouts for part in parts),
        sum(part.crashes for part in parts),
    )


def is_mixed(scores: Sequence[float]) -> bool:
    """Whether the scores of a group differ by more than rounding (a millionth of the largest).

    Sums that should be equal may differ in the last bit, 0.1 + 0.2 and 0.3; such a group teaches
    nothing.
    """
    return max(scores) - min(scores) > 1e-6 * max(map(abs, scores))


def rollout_metrics(outcome: Outcome, group_size: int) -> dict[str, float]:
    """Reward, groups and responses of one step.

    Only mixed groups carry a policy gradient: the advantages of the others are all 0. A group is
    all right when every score in it is the same (`is_mixed`) and above 0.5.
    """
    scores = torch.tensor(outcome.scores, dtype=torch.float64)
    groups = scores.view(-1, group_size)
    same = ~torch.tensor([is_mixed(group) for group in groups.tolist()])
    right = same & (groups[:, 0] > 0.5)
    lengths = torch.tensor(outcome.lengths, dtype=torch.float64)
    finished = torch.tensor(outcome.finished, dtype=torch.float64)
    metrics = {
        "reward/mean": scores.mean(),
        "group/mixed": (~same).double().mean(),
        "group/all_right": right.double().mean(),
        "group/all_wrong": (same & ~right).double().mean(),
        "response/length_mean": lengths.mean(),
        "response/length_max": lengths.max(),
        "response/truncated_ratio": 1 - finished.mean(),
    }
    return {
        **{name: float(value) for name, value in metrics.items()},
        "response/boxed_ratio": sum(map(has_boxed_answer, outcome.texts)) / len(outcome.texts),
        "response/reflection_ratio": reflection_shares(outcome.texts)["any"],
        "reward/timeouts": outcome.timeouts,
        "reward/crashes": outcome.crashes,
    }


def sample_rows(outcome: Outcome, problems: Sequence[Problem], count: int) -> list[dict[str, Any]]:
    """The first `count` responses with the problem that each answers, for samples.jsonl."""
    return [
        {
            "index": problems[i].index,
            "answer": problems[i].answer,
            "reward": outcome.scores[i],
            "response": outcome.texts[i],
        }
        for i in range(min(count, len(outcome.texts)))
    ]
