"""Validation during training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot.rlvr.config import PromptConfig, RewardConfig, TrainConfig
from oneshot.rlvr.evaluation.evaluate import evaluate, prepare
from oneshot.rlvr.problems import data
from oneshot.rlvr.rewards.reward import make_reward
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Validation:
    """Runs `evaluate` on the validation problems of a config, if it has any."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
    ) -> None:
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.folder = folder / "validation"
        options = config.evaluation
        self.problems = []
        if options.path is not None:
            self.problems = data.read_problems(
                options.path,
                problem_key=options.problem_key,
                answer_key=options.answer_key,
                limit=options.limit,
            )
        if self.problems:
            prepare(
                model,
                tokenizer,
                self.problems,
                self._template,
                self._limit,
                "rollout.max_new_tokens"
                if options.max_new_tokens is None
                else "evaluation.max_new_tokens",
            )
        self.grader = make_reward(
            RewardConfig(options.grader, config.reward.timeout, config.reward.workers)
        )

    @property
    def _template(self) -> PromptConfig:
        return self.config.evaluation.prompt or self.config.data.prompt

    @property
    def _limit(self) -> int:
        return self.config.evaluation.max_new_tokens or self.config.rollout.max_new_tokens

    def due(self, step: int) -> bool:
        """Whether there is a validation after this step; the last step always has one."""
        last = step == self.config.run.steps
        return bool(self.problems) and (last or step % self.config.evaluation.every == 0)

    def run(self, step: int) -> dict[str, float]:
        """Validates; returns the metrics and writes every response to validation/."""
        if not self.problems:
            return {}
        options, rollout = self.config.evaluation, self.config.rollout
        result = evaluate(
            self.model,
            self.tokenizer,
            self.problems,
            template=self._template,
            max_new_tokens=self._limit,
            batch_size=options.batch_size,
            temperature=options.temperature,
            samples=options.samples,
            grader=self.grader,
            seed=derive_seed(self.config.run.seed, "validation"),
            stop_tokens=rollout.stop_tokens,
        )
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"step_{step:06d}.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(record) + "\n" for record in result.records)
        metrics = {
            "accuracy": result.accuracy,
            "accuracy_low": result.interval[0],
            "accuracy_high": result.interval[1],
            "boxed_ratio": result.boxed_ratio,
            "truncated_ratio": result.truncated_ratio,
            "mean_tokens": result.mean_tokens,
            "reflection_ratio": result.reflection["any"],
            "timeouts": result.timeouts,
            **{f"pass_at_{k}": value for k, value in result.pass_at_k.items() if k > 1},
        }
        return {f"validation/{name}": value for name, value in metrics.items()}

    def close(self) -> None:
        """Ends the grader processes."""
        self.grader.close()
