"""Figures that come from responses and their rewards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.rewards.reward import RewardResult, has_boxed_answer
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.training.distributed import Processes, interleave

# Words that Wang et al. 2025 count as self-reflection (section 4.2).
REFLECTION_WORDS = ("rethink", "recheck", "recalculate")


def reflection_shares(texts: Sequence[str]) -> dict[str, float]:
    """Share of texts that contain each of `REFLECTION_WORDS`, and any of them."""
    found = [{word for word in REFLECTION_WORDS if word in text.lower()} for text in texts]
    shares = {word: sum(word in words for words in found) / len(texts) for word in REFLECTION_WORDS}
    return {**shares, "any": sum(map(bool, found)) / len(texts)}


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


def outcome(
    rollout: Rollout, result: RewardResult, group_size: int, processes: Processes
) -> Outcome:
    """Gathers the outcome of a step; all processes must call this."""
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


def rollout_figures(found: Outcome, group_size: int) -> dict[str, float]:
    """Reward, groups and responses of one step.

    Only mixed groups carry a policy gradient: the advantages of the others are all 0. A group is
    all right when every score in it is the same (`is_mixed`) and above 0.5.
    """
    scores = torch.tensor(found.scores, dtype=torch.float64)
    groups = scores.view(-1, group_size)
    same = ~torch.tensor([is_mixed(group) for group in groups.tolist()])
    right = same & (groups[:, 0] > 0.5)
    lengths = torch.tensor(found.lengths, dtype=torch.float64)
    figures = {
        "reward/mean": scores.mean(),
        "group/mixed": (~same).double().mean(),
        "group/all_right": right.double().mean(),
        "group/all_wrong": (same & ~right).double().mean(),
        "response/length_mean": lengths.mean(),
        "response/length_max": lengths.max(),
        "response/truncated_ratio": 1 - torch.tensor(found.finished, dtype=torch.float64).mean(),
    }
    boxed = sum(map(has_boxed_answer, found.texts)) / len(found.texts)
    return {
        **{name: float(value) for name, value in figures.items()},
        "response/boxed_ratio": boxed,
        "response/reflection_ratio": reflection_shares(found.texts)["any"],
        "reward/timeouts": found.timeouts,
        "reward/crashes": found.crashes,
    }


def sample_rows(found: Outcome, problems: Sequence[Problem], count: int) -> list[dict[str, Any]]:
    """The first `count` responses, for reading."""
    return [
        {
            "index": problems[i].index,
            "answer": problems[i].answer,
            "reward": found.scores[i],
            "response": found.texts[i],
        }
        for i in range(min(count, len(found.texts)))
    ]


class Stopwatch:
    """Seconds of the parts of one step."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends one part."""
        now = time.perf_counter()
        self._laps[name] = now - self._last
        self._last = now

    def figures(self, found: Outcome) -> dict[str, float]:
        """Seconds of each part and of the whole, and response tokens per second of the whole."""
        seconds = self._last - self._begin
        tokens = sum(found.lengths)
        return {
            "perf/tokens_per_second": tokens / seconds,
            "perf/step_seconds": seconds,
            **{f"perf/{name}_seconds": value for name, value in self._laps.items()},
        }
