"""The problems of a run with their prompts, and the batch of each step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.problems import data
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.problems.prompt import drop_long, encode
from oneshot.training.distributed import Processes
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = tuple[Problem, list[int]]
"""A training problem and its prompt as token ids."""


@dataclass(frozen=True)
class Batch:
    """The prompts of one step, and which of them this process answers.

    Attributes:
        rows: Those of all processes.
        indices: Positions in `rows` of this process's share.
        samples: Responses per prompt.
        seed: Of the responses.
    """

    rows: Sequence[Row]
    indices: Sequence[int]
    samples: int
    seed: int

    @property
    def prompts(self) -> list[list[int]]:
        """Prompts of this process."""
        return [self.rows[i][1] for i in self.indices]

    @property
    def response_indices(self) -> list[int]:
        """Position of each response of this process among those of all."""
        return [i * self.samples + k for i in self.indices for k in range(self.samples)]

    @property
    def problems(self) -> list[Problem]:
        """The problem of each response of this process."""
        return [self.rows[i][0] for i in self.indices for _ in range(self.samples)]

    @property
    def all_problems(self) -> list[Problem]:
        """The problem of each response of all processes."""
        return [problem for problem, _ in self.rows for _ in range(self.samples)]


@dataclass(frozen=True)
class TrainingSet:
    """The problems of a run.

    Attributes:
        rows: Problems with their prompts, each problem of the file once.
        config: Of the run.
        dropped: Problems left out because their prompt is too long.
    """

    rows: Sequence[Row]
    config: TrainConfig
    dropped: int = 0

    @property
    def prompts(self) -> list[list[int]]:
        """Their prompts."""
        return [prompt for _, prompt in self.rows]

    @property
    def digest(self) -> str:
        """Digest of prompts and answers, which a resumed run compares."""
        text = json.dumps([(prompt, problem.answer) for problem, prompt in self.rows])
        return hashlib.sha256(text.encode()).hexdigest()

    def batch(self, step: int, processes: Processes) -> Batch:
        """The batch of a step; the seed and the step determine it."""
        size, seed = self.config.rollout.batch_size, self.config.run.seed
        rows = data.batch_for_step(data.repeat_to_batch(self.rows, size), size, step, seed)
        return Batch(
            rows,
            processes.share(range(size)),
            self.config.rollout.samples_per_prompt,
            derive_seed(seed, "rollout", step),
        )

    def other_batch(self, step: int, turn: int, indices: Sequence[int]) -> Batch:
        """Other prompts for some positions of the batch of a step, for each turn anew."""
        size, seed = self.config.rollout.batch_size, self.config.run.seed
        rows = data.repeat_to_batch(self.rows, size)
        return Batch(
            data.batch_for_step(rows, size, step, derive_seed(seed, "refill", turn)),
            indices,
            self.config.rollout.samples_per_prompt,
            derive_seed(seed, "rollout", step, turn),
        )


def read_training_set(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> TrainingSet:
    """The training problems of a run, without those whose prompt is too long.

    Raises:
        ValueError: Bad data.
    """
    problems = data.read_problems(
        config.data.path,
        problem_key=config.data.problem_key,
        answer_key=config.data.answer_key,
        empty_answers=config.data.empty_answers,
        limit=config.data.limit,
    )
    data.check_indices(problems)
    prompts = encode(problems, tokenizer, config.data.prompt)
    problems, prompts, dropped = drop_long(problems, prompts, config.rollout.max_prompt_tokens)
    return TrainingSet(list(zip(problems, prompts, strict=True)), config, dropped)
