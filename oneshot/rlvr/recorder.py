"""What the first process of a run writes: figures, samples, accuracy history, checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from oneshot.rlvr import checkpoint
from oneshot.rlvr.algorithm.critic import Critic
from oneshot.rlvr.algorithm.update import PolicyUpdater
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.evaluation.validation import Validation
from oneshot.rlvr.figures import Outcome, sample_rows
from oneshot.rlvr.metrics import open_log
from oneshot.rlvr.notices import Notices
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.problems.selection import fold, step_accuracy, write_history
from oneshot.training import checkpoints
from oneshot.training.folder import write_config
from oneshot.training.jsonl import JsonLines, read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Recorder:
    """Opens the files of a run, which exists on the disk from here on.

    Args:
        config: Of the run.
        folder: Of the run.
        model: Whole weights: it is validated.
        tokenizer: Its tokenizer.
        digest: Of the training data.
        resumed_from: Step that the run continues after; None for a new run.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        digest: str,
        resumed_from: int | None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.model = model
        self.tokenizer = tokenizer
        self.digest = digest
        self.notices = Notices(config)
        self.validation = Validation(config, model, tokenizer, folder)
        write_config(folder, config)
        self.log = open_log(folder, config.run.steps, resumed_from, config.run.progress)
        self.visits = JsonLines(folder / "accuracy.jsonl", resumed_from)

    def begin(self, dropped: int, new: bool) -> None:
        """Says what was left out and validates the untrained model of a new run."""
        if dropped:
            self.log.say(
                f"{dropped} training problems left out: prompt over rollout.max_prompt_tokens"
            )
        if new and self.validation.problems and self.config.evaluation.before_training:
            self.log.step(0, self.validation.run(0))

    def step(
        self,
        step: int,
        found: Outcome,
        problems: Sequence[Problem],
        figures: Mapping[str, float],
    ) -> None:
        """Records one step, with its validation where one is due."""
        due = self.validation.due(step)
        validated = self.validation.run(step) if due else {}
        self.visits.write({"step": step, "accuracy": step_accuracy(problems, found.scores)})
        samples = sample_rows(found, problems, self.config.run.log_samples)
        self.log.step(step, {**figures, **validated}, samples)
        for text in self.notices.step(step, figures):
            warnings.warn(text, stacklevel=2)
        if due:
            self.log.plot()

    def save(
        self,
        step: int,
        updater: PolicyUpdater,
        critic: Critic | None,
        policy_state: checkpoint.Snapshot,
        critic_state: checkpoint.Snapshot | None,
    ) -> None:
        """Writes the checkpoint of a step, after what was recorded up to it.

        Raises:
            CheckpointError: Writing failed; older checkpoints are intact.
        """
        self.log.sync()
        self.visits.sync()
        state = checkpoint.TrainerState(
            step=step,
            updates=updater.updates,
            data_digest=self.digest,
            threads=torch.get_num_threads(),
            torch_version=torch.__version__,
            critic_updates=0 if critic is None else critic.updates,
        )
        checkpoint.save(
            self.folder / "checkpoints",
            policy_state,
            self.tokenizer,
            state,
            keep=self.config.run.keep_checkpoints,
            critic=critic_state,
        )

    def finish(self) -> None:
        """Removes older checkpoints that a kill left, and writes the accuracy history."""
        # A kill between the last checkpoint and the removal of older ones leaves nothing to train.
        checkpoints.prune(self.folder / "checkpoints", self.config.run.keep_checkpoints)
        accuracy = fold(read_jsonl(self.folder / "accuracy.jsonl"))
        write_history(self.folder / f"acc_step_{self.config.run.steps}.json", accuracy)

    def close(self) -> None:
        """Closes the files and ends the grader processes."""
        self.validation.close()
        self.visits.close()
        self.log.close()
