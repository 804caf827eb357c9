r"""Rewards: a boxed answer checked by a grader, the presence of a box, chance, or a function.

Only the response is looked at, never the prompt: prompts of this field often contain a literal
`\boxed{}`, which would make a format reward on prompt and response always 1.

Graders and functions named in the config run in worker processes (`grading.py`), so a grader
that never returns costs its time-out, scores 0 and is counted, and the run goes on; so does a
grader of answers that raises. A function of yours that raises is an error of the run: a reward that
is wrong in silence is worse than none.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from oneshot.rlvr.config import RewardConfig
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.rewards import harness_grader, strict_grader
from oneshot.rlvr.rewards.grading import GraderPool
from oneshot.training.errors import RunError
from oneshot.training.seeding import derive_seed

RewardFunction = Callable[[Sequence[str], Sequence[Problem]], Sequence[float]]
"""Responses and their problems in, one score per response out."""

CACHE_SIZE = 100_000
LARGEST = 3.4028234663852886e38  # of float32, the type of advantages


class RewardError(RunError):
    """A reward function failed or returned something that is not a score."""


@dataclass(frozen=True)
class RewardResult:
    """Scores of a batch of responses.

    Attributes:
        scores: One per response.
        timeouts: Responses whose grader ran out of time (scored 0).
        crashes: Responses whose grader raised or whose grader process died (scored 0).
    """

    scores: list[float]
    timeouts: int = 0
    crashes: int = 0


class Reward(ABC):
    """A reward: call it with responses, their problems, the step and their rows.

    `rows` are the positions of the responses in the batch of all processes, by default 0, 1, ...
    """

    @abstractmethod
    def __call__(
        self,
        responses: Sequence[str],
        problems: Sequence[Problem],
        step: int = 0,
        rows: Sequence[int] | None = None,
    ) -> RewardResult:
        """Scores each response."""

    def close(self) -> None:  # noqa: B027 - most rewards own nothing
        """Ends the worker processes, if there are any."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, braces matched; None without one.

    An unbalanced last box gives None, even when an earlier one is complete; `\boxed 5` is no box.
    Escaped braces (`\{`) do not count.
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth, i = 1, begin
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
        i += 1
    return None


def has_boxed_answer(text: str) -> bool:
    """Whether there is a last box and something other than blanks is in it."""
    return bool((last_boxed(text) or "").strip())


# How each grader of answers finds the box.
EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "math_verify": last_boxed,
    "strict": strict_grader.last_box,
    "harness": harness_grader.extract,
    "choice": last_boxed,
}


def make_reward(config: RewardConfig, seed: int = 0) -> Reward:
    """The reward that `config.function` names.

    Args:
        config: The reward's options.
        seed: Seed of the random reward.
    """
    if config.function == "format":
        return FormatReward()
    if config.function == "random":
        return RandomReward(config.random_probability, seed)
    if config.function in EXTRACTORS:
        return AnswerReward(config.function, config.workers, config.timeout)
    return WorkerReward(config.function, config.workers, config.timeout)


class FormatReward(Reward):
    r"""1 iff the response has a non-empty balanced `\boxed{}` (Wang et al. 2025, Table 14)."""

    def __call__(
        self,
        responses: Sequence[str],
        problems: Sequence[Problem],
        step: int = 0,
        rows: Sequence[int] | None = None,
    ) -> RewardResult:
        """Scores each response."""
        return RewardResult([float(has_boxed_answer(text)) for text in responses])


class RandomReward(Reward):
    """1 with a fixed probability, whatever the response says; seed, step and row decide."""

    def __init__(self, probability: float, seed: int) -> None:
        self.probability = probability
        self.seed = seed

    def __call__(
        self,
        responses: Sequence[str],
        problems: Sequence[Problem],
        step: int = 0,
        rows: Sequence[int] | None = None,
    ) -> RewardResult:
        """Scores each response."""
        generator = random.Random(derive_seed(self.seed, "random reward", step))
        order = range(len(responses)) if rows is None else rows
        draws = [generator.random() for _ in range(max(order) + 1)]
        return RewardResult([float(draws[row] < self.probability) for row in order])


class AnswerReward(Reward):
    """1 iff the last boxed answer equals the problem's answer according to a named grader.

    Graders: "math_verify", "strict" (the rules of Wang et al. 2025, `strict_grader.py`), "harness"
    (nearly those of its evaluation, which looks beyond boxes, `harness_grader.py`) and "choice" (a
    letter of a multiple-choice question). Equal strings need no grader, and a pair of answer and
    response answer is graded once: in one-example training nearly all responses of a step share a
    few answers.
    """

    def __init__(self, grader: str, workers: int, timeout: float) -> None:
        self.grader = grader
        self.needs_box = grader != "harness"
        self._extract = EXTRACTORS[grader]
        self._pool = GraderPool(grader, workers, timeout)
        self._known: dict[tuple[str, str], float] = {}

    def __call__(
        self,
        responses: Sequence[str],
        problems: Sequence[Problem],
        step: int = 0,
        rows: Sequence[int] | None = None,
    ) -> RewardResult:
        """Scores each response."""
        _check_lengths(responses, problems)
        pairs: list[tuple[str, str] | None] = []
        for text, problem in zip(responses, problems, strict=True):
            boxed = visible(self._extract(text) or "").strip()
            pairs.append((problem.answer, boxed) if boxed else None)
        unknown = dict.fromkeys(
            pair for pair in pairs if pair and pair[0] != pair[1] and pair not in self._known
        )
        timeouts = crashes = 0
        # Kept for this call: another thread may clear what is known.
        verdicts = {pair: self._known.get(pair, 0.0) for pair in pairs if pair}
        if unknown:
            graded = self._pool.grade(list(unknown))
            for pair, outcome in zip(unknown, graded, strict=True):
                verdicts[pair] = outcome.score
                if outcome.status == "score":
                    self._known[pair] = outcome.score
                timeouts += outcome.status == "timeout"
                # An answer that breaks a parser (a hundred thousand digits) must not end a
                # run.
                crashes += outcome.status in ("crash", "raised")
        scores = [
            verdicts[pair] if pair and pair[0] != pair[1] else float(bool(pair)) for pair in pairs
        ]
        if len(self._known) > CACHE_SIZE:
            self._known.clear()
        return RewardResult(scores, timeouts, crashes)

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()


class WorkerReward(Reward):
    """A function named "module:function", called in worker processes, a response at a time."""

    def __init__(self, function: str, workers: int, timeout: float) -> None:
        self.function = function
        self._pool = GraderPool(function, workers, timeout)

    def __call__(
        self,
        responses: Sequence[str],
        problems: Sequence[Problem],
        step: int = 0,
        rows: Sequence[int] | None = None,
    ) -> RewardResult:
        """Scores each response."""
        _check_lengths(responses, problems)
        outcomes = self._pool.grade(list(zip(responses, problems, strict=True)))
        for i, outcome in enumerate(outcomes):
            if outcome.status == "raised":
                raise RewardError(
                    f"reward {self.function!r} failed on response {i} "
                    f"({responses[i][:80]!r}):\n{outcome.detail}"
                )
        return RewardResult(
            scores=[outcome.score for outcome in outcomes],
            timeouts=sum(outcome.status == "timeout" for outcome in outcomes),
            crashes=sum(outcome.status == "crash" for outcome in outcomes),
        )

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()


class FunctionReward(Reward):
    """A Python function given to `train(reward=...)`: called in this process, with whole batches.

    Nothing can stop it if it hangs; name it "module:function" in the config for that.
    """

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self.name = getattr(function, "__qualname__", repr(function))

    def __call__(
        self,
        responses: Sequence[str],
        problems: Sequence[Problem],
        step: int = 0,
        rows: Sequence[int] | None = None,
    ) -> RewardResult:
        """Scores each response."""
        _check_lengths(responses, problems)
        scores = self.function(responses, problems)
        try:
            return RewardResult(as_scores(scores, len(responses)))
        except (TypeError, ValueError) as error:
            raise RewardError(f"reward {self.name!r}: {error}") from None


def as_scores(scores: Any, count: int) -> list[float]:
    """The scores that a reward function returned, checked.

    Args:
        scores: A sequence of numbers, or an array or tensor [count].
        count: Number of responses.

    Raises:
        TypeError: It is something else, such as a dictionary, a generator or a single number.
        ValueError: It has another length, more than one axis, or a score that is no finite number
            in float32.
    """
    shape = getattr(scores, "shape", None)
    if isinstance(scores, str | bytes | Mapping | Set) or not hasattr(scores, "__len__"):
        raise TypeError(f"expected a list of {count} numbers, got {type(scores).__name__}")
    if shape is not None and len(shape) != 1:
        raise ValueError(f"expected a list of {count} numbers, got shape {tuple(shape)}")
    if len(scores) != count:
        raise ValueError(f"returned {len(scores)} scores for {count} responses")
    for i, score in enumerate(scores):
        if not _is_score(score):
            raise ValueError(
                f"response {i}: expected a finite number, got {score!r} "
                "(float32 holds up to 3.4e38)"
            )
    return [float(score) for score in scores]


def visible(answer: str) -> str:
    r"""An answer without what LaTeX does not print, such as `\phantom{5}`."""
    while (match := re.search(r"\\[hv]?phantom\s*\{", answer)) is not None:
        depth, end = 1, match.end()
        while depth and end < len(answer):
            depth += {"{": 1, "}": -1}.get(answer[end], 0)
            end += 1
        answer = answer[: match.start()] + answer[end:]
    return answer


def _is_score(value: Any) -> bool:
    """A number, array or tensor without axes that float32 can hold."""
    if isinstance(value, str | bytes) or getattr(value, "shape", ()) not in ((), None):
        return False
    try:
        return abs(float(value)) <= LARGEST
    except (TypeError, ValueError, OverflowError):
        return False


def _check_lengths(responses: Sequence[str], problems: Sequence[Problem]) -> None:
    if len(responses) != len(problems):
        raise ValueError(
            f"problems must have one entry per response, got {len(problems)} for {len(responses)}"
        )
